"""`molmoact2 doctor`: what is wrong with this machine as a workcell."""

from __future__ import annotations

import argparse

from molmoact2_ros.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    doctor = commands.add_parser("doctor", help="look at this machine: what is wrong, and the command that mends it")
    doctor.add_argument("--robot", default="", metavar="NAME", help="also look for what this robot needs")
    doctor.add_argument("--config", default="", metavar="FILE", help="its parameter file (the one that ships here)")
    doctor.add_argument("--record", default="bags", metavar="DIR", help="where bags will go (%(default)s)")
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    doctor.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.doctor.report import main as doctor

    return doctor(arguments.robot, arguments.config, arguments.record, arguments.json)
