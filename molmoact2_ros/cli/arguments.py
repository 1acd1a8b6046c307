"""What the commands share: exit statuses, the options of a run, and what is checked before anything starts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from molmoact2_ros.bringup.options import Options
    from molmoact2_ros.bringup.specs import NodeSpec

OK, FAILED, USAGE = 0, 1, 2

Commands = argparse._SubParsersAction
"""Where a command adds its parser."""


class UsageError(Exception):
    """What was asked for cannot work on this machine; the message says what to do."""


def add_run_options(command: argparse.ArgumentParser, episodes: int = 10) -> None:
    """The options of a run on a simulated cell."""
    add = command.add_argument
    add("--robot", default="so101", help="which cell: so101, franka or yam (%(default)s)")
    add("--task", default="pick up the red cube", help="what the robot is told (%(default)s)")
    add("--episodes", type=int, default=episodes, metavar="N", help="how many (%(default)s)")
    add("--seed", type=int, default=1000, help="where the placements come from (%(default)s)")
    add("--policy", choices=("molmoact2", "expert"), default="molmoact2", help="who decides (%(default)s)")
    add("--checkpoint", default="", metavar="DIR|ID", help="checkpoint directory or Hugging Face id (the cell's own)")
    add("--emulated", action="store_true", help="the real driver on the arm's emulated bus, the cell behind it")
    add("--episode-timeout", type=float, default=30.0, metavar="S", help="limit of one episode (%(default)s)")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="film, image and logs (%(default)s)")


def options_from(arguments: argparse.Namespace) -> Options:
    """Return the bringup options for the parsed `arguments` of a run.

    Raises:
        UsageError: the checkpoint is not there, or this machine cannot render.
        ValueError: an option has a value that cannot work.
    """
    from molmoact2_ros.bringup.options import Options, missing_checkpoint

    if arguments.episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {arguments.episodes}; molmoact2 run leaves the cell to you")
    options = Options(
        robot=arguments.robot,
        emulated=arguments.emulated,
        policy=arguments.policy,
        checkpoint=checkpoint_from(arguments.checkpoint),
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


def listed(text: str) -> tuple[str, ...]:
    """The entries of a list with commas; empty ones are none."""
    return tuple(filter(None, text.split(",")))


def checkpoint_from(said: str) -> str:
    """The checkpoint that the user names: a directory, made absolute, or a Hugging Face id; empty where he names none.

    Raises:
        UsageError: it is neither.
    """
    from molmoact2_ros.policy.checkpoints.location import hub_name

    folder = Path(said).expanduser()
    if said and folder.is_dir():
        return str(folder.resolve())
    if said and hub_name(said) is None:
        raise UsageError(f"{said!r} is neither a directory nor a Hugging Face id such as org/name")
    return said


def check_renderer() -> None:
    """Raise UsageError where the simulated cameras cannot render."""
    from molmoact2_ros.bringup.processes import graphics_installed

    if not os.environ.get("MUJOCO_GL") and not graphics_installed():
        raise UsageError("the simulated cameras need OpenGL: sudo apt install libegl1 libgl1-mesa-dri libopengl0")


def check_panel(options: Options) -> None:
    """Raise UsageError where the panel is asked for and cannot be shown."""
    from importlib.util import find_spec

    if options.panel and find_spec("viser") is None:
        raise UsageError("the panel needs viser: pip install -r requirements/panel.txt")


def panel_address(specs: Iterable[NodeSpec]) -> str:
    """Where the panel of these nodes is, for people."""
    from molmoact2_ros.bringup.preflight import parameters_of
    from molmoact2_ros.panel import HOST, PORT

    given = next(parameters_of(spec) for spec in specs if spec.name == "panel")
    host, port = str(given.get("host", HOST)), given.get("port", PORT)
    return f"panel: http://{f'[{host}]' if ':' in host else host}:{port}/"


def shown(path: str) -> str:
    """`path` for people: relative where it is below this folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
