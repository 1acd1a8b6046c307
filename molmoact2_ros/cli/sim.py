"""`molmoact2 sim`: episodes on a simulated cell."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molmoact2_ros.cli.arguments import (
    FAILED,
    OK,
    Commands,
    add_run_options,
    check_panel,
    check_renderer,
    options_from,
    panel_address,
    shown,
)

if TYPE_CHECKING:
    from molmoact2_ros.bringup.options import Options


def add(commands: Commands) -> None:
    """Add the command's parser."""
    sim = commands.add_parser("sim", help="run episodes on a simulated cell")
    add_run_options(sim)
    sim.add_argument("--record", default="", metavar="DIR", help="write one MCAP bag an episode into DIR")
    sim.add_argument("--no-film", action="store_true", help="make no film and no picture (saves one core)")
    sim.add_argument("--view", action="store_true", help="serve the operator's panel to a browser on this machine")
    sim.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    sim.set_defaults(run=_run, orderly=True)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from molmoact2_ros.bringup.display import RunDisplay
    from molmoact2_ros.bringup.preflight import check_checkpoint
    from molmoact2_ros.bringup.processes import node_environment
    from molmoact2_ros.bringup.session import orderly_signals, run_session
    from molmoact2_ros.bringup.specs import nodes
    from molmoact2_ros.recording.episode_recorder import finished_bags

    out = arguments.out.resolve()
    options = options_from(arguments)
    if not arguments.no_film:
        options = replace(options, film=str(out / "demo.mp4"), picture=str(out / "demo.png"))
    if arguments.record:
        options = replace(options, record=str(Path(arguments.record).resolve()))
    options = replace(options, panel=arguments.view)
    check_panel(options)
    specs = nodes(options)
    check_renderer()
    check_checkpoint(specs)
    out.mkdir(parents=True, exist_ok=True)
    for made in (options.film, options.picture):
        if made:
            Path(made).unlink(missing_ok=True)  # an old film must not pass for this run's

    before = {path.name for path in Path(options.record).glob("episode_*")} if options.record else set()
    console = Console(stderr=True)
    if arguments.view:
        console.print(panel_address(specs), highlight=False, markup=False, soft_wrap=True)
    with orderly_signals(), RunDisplay(console, options.episodes) as display:
        summary = run_session(specs, out / "log", node_environment(), display.hear)
    summary = finished(summary, options)
    if options.record:
        summary["bags"] = len(finished_bags(Path(options.record), before))
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(report(summary))
    lost = unrecorded(summary, out / "log" / "recorder.log")
    if lost:
        console.print(lost, style="red", highlight=False)
    return FAILED if lost else OK


def finished(summary: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the run's `summary` with what was chosen, and with the paths of what was really written (else None)."""

    def written(path: str) -> str | None:
        return path if path and Path(path).exists() else None

    chosen = {"robot": options.robot, "policy": options.policy, "checkpoint": options.checkpoint or None}
    files = {"film": written(options.film), "picture": written(options.picture), "record": written(options.record)}
    return {**{key: value for key, value in summary.items() if key != "type"}, **chosen, **files}


def unrecorded(summary: dict[str, Any], log: Path) -> str:
    """Why a run that was to be recorded is not; empty when each episode has its whole bag, or none was asked for."""
    bags, episodes = summary.get("bags"), summary["episodes"]
    if bags is None or bags >= episodes:
        return ""
    return f"recorded: {bags} of {episodes} episodes; {shown(str(log))} says why"


def report(summary: dict[str, Any]) -> str:
    """Return the closing words of a run."""
    episodes = summary["episodes"]
    lines = [
        f"{summary['successes']} of {episodes} episodes succeeded; the cube was reached in {summary['reached']}",
        _percentile_line("policy latency (capture to chunk)", summary["policy_latency_ms"]),
        _percentile_line("chunk age in use", summary["chunk_age_ms"]),
    ]
    lines += [f"{name:<8} {shown(summary[name])}" for name in ("film", "picture", "record") if summary[name]]
    return "\n".join(lines)


def _percentile_line(name: str, values: dict[str, float] | None) -> str:
    shown = "  ".join(f"{key} {value:.0f} ms" for key, value in values.items()) if values else "never measured"
    return f"{name:<34} {shown}"
