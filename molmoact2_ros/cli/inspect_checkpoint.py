"""`molmoact2 inspect-checkpoint`: what a checkpoint is, and whether it can drive a robot; no weights are read."""

from __future__ import annotations

import argparse
import json

from molmoact2_ros.cli.arguments import FAILED, OK, Commands, listed


def add(commands: Commands) -> None:
    """Add the command's parser."""
    look = commands.add_parser("inspect-checkpoint", help="what a checkpoint is, what fits a robot, and what does not")
    look.add_argument("checkpoint", metavar="PATH|ID", help="its directory, or a Hugging Face id[@revision]")
    look.add_argument("--robot", default="", metavar="NAME", help="the robot that it shall drive (all are tried)")
    look.add_argument("--norm-tag", default="", metavar="TAG", help="tag in norm_stats.json (the robot's)")
    look.add_argument("--cameras", default="", metavar="A,B", help="a camera a picture, or view=camera for each")
    look.add_argument(
        "--cell-cameras", default="", metavar="A,B", help="the cameras that there are (the robot's usual)"
    )
    look.add_argument("--base-checkpoint", default="", metavar="DIR|ID", help="what a fine-tune was made from")
    look.add_argument("--joint-frame", default="auto", metavar="F", help="SO arms: auto, arm or released (%(default)s)")
    look.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    look.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.embodiments import EMBODIMENTS, embodiment
    from molmoact2_ros.policy import Choices
    from molmoact2_ros.policy.inspection import inspect_checkpoint

    robots = [embodiment(arguments.robot)] if arguments.robot else list(EMBODIMENTS.values())
    choices = Choices(
        cameras=listed(arguments.cameras),
        cell_cameras=listed(arguments.cell_cameras),
        base=arguments.base_checkpoint,
        joint_frame=arguments.joint_frame,
    )
    found = inspect_checkpoint(arguments.checkpoint, robots, arguments.norm_tag, choices)
    if arguments.json:
        print(json.dumps({"what": dict(found.rows), "fits": found.fits, "notes": found.notes, "usable": found.usable}))
        return OK if found.usable else FAILED
    width = max(len(name) for name, _ in found.rows)
    for name, value in found.rows:
        print(f"{name.ljust(width)}  {value}")
    for note in found.notes:
        print(f"{'note'.ljust(width)}  {note}")
    if found.table:
        print(f"\n{found.table}")
    for robot, problems in found.fits.items():
        print(f"\n{robot}: {'can be driven' if not problems else 'cannot be driven'}")
        # Of robots that nobody named, one reason each is enough.
        for problem in problems if arguments.robot else problems[:1]:
            print(f"  {problem}")
    return OK if found.usable else FAILED
