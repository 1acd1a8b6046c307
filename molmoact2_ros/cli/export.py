"""`molmoact2 export`: bags into a LeRobotDataset v3, with what the policy would have seen and what the arm was told."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from molmoact2_ros.cli.arguments import FAILED, OK, Commands, UsageError, checkpoint_from, listed, shown

if TYPE_CHECKING:
    from rich.console import Console

    from molmoact2_ros.recording.export.exporting import Report
    from molmoact2_ros.recording.export.settings import ExportOptions


def add(commands: Commands) -> None:
    """Add the command's parser."""
    export = commands.add_parser("export", help="make a LeRobotDataset v3 of recorded bags")
    option = export.add_argument
    option("bags", type=Path, nargs="+", metavar="BAG", help="bags, or folders of bags")
    option("--out", type=Path, required=True, metavar="DATASET", help="folder of the dataset; it must not be there")
    option("--robot", default="", help="which robot (as recorded, else so101)")
    option("--action", choices=("commanded", "measured"), default="commanded", help="what an action is (%(default)s)")
    option("--checkpoint", default="", metavar="DIR|ID", help="take names and order of the cameras and the frame of it")
    option("--cameras", default="", metavar="V=C,...", help="views of the dataset in order, each view=camera or camera")
    option("--frame", choices=("arm", "released"), default=None, help="joint frame of an SO arm (arm: lerobot's own)")
    option("--rate", type=float, default=0.0, metavar="HZ", help="frames a second (the robot's)")
    option("--max-gap", type=float, default=0.25, metavar="S", help="longest silence of an input (%(default)s)")
    option("--split", action="store_true", help="make several episodes of one with longer gaps (else it is refused)")
    option("--include-bad", action="store_true", help="take episodes with a verdict or a bad mark, too")
    option("--outcome", default="", metavar="TEXT", help="take only episodes with this outcome, such as success")
    option("--task", default="", metavar="TEXT", help="task of all episodes, instead of what was recorded")
    option("--namespace", default="", metavar="N", help="of the robot, in bags with several")
    option("--map", action="append", default=[], metavar="KEY=TOPIC", help="of another's bag: joints, action, camera.N")
    option("--joint-map", default="", metavar="T=O,...", help="joint names of another's bag, theirs=ours")
    option("--stamps", choices=("header", "receive"), default="header", help="what tells the time (%(default)s)")
    option("--images", action="store_true", help="images as PNG, lossless, instead of videos")
    option("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    option("--json", action="store_true", help="print one JSON object instead of words")
    export.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from molmoact2_ros.recording.export.exporting import bags_in

    if arguments.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {arguments.jobs}")
    bags = bags_in(arguments.bags)
    options = options_from(arguments, bags[0])
    target = arguments.out.expanduser().resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with chatter_in(target.with_name(f".{target.name}.log")) as terminal:
        report = _exported(arguments, bags, target, options, Console(file=terminal))
    if arguments.json:
        print(json.dumps({**asdict(report), "dataset": str(report.dataset) if report.dataset else None}))
    else:
        print(told(report))
    return OK if report.dataset else FAILED


def _exported(
    arguments: argparse.Namespace, bags: list[Path], target: Path, options: ExportOptions, console: Console
) -> Report:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from molmoact2_ros.recording.export.exporting import export

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("bags", total=len(bags))
        frames = progress.add_task("frames", total=None, visible=False)

        def step(path: Path, done: int, of: int) -> None:
            progress.update(frames, description=path.name, completed=done, total=of, visible=of > 1)
            if done == of:
                progress.advance(whole)

        chosen = {"include_bad": arguments.include_bad, "outcome": arguments.outcome, "jobs": arguments.jobs}
        return export(bags, target, options, told=step, **chosen)


def options_from(arguments: argparse.Namespace, first: Path) -> ExportOptions:
    """Return the options of an export.

    Args:
        first: the bag that says which robot it is, where the user does not.

    Raises:
        UsageError: an option has a form that cannot be read, or says something else than another one.
        ValueError: an option or the checkpoint cannot work.
    """
    from molmoact2_ros.embodiments import ModelFrame, embodiment
    from molmoact2_ros.recording.export.settings import ExportOptions
    from molmoact2_ros.recording.export.source import Source

    topics = dict(_pair(entry, "--map", "KEY=TOPIC") for entry in arguments.map)
    about: dict[str, str] = {}
    if not topics:
        with Source(first) as source:
            about = source.about
    robot = arguments.robot or about.get("robot", "") or "so101"
    views = {name.strip(): (camera or name).strip() for name, _, camera in map(_parts, listed(arguments.cameras))}
    frame = arguments.frame or "arm"
    if arguments.checkpoint:
        from molmoact2_ros.policy.checkpoint import Choices, open_checkpoint

        cell = tuple(json.loads(about.get("cameras", "[]")))
        choices = Choices(listed(arguments.cameras), cell, joint_frame=arguments.frame or "auto")
        tag = embodiment(robot).norm_tag
        found = open_checkpoint(checkpoint_from(arguments.checkpoint), embodiment(robot), tag, choices=choices)
        names = [view.name for view in found.views] or list(found.cameras)
        views = dict(zip(names, found.cameras, strict=False))
        frame = "arm" if found.frame is ModelFrame.ARM else "released"
    return ExportOptions(
        robot=robot,
        rate_hz=arguments.rate,
        action=arguments.action,
        frame=frame,
        views=views,
        max_gap_s=arguments.max_gap,
        split=arguments.split,
        task=arguments.task,
        namespace=arguments.namespace,
        topics=topics,
        joint_map=listed(arguments.joint_map),
        stamps=arguments.stamps,
        videos=not arguments.images,
    )


def _parts(entry: str) -> tuple[str, str, str]:
    return entry.partition("=")


def _pair(entry: str, option: str, form: str) -> tuple[str, str]:
    key, mark, value = entry.partition("=")
    if not (key and mark and value):
        raise UsageError(f"{option} {form}, got {entry!r}")
    return key, value


def told(report: Report) -> str:
    """Return what came of an export, in words."""
    lines = []
    if report.dataset is not None:
        lines.append(
            f"{report.frames} frames in {report.episodes} episodes, from {len(report.exported)} bags"
            + (f" ({report.resumed} were done before)" if report.resumed else "")
        )
        lines.append(f"dataset  {shown(str(report.dataset))}")
    else:
        lines.append("nothing was exported")
    lines += [f"split    {bag}: {len(gaps)} gaps, the first {gaps[0]}" for bag, gaps in report.gaps.items()]
    lines += [f"left out {bag}: {why}" for bag, why in report.refused.items()]
    return "\n".join(lines)


@contextmanager
def chatter_in(log: Path) -> Iterator[IO[str]]:
    """Send what lerobot and its encoders write to standard error into `log`; yields the terminal that it was.

    The file goes at the end, unless something was raised.
    """
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.dup2(file, 2)
        yield terminal
        log.unlink(missing_ok=True)
    finally:
        os.close(file)
        sys.stderr.flush()
        os.dup2(terminal.fileno(), 2)
        terminal.close()
