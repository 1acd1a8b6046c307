"""`molmoact2 replay`: an episode of a dataset or a bag, through the executor and its limits, on a cell or a robot."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molmoact2_ros.cli.arguments import OK, Commands, UsageError, check_renderer

if TYPE_CHECKING:
    from molmoact2_ros.bringup.specs import NodeSpec
    from molmoact2_ros.embodiments import Embodiment
    from molmoact2_ros.recording.replay.trajectory import Trajectory


def add(commands: Commands) -> None:
    """Add the command's parser."""
    replay = commands.add_parser(
        "replay", help="play an episode of a dataset or a bag on the simulated cell or a robot"
    )
    option = replay.add_argument
    option("source", metavar="DATASET|BAG", help="folder of a LeRobotDataset v3, its id on the hub, a bag, or bags")
    option("--episode", type=int, default=None, metavar="N", help="which one; bags are counted as they are named")
    option("--robot", default="", help="which robot (as recorded, else so101)")
    option("--action", choices=("commanded", "measured"), default="commanded", help="what is played (%(default)s)")
    option("--frame", choices=("arm", "released"), default="", help="joint frame of an SO arm's dataset (derived)")
    option("--speed", type=float, default=1.0, metavar="X", help="times the recorded speed (%(default)s)")
    option(
        "--attach", action="store_true", help="on the robot of a running `molmoact2 run --policy none`; arm it there"
    )
    option("--namespace", default="", metavar="N", help="of that robot (its name)")
    option("--out", type=Path, default=Path("out"), metavar="DIR", help="logs (%(default)s)")
    option("--json", action="store_true", help="print one JSON object as the last line of standard output")
    replay.set_defaults(run=_run, orderly=True)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from molmoact2_ros.bringup.processes import node_environment
    from molmoact2_ros.bringup.session import orderly_signals, run_session

    if not 0.05 <= arguments.speed <= 2.0:
        raise UsageError(f"--speed must be between 0.05 and 2, got {arguments.speed:g}")
    trajectory, robot = trajectory_of(arguments)
    trajectory.checked(robot, arguments.speed)
    console = Console(stderr=True)
    for line in (f"{trajectory.source}: {trajectory.length_s:.1f} s at {trajectory.rate_hz:g} Hz", *trajectory.notes):
        console.print(line, highlight=False, markup=False)
    out = arguments.out.resolve()
    specs = nodes_of(arguments, robot, trajectory, out)
    told = ""

    def hear(line: dict[str, Any]) -> None:
        nonlocal told
        text = line.get("message") or f"{line['executor'] or 'starting the nodes'}: {line['reason']}"
        if text != told:  # on the edge only
            told = text
            console.print(text, highlight=False, markup=False)

    environment = node_environment()
    if arguments.attach:
        environment["ROS_DOMAIN_ID"] = os.environ.get("ROS_DOMAIN_ID", "0")
    with orderly_signals():
        summary = run_session(specs, out / "log", environment, hear, speaker="playback")
    summary |= {"source": trajectory.source, "robot": robot.name, "speed": arguments.speed}
    del summary["type"]
    print(json.dumps(summary) if arguments.json else report(summary))
    return OK


def nodes_of(
    arguments: argparse.Namespace, robot: Embodiment, trajectory: Trajectory, out: Path
) -> tuple[NodeSpec, ...]:
    """Return the nodes of a replay: that of the trajectory, and the simulated cell's unless it joins a robot's."""
    import numpy as np

    from molmoact2_ros.bringup.options import Options
    from molmoact2_ros.bringup.specs import Cell, nodes

    (out / "log").mkdir(parents=True, exist_ok=True)
    file = out / "log" / "trajectory.npz"
    np.savez(file, rows=trajectory.rows, rate_hz=trajectory.rate_hz)
    options = Options(
        robot=robot.name,
        policy="none",
        episodes=0,
        visualize=False,
        namespace=arguments.namespace,
        link_prefix=f"molmoact2_{os.getpid()}",
    )
    given = {"trajectory": str(file), "speed": arguments.speed, "arm": not arguments.attach}
    cell = Cell(replace(options, sim=not arguments.attach))
    playback = cell.node("playback_node", given)
    if arguments.attach:
        return (playback,)
    check_renderer()
    return (*nodes(options), playback)


def trajectory_of(arguments: argparse.Namespace) -> tuple[Trajectory, Embodiment]:
    """Return what is to be played, and the robot that it is of.

    Raises:
        UsageError: the source or the episode is not named well.
        ValueError: it cannot be played; the message says why.
    """
    from molmoact2_ros.embodiments import embodiment
    from molmoact2_ros.policy.checkpoints.location import hub_name
    from molmoact2_ros.recording.episodes import episode_of
    from molmoact2_ros.recording.export.exporting import bags_in
    from molmoact2_ros.recording.export.settings import ExportOptions
    from molmoact2_ros.recording.export.source import Source
    from molmoact2_ros.recording.replay.lerobot_data import from_dataset, is_dataset, recorded_robot
    from molmoact2_ros.recording.replay.trajectory import from_bag

    path = Path(arguments.source).expanduser()
    hub = not path.exists() and hub_name(arguments.source) is not None
    if not (path.exists() or hub):
        raise UsageError(f"{arguments.source!r} is neither a folder nor the id of a dataset such as org/name")
    if hub or is_dataset(path):
        if arguments.episode is None:
            raise UsageError("say which episode of the dataset: --episode N, counted from 0")
        robot = embodiment(arguments.robot or ("" if hub else recorded_robot(path)) or "so101")
        source = arguments.source if hub else path
        return from_dataset(source, arguments.episode, robot, arguments.action, arguments.frame), robot
    bags = bags_in([path])
    if arguments.episode is not None and path.is_dir() and bags != [path.resolve()]:
        bags = [episode_of(path, arguments.episode)]
    if len(bags) != 1:
        raise UsageError(f"{arguments.source} has {len(bags)} bags; say which one: --episode N")
    with Source(bags[0]) as opened:
        name = arguments.robot or opened.about.get("robot", "") or "so101"
    options = ExportOptions(name, action=arguments.action, namespace=arguments.namespace)
    return from_bag(bags[0], options), embodiment(name)


def report(summary: dict[str, Any]) -> str:
    """Return how well an arm followed, in words."""
    lines = [f"{summary['source']}, played in {summary['played_s']:.1f} s; distance from the trajectory:"]
    lines.append(f"{'joint':<24} {'rms':>8} {'largest':>8} {'without lag':>12}")
    columns = ("joints", "rms", "largest", "rms_lagged", "units")
    for name, rms, largest, left, unit in zip(*(summary[key] for key in columns), strict=True):
        lines.append(f"{name:<24} {rms:8.4f} {largest:8.4f} {left:12.4f} {unit}")
    lines.append(f"the arm is {1e3 * summary['lag_s']:.0f} ms behind ({summary['readings']} readings)")
    return "\n".join(lines)
