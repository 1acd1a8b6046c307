"""`molmoact2`: the command line. Loads nothing heavy before it knows what it was asked for."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molmoact2_ros.bringup import Options

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class UsageError(Exception):
    """What was asked for cannot work on this machine; the message says what to do."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    from molmoact2_ros import __version__

    root = argparse.ArgumentParser(prog="molmoact2", description="MolmoAct2 in closed loop on a robot arm, over ROS 2.")
    root.add_argument("--version", action="version", version=f"molmoact2_ros {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)

    sim = commands.add_parser("sim", help="run episodes on a simulated cell")
    _add_run_options(sim)
    sim.add_argument("--record", default="", metavar="DIR", help="write one MCAP bag an episode into DIR")
    sim.add_argument("--no-film", action="store_true", help="make no film and no picture (saves one core)")
    sim.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    sim.set_defaults(run=_sim)

    train = commands.add_parser(
        "train-cell", help="train the small checkpoint of a simulated cell", add_help=False, prefix_chars="\0"
    )
    train.add_argument("rest", nargs=argparse.REMAINDER)
    train.set_defaults(run=_train)

    doctor = commands.add_parser("doctor", help="look at this machine: what is wrong, and the command that mends it")
    doctor.add_argument("--robot", default="", metavar="NAME", help="also look for what this robot needs")
    doctor.add_argument("--config", default="", metavar="FILE", help="its parameter file (the one that ships here)")
    doctor.add_argument("--record", default="bags", metavar="DIR", help="where bags will go (%(default)s)")
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    doctor.set_defaults(run=_doctor)

    build = commands.add_parser("compile", help="make the files of a backend for a checkpoint, and hold them to torch")
    build.add_argument("--checkpoint", default="", metavar="DIR|ID", help="which (the cell's own)")
    build.add_argument("--backend", default="onnxruntime", metavar="B", help="onnxruntime or tensorrt (%(default)s)")
    build.add_argument("--precision", default="", metavar="P", help="tensorrt: bf16 (default) or fp16")
    build.add_argument("--robot", default="so101", help="whose checkpoint it is (%(default)s)")
    build.add_argument("--norm-tag", default="", metavar="TAG", help="tag in norm_stats.json (the robot's)")
    build.add_argument("--cameras", default="", metavar="A,B", help="where the checkpoint's names do not say it")
    build.add_argument("--tokens", type=int, default=0, metavar="N", help="tensorrt: room for a longer task")
    build.add_argument("--cache", default="", metavar="DIR", help="where files are kept (~/.cache/molmoact2_ros)")
    build.add_argument("--self-test", action="store_true", help="build a small random model instead, and run it")
    build.set_defaults(run=_compile)

    bench = commands.add_parser("bench", help="measure; each benchmark writes a page into benchmarks/")
    benches = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    loop = benches.add_parser("loop", help="ages and periods of the closed loop on the simulated cell")
    _add_run_options(loop, episodes=3)
    loop.add_argument("--page", default="benchmarks/loop.md", metavar="FILE", help="page to write (%(default)s)")
    loop.set_defaults(run=_bench_loop)
    cells = benches.add_parser("cells", help="speed of the simulated cells and success of their scripted experts")
    cells.add_argument("--episodes", type=int, default=20, metavar="N", help="of the expert, a robot (%(default)s)")
    cells.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    cells.add_argument("--page", default="benchmarks/cells.md", metavar="FILE", help="page to write (%(default)s)")
    cells.set_defaults(run=_bench_cells)
    robots = benches.add_parser("robots", help="real drivers on emulated buses: a minute of motion, every fault switch")
    robots.add_argument("--robot", action="append", metavar="NAME", help="which; may be repeated (all there are)")
    robots.add_argument("--motion", type=float, default=60.0, metavar="S", help="length of the motion (%(default)s)")
    robots.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="logs (%(default)s)")
    robots.add_argument("--page", default="benchmarks/robots.md", metavar="FILE", help="page to write (%(default)s)")
    robots.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    robots.set_defaults(run=_bench_robots)
    policy = benches.add_parser("policy", help="one call of the policy by stage, every backend, with and without depth")
    policy.add_argument(
        "--size", choices=("small", "mid", "full"), default="small", help="random model; full: on a GPU (%(default)s)"
    )
    policy.add_argument("--checkpoint", default="", metavar="DIR|ID", help="a trained one instead of a random model")
    policy.add_argument("--cameras", type=int, default=0, metavar="N", help="pictures a call (2; full: 2 and 3)")
    policy.add_argument("--changed", type=float, metavar="SHARE", help="of depth cells (0, 5, 10, 25, 50 and 100 %%)")
    policy.add_argument("--backend", action="append", default=[], metavar="B", help="may be repeated (all there are)")
    policy.add_argument("--chunk", type=int, default=0, metavar="N", help="rows of a chunk (full: 10, 15 and 30)")
    policy.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (%(default)s)")
    policy.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds for a median (%(default)s)")
    policy.add_argument("--threads", type=int, default=0, metavar="N", help="of torch; 0 is its own choice")
    policy.add_argument("--page", default="benchmarks/policy.md", metavar="FILE", help="page to write (%(default)s)")
    policy.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    policy.set_defaults(run=_bench_policy)
    drafts = benches.add_parser("redraft", help="forwards by what is drafted after a wrong depth code")
    drafts.add_argument("--episodes", type=int, default=4, metavar="N", help="of the simulated cell (%(default)s)")
    drafts.add_argument("--frames", type=int, default=25, metavar="N", help="of each (%(default)s)")
    drafts.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    drafts.add_argument("--page", default="benchmarks/policy.md", metavar="FILE", help="page to write (%(default)s)")
    drafts.set_defaults(run=_bench_redraft)
    seams = benches.add_parser("rtc", help="seams between chunks with and without real-time chunking, simulated cell")
    seams.add_argument("--episodes", type=int, default=12, metavar="N", help="of each setting (%(default)s)")
    seams.add_argument("--latency", type=float, default=0.25, metavar="S", help="picture to chunk (%(default)s)")
    seams.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    seams.add_argument("--page", default="benchmarks/rtc.md", metavar="FILE", help="page to write (%(default)s)")
    seams.set_defaults(run=_bench_rtc)
    execution = benches.add_parser("execution", help="chunk playing against lerobot's, the command loop, the faults")
    execution.add_argument("--robot", default="", help="only this one (all)")
    execution.add_argument(
        "--loop", type=float, nargs="?", const=60.0, default=0.0, metavar="S", help="measure the loop"
    )
    execution.add_argument("--faults", type=Path, default=None, metavar="FILE", help="only the fault table, from FILE")
    execution.add_argument("--record", action="store_true", help="only record the chunks of the simulated cell anew")
    execution.add_argument("--page", default="benchmarks/execution.md", metavar="FILE", help="page (%(default)s)")
    execution.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    execution.set_defaults(run=_bench_execution)
    return root


def _add_run_options(command: argparse.ArgumentParser, episodes: int = 10) -> None:
    add = command.add_argument
    add("--robot", default="so101", help="which cell: so101, franka or yam (%(default)s)")
    add("--task", default="pick up the red cube", help="what the robot is told (%(default)s)")
    add("--episodes", type=int, default=episodes, metavar="N", help="how many (%(default)s)")
    add("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    add("--policy", choices=("molmoact2", "expert"), default="molmoact2", help="who decides (%(default)s)")
    add("--checkpoint", default="", metavar="DIR|ID", help="checkpoint directory or Hugging Face id (the cell's own)")
    add("--wire", action="store_true", help="the real driver on the arm's emulated bus, the cell behind it")
    add("--episode-timeout", type=float, default=30.0, metavar="S", help="limit of one episode (%(default)s)")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="film, picture and logs (%(default)s)")


def options_from(arguments: argparse.Namespace) -> Options:
    """Return the bringup options for the parsed `arguments` of a run.

    Raises:
        UsageError: the checkpoint is not there, or this machine cannot render.
        ValueError: an option has a value that cannot work.
    """
    from molmoact2_ros.bringup import Options, missing_checkpoint

    checkpoint = arguments.checkpoint
    if checkpoint and Path(checkpoint).expanduser().is_dir():
        checkpoint = str(Path(checkpoint).expanduser().resolve())
    elif checkpoint and not _HUB_ID.fullmatch(checkpoint):
        raise UsageError(f"{checkpoint!r} is neither a directory nor a Hugging Face id such as org/name")
    options = Options(
        robot=arguments.robot,
        wire=arguments.wire,
        policy=arguments.policy,
        checkpoint=checkpoint,
        task=arguments.task,
        episodes=arguments.episodes,
        seed=arguments.seed,
        episode_timeout_s=arguments.episode_timeout,
        link_prefix=f"molmoact2_{os.getpid()}",
    )
    missing = missing_checkpoint(options)
    if missing:
        raise UsageError(missing)
    return options


def _sim(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from molmoact2_ros.bringup import nodes
    from molmoact2_ros.display import RunDisplay
    from molmoact2_ros.processes import node_environment
    from molmoact2_ros.session import orderly_signals, run_session

    out = arguments.out.resolve()
    options = options_from(arguments)
    if not arguments.no_film:
        options = replace(options, film=str(out / "demo.mp4"), picture=str(out / "demo.png"))
    if arguments.record:
        options = replace(options, record=str(Path(arguments.record).resolve()))
    specs = nodes(options)
    _check_renderer()
    out.mkdir(parents=True, exist_ok=True)
    for made in (options.film, options.picture):
        if made:
            Path(made).unlink(missing_ok=True)  # an old film must not pass for this run's

    console = Console(stderr=True)
    with orderly_signals(), RunDisplay(console, options.episodes) as display:
        summary = run_session(specs, out / "log", node_environment(), display.hear)
    summary = finished(summary, options)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(report(summary))
    return OK


def finished(summary: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the run's `summary` with what was chosen, and with the paths of what was really written (else None)."""

    def written(path: str) -> str | None:
        return path if path and Path(path).exists() else None

    chosen = {"robot": options.robot, "policy": options.policy, "checkpoint": options.checkpoint or None}
    files = {"film": written(options.film), "picture": written(options.picture), "record": written(options.record)}
    return {**{key: value for key, value in summary.items() if key != "type"}, **chosen, **files}


def report(summary: dict[str, Any]) -> str:
    """Return the closing words of a run."""
    episodes = summary["episodes"]
    lines = [
        f"{summary['successes']} of {episodes} episodes succeeded; the cube was reached in {summary['reached']}",
        _percentile_line("policy latency (capture to chunk)", summary["policy_latency_ms"]),
        _percentile_line("chunk age in use", summary["chunk_age_ms"]),
    ]
    lines += [f"{name:<8} {_shown(summary[name])}" for name in ("film", "picture", "record") if summary[name]]
    return "\n".join(lines)


def _percentile_line(name: str, values: dict[str, float] | None) -> str:
    shown = "  ".join(f"{key} {value:.0f} ms" for key, value in values.items()) if values else "never measured"
    return f"{name:<34} {shown}"


def _shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _check_renderer() -> None:
    from molmoact2_ros.processes import graphics_installed

    if not os.environ.get("MUJOCO_GL") and not graphics_installed():
        raise UsageError("the simulated cameras need OpenGL: sudo apt install libegl1 libgl1-mesa-dri libopengl0")


def _doctor(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.doctor.report import main as doctor

    return doctor(arguments.robot, arguments.config, arguments.record, arguments.json)


def _train(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.training.train import main as train

    return int(train(arguments.rest) or OK)


def _compile(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.policy.backends.compiling import Request, run_compile

    request = Request(
        checkpoint=arguments.checkpoint,
        backend=arguments.backend,
        precision=arguments.precision,
        robot=arguments.robot,
        norm_tag=arguments.norm_tag,
        cameras=tuple(name for name in arguments.cameras.split(",") if name),
        tokens=arguments.tokens,
        cache=arguments.cache,
        self_test=arguments.self_test,
    )
    return OK if run_compile(request) else FAILED


def _bench_loop(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.loop import measure

    _check_renderer()
    page = measure(options_from(arguments), arguments.out.resolve(), Path(arguments.page))
    print(f"written: {_shown(str(page))}")
    return OK


def _bench_cells(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.cells import measure

    _check_renderer()
    print(f"written: {_shown(str(measure(arguments.episodes, arguments.seed, Path(arguments.page))))}")
    return OK


def _bench_robots(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.robots import PLANS, measure

    _check_renderer()
    robots = arguments.robot or list(PLANS)
    page, reports = measure(robots, arguments.out.resolve(), Path(arguments.page), arguments.motion)
    print(f"written: {_shown(str(page))}")
    if arguments.json:
        print(json.dumps(reports))
    return OK if all(case["ok"] for found in reports.values() for case in found["faults"]) else FAILED


def _bench_redraft(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.redraft import measure

    if arguments.episodes < 1 or arguments.frames < 2:
        raise ValueError(
            "--episodes must be at least 1, and --frames at least 2 (the first of an episode has no draft)"
        )
    _check_renderer()
    page = measure(Path(arguments.page), arguments.episodes, arguments.frames, arguments.seed)
    print(f"written: {_shown(str(page))}")
    return OK


def _bench_rtc(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.rtc import measure

    if arguments.episodes < 1 or not 0.0 < arguments.latency < 1.0:
        raise ValueError("--episodes must be at least 1, and --latency above 0 and below the chunk's 1 s")
    _check_renderer()
    page = measure(arguments.episodes, arguments.latency, arguments.seed, Path(arguments.page))
    print(f"written: {_shown(str(page))}")
    return OK


def _bench_policy(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.policy import Settings, measure_all

    settings = Settings(
        size=arguments.size,
        checkpoint=arguments.checkpoint,
        cameras=arguments.cameras or 2,
        changed=arguments.changed,
        repeats=arguments.repeats,
        threads=arguments.threads,
        backends=tuple(arguments.backend),
        chunk=arguments.chunk,
        device=arguments.device,
    )
    cameras = (arguments.cameras,) if arguments.cameras else None
    page, result = measure_all(settings, Path(arguments.page), cameras, (arguments.chunk,) if arguments.chunk else None)
    print(f"written: {_shown(str(page))}")
    if arguments.json:
        print(json.dumps(result))
    return OK


def _bench_execution(arguments: argparse.Namespace) -> int:
    if arguments.record:
        from molmoact2_ros.benchmarking.execution_recording import record
        from molmoact2_ros.benchmarking.execution_streams import RECORDED

        _check_renderer()
        print(f"written: {_shown(str(RECORDED))}, {record(RECORDED)} chunks")
        return OK
    from molmoact2_ros.benchmarking.execution import ROBOTS, Settings, measure_execution

    robots = (arguments.robot,) if arguments.robot else ROBOTS
    verdict = measure_execution(Settings(robots, arguments.loop, arguments.faults), Path(arguments.page))
    print(f"written: {_shown(arguments.page)}")
    if arguments.json:
        print(json.dumps(verdict))
    return OK


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. Errors are one line on standard error."""
    arguments = parser().parse_args(argv)
    from molmoact2_ros.session import NodeEndedError, SessionError, TerminatedError

    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("molmoact2: interrupted; every node has ended", file=sys.stderr)
        return INTERRUPTED
    except TerminatedError as error:
        print(f"molmoact2: {error}; every node has ended", file=sys.stderr)
        return 128 + error.number
    except (UsageError, ValueError, FileNotFoundError) as error:
        print(f"molmoact2: {error}", file=sys.stderr)
        return USAGE
    except (SessionError, NodeEndedError, OSError) as error:
        print(f"molmoact2: {error}", file=sys.stderr)
        return FAILED


def main() -> None:
    """Console entry point."""
    sys.exit(run())


if __name__ == "__main__":
    main()
