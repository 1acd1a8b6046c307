"""`molmoact2 bench`: what is measured; each benchmark writes a page into `benchmarks/`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from molmoact2_ros.cli.arguments import (
    FAILED,
    OK,
    Commands,
    add_run_options,
    check_renderer,
    listed,
    options_from,
    shown,
)


def add(commands: Commands) -> None:
    """Add the command's parser, with one for each benchmark."""
    bench = commands.add_parser("bench", help="measure; each benchmark writes a page into benchmarks/")
    benches = bench.add_subparsers(dest="bench", metavar="WHAT", required=True)
    loop = benches.add_parser("loop", help="ages and periods of the closed loop on the simulated cell")
    add_run_options(loop, episodes=3)
    loop.add_argument("--page", default="benchmarks/loop.md", metavar="FILE", help="page to write (%(default)s)")
    loop.set_defaults(run=_loop)
    cells = benches.add_parser("cells", help="speed of the simulated cells and success of their scripted experts")
    cells.add_argument("--episodes", type=int, default=20, metavar="N", help="of the expert, a robot (%(default)s)")
    cells.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    cells.add_argument("--page", default="benchmarks/cells.md", metavar="FILE", help="page to write (%(default)s)")
    cells.set_defaults(run=_cells)
    robots = benches.add_parser("robots", help="real drivers on emulated buses: a minute of motion, every fault switch")
    robots.add_argument("--robot", action="append", metavar="NAME", help="which; may be repeated (all there are)")
    robots.add_argument(
        "--unasked", action="store_true", help="only: what moves an arm that nobody asked to move; status 1 if one does"
    )
    robots.add_argument("--motion", type=float, default=60.0, metavar="S", help="length of the motion (%(default)s)")
    robots.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="logs (%(default)s)")
    robots.add_argument("--page", default="benchmarks/robots.md", metavar="FILE", help="page to write (%(default)s)")
    robots.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    robots.set_defaults(run=_robots)
    views = benches.add_parser("views", help="what is drawn against the simulator, and what drawing costs")
    views.add_argument("--images", type=int, default=12, metavar="N", help="placements for each figure (%(default)s)")
    views.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    views.add_argument(
        "--seconds", type=float, default=30.0, metavar="S", help="of each run that costs are measured in; 0: none"
    )
    views.add_argument("--page", default="benchmarks/views.md", metavar="FILE", help="page to write (%(default)s)")
    views.set_defaults(run=_views)
    policy = benches.add_parser("policy", help="one call of the policy by stage, every backend, with and without depth")
    policy.add_argument(
        "--size", choices=("small", "mid", "full"), default="small", help="random model; full: on a GPU (%(default)s)"
    )
    policy.add_argument("--checkpoint", default="", metavar="DIR|ID", help="a trained one instead of a random model")
    policy.add_argument("--robot", default="so101", metavar="NAME", help="whose checkpoint it is (%(default)s)")
    policy.add_argument("--cameras", type=int, default=0, metavar="N", help="pictures a call (2; full: 2 and 3)")
    policy.add_argument("--changed", type=float, metavar="SHARE", help="of depth cells (0, 5, 10, 25, 50 and 100 %%)")
    policy.add_argument("--backend", action="append", default=[], metavar="B", help="may be repeated (all there are)")
    policy.add_argument("--chunk", type=int, default=0, metavar="N", help="rows of a chunk (full: 10, 15 and 30)")
    policy.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (%(default)s)")
    policy.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds for a median (%(default)s)")
    policy.add_argument("--threads", type=int, default=0, metavar="N", help="of torch; 0 is its own choice")
    policy.add_argument("--page", default="benchmarks/policy.md", metavar="FILE", help="page to write (%(default)s)")
    policy.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    policy.set_defaults(run=_policy)
    engines = benches.add_parser("engines", help="TensorRT engines of a random model: sizes, copies of weights, memory")
    engines.add_argument("--size", choices=("small", "mid"), default="small", help="of the model (%(default)s)")
    engines.add_argument("--robot", default="so101", metavar="NAME", help="whose it is (%(default)s)")
    engines.add_argument("--precision", choices=("bf16", "fp16"), default="bf16", help="(%(default)s)")
    engines.add_argument(
        "--for", dest="targets", default="sm89", metavar="SM", help="GPUs, as sm89,sm120 (%(default)s)"
    )
    engines.add_argument("--page", default="benchmarks/policy.md", metavar="FILE", help="page to write (%(default)s)")
    engines.set_defaults(run=_engines)
    drafts = benches.add_parser("redraft", help="forwards by what is drafted after a wrong depth code")
    drafts.add_argument("--episodes", type=int, default=4, metavar="N", help="of the simulated cell (%(default)s)")
    drafts.add_argument("--frames", type=int, default=25, metavar="N", help="of each (%(default)s)")
    drafts.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    drafts.add_argument("--page", default="benchmarks/policy.md", metavar="FILE", help="page to write (%(default)s)")
    drafts.set_defaults(run=_redraft)
    seams = benches.add_parser("rtc", help="seams between chunks with and without real-time chunking, simulated cell")
    seams.add_argument("--episodes", type=int, default=12, metavar="N", help="of each setting (%(default)s)")
    seams.add_argument("--latency", type=float, default=0.25, metavar="S", help="picture to chunk (%(default)s)")
    seams.add_argument("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    seams.add_argument("--page", default="benchmarks/rtc.md", metavar="FILE", help="page to write (%(default)s)")
    seams.set_defaults(run=_rtc)
    remote = benches.add_parser(
        "remote", help="a policy server: over a local call, bytes, clients, networks, install size"
    )
    remote.add_argument("--rounds", type=int, default=100, metavar="N", help="calls by each way (%(default)s)")
    remote.add_argument(
        "--seconds", type=float, default=8.0, metavar="S", help="for each number of clients (%(default)s)"
    )
    remote.add_argument("--seed", type=int, default=1000, help="of the pictures (%(default)s)")
    remote.add_argument("--no-install", action="store_true", help="leave out the size of the robot's packages")
    remote.add_argument("--page", default="benchmarks/remote.md", metavar="FILE", help="page to write (%(default)s)")
    remote.set_defaults(run=_remote)
    execution = benches.add_parser("execution", help="chunk playing against lerobot's, the command loop, the faults")
    execution.add_argument("--robot", default="", help="only this one (all)")
    execution.add_argument(
        "--loop", type=float, nargs="?", const=60.0, default=0.0, metavar="S", help="measure the loop"
    )
    execution.add_argument("--faults", type=Path, default=None, metavar="FILE", help="only the fault table, from FILE")
    execution.add_argument("--record", action="store_true", help="only record the chunks of the simulated cell anew")
    execution.add_argument("--page", default="benchmarks/execution.md", metavar="FILE", help="page (%(default)s)")
    execution.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    execution.set_defaults(run=_execution)


def _loop(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.loop import bench_loop

    check_renderer()
    page = bench_loop(options_from(arguments), arguments.out.resolve(), Path(arguments.page))
    print(f"written: {shown(str(page))}")
    return OK


def _cells(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.cells import bench_cells

    check_renderer()
    print(f"written: {shown(str(bench_cells(arguments.episodes, arguments.seed, Path(arguments.page))))}")
    return OK


def _views(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.views.bench import bench_views

    check_renderer()
    written = bench_views(arguments.images, arguments.seed, arguments.seconds, Path(arguments.page))
    print(f"written: {shown(str(written))}")
    return OK


def _robots(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.robots import PLANS, bench_robots

    check_renderer()
    robots = arguments.robot or list(PLANS)
    if arguments.unasked:
        from molmoact2_ros.benchmarking.unasked import bench_unasked
        from molmoact2_ros.benchmarking.unasked_report import exceeded

        page, rows = bench_unasked(robots, arguments.out.resolve(), Path(arguments.page))
        print(f"written: {shown(str(page))}")
        if arguments.json:
            print(json.dumps(rows))
        return FAILED if any(exceeded(found) for found in rows.values()) else OK
    page, reports = bench_robots(robots, arguments.out.resolve(), Path(arguments.page), arguments.motion)
    print(f"written: {shown(str(page))}")
    if arguments.json:
        print(json.dumps(reports))
    return OK if all(case["ok"] for found in reports.values() for case in found["faults"]) else FAILED


def _redraft(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.policy.redraft import bench_redraft

    if arguments.episodes < 1 or arguments.frames < 2:
        raise ValueError(
            "--episodes must be at least 1, and --frames at least 2 (the first of an episode has no draft)"
        )
    check_renderer()
    page = bench_redraft(Path(arguments.page), arguments.episodes, arguments.frames, arguments.seed)
    print(f"written: {shown(str(page))}")
    return OK


def _rtc(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.policy.rtc import bench_rtc

    if arguments.episodes < 1 or not 0.0 < arguments.latency < 1.0:
        raise ValueError("--episodes must be at least 1, and --latency above 0 and below the chunk's 1 s")
    check_renderer()
    page = bench_rtc(arguments.episodes, arguments.latency, arguments.seed, Path(arguments.page))
    print(f"written: {shown(str(page))}")
    return OK


def _policy(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.policy.bench import bench_policy_matrix
    from molmoact2_ros.benchmarking.policy.settings import PolicyBench

    settings = PolicyBench(
        size=arguments.size,
        robot=arguments.robot,
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
    chunks = (arguments.chunk,) if arguments.chunk else None
    page, result = bench_policy_matrix(settings, Path(arguments.page), cameras, chunks)
    print(f"written: {shown(str(page))}")
    if arguments.json:
        print(json.dumps(result))
    return OK


def _engines(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.policy.engines import bench_engines

    page = bench_engines(
        arguments.size, arguments.robot, arguments.precision, listed(arguments.targets), Path(arguments.page)
    )
    print(f"written: {shown(str(page))}")
    return OK


def _remote(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.benchmarking.remote.bench import bench_remote

    if arguments.rounds < 1 or not arguments.seconds > 0.0:
        raise ValueError("--rounds must be at least 1, and --seconds above 0")
    check_renderer()
    install = not arguments.no_install
    page, _ = bench_remote(Path(arguments.page), arguments.rounds, arguments.seconds, arguments.seed, install)
    print(f"written: {shown(str(page))}")
    return OK


def _execution(arguments: argparse.Namespace) -> int:
    if arguments.record:
        from molmoact2_ros.benchmarking.execution.recording import record
        from molmoact2_ros.benchmarking.execution.streams import RECORDED

        check_renderer()
        print(f"written: {shown(str(RECORDED))}, {record(RECORDED)} chunks")
        return OK
    from molmoact2_ros.benchmarking.execution.bench import ROBOTS, ExecutionBench, bench_execution

    robots = (arguments.robot,) if arguments.robot else ROBOTS
    verdict = bench_execution(ExecutionBench(robots, arguments.loop, arguments.faults), Path(arguments.page))
    print(f"written: {shown(arguments.page)}")
    if arguments.json:
        print(json.dumps(verdict))
    return OK
