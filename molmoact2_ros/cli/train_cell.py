"""`molmoact2 train-cell`: the small checkpoint of a simulated cell; its options are those of `training.train`."""

from __future__ import annotations

import argparse

from molmoact2_ros.cli.arguments import OK, Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    train = commands.add_parser(
        "train-cell", help="train the small checkpoint of a simulated cell", add_help=False, prefix_chars="\0"
    )
    train.add_argument("rest", nargs=argparse.REMAINDER)
    train.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.training.train import main as train

    return int(train(arguments.rest) or OK)
