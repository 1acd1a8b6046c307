"""`molmoact2`: the command line, a file a command. Loads nothing heavy before it knows what it was asked for."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from molmoact2_ros.early import INTERRUPTED, quiet_until_ready

quiet_until_ready("molmoact2", "molmoact2: interrupted; no node runs\n")

# ruff: noqa: E402 (a Ctrl-C may come from here on)
from molmoact2_ros import __version__
from molmoact2_ros.cli import (
    bench,
    calibrate,
    compile,
    doctor,
    episodes,
    export,
    inspect_checkpoint,
    models,
    replay,
    serve,
    sim,
    train_cell,
    view,
)
from molmoact2_ros.cli import run as run_command
from molmoact2_ros.cli.arguments import FAILED, USAGE, UsageError

COMMANDS = (
    *(run_command, sim, view, episodes, export, replay, models, inspect_checkpoint, train_cell, doctor),
    *(calibrate, compile, serve, bench),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(prog="molmoact2", description="MolmoAct2 in closed loop on a robot arm, over ROS 2.")
    root.add_argument("--version", action="version", version=f"molmoact2_ros {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return root


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. Errors are one line on standard error."""
    try:
        return _answered(argv)
    except KeyboardInterrupt:
        print("molmoact2: interrupted; every node has ended", file=sys.stderr)
        return INTERRUPTED


def _answered(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    from molmoact2_ros.bringup.preflight import RefusedError
    from molmoact2_ros.bringup.session import NodeEndedError, SessionError, TerminatedError

    if not getattr(arguments, "orderly", False):  # those start nodes, and see to it themselves
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(arguments.run(arguments))
    except TerminatedError as error:
        print(f"molmoact2: {error}; every node has ended", file=sys.stderr)
        return 128 + error.number
    except (UsageError, ValueError, FileNotFoundError) as error:
        print(f"molmoact2: {error}", file=sys.stderr)
        return USAGE
    except (RefusedError, SessionError, NodeEndedError, OSError) as error:
        print(f"molmoact2: {error}", file=sys.stderr)
        return FAILED


def main() -> None:
    """Console entry point."""
    sys.exit(run())
