"""`molmoact2 episodes`: the recorded episodes of a folder, what is wrong with them, and what a person says of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from molmoact2_ros.cli.arguments import OK, Commands, UsageError, shown

if TYPE_CHECKING:
    from molmoact2_ros.recording.episodes import Episode


def add(commands: Commands) -> None:
    """Add the command's parser."""
    command = commands.add_parser("episodes", help="list recorded episodes; relabel, mark and delete them")
    command.add_argument("directory", type=Path, metavar="DIR", help="where the bags are")
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with a strip of images an episode")
    command.add_argument("--relabel", nargs=2, metavar=("N", "TEXT"), help="set the task of episode N")
    command.add_argument("--outcome", nargs=2, metavar=("N", "TEXT"), help="set the outcome of episode N")
    command.add_argument("--mark", nargs=2, metavar=("N", "good|bad"), help="say whether episode N is to be used")
    command.add_argument("--delete", type=int, nargs="+", metavar="N", help="move episodes to the folder's .trash")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    command.set_defaults(run=_run)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{text!r} is no number of an episode; the table without options lists them")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.recording.episodes import delete, episode_of, episodes, label

    directory = arguments.directory.expanduser()
    if arguments.mark and arguments.mark[1] not in ("good", "bad"):
        raise UsageError(f"--mark N good or --mark N bad, got {arguments.mark[1]!r}")
    for option, key in (("relabel", "task"), ("outcome", "outcome"), ("mark", "mark")):
        given = getattr(arguments, option)
        if given:
            label(episode_of(directory, _number(given[0])), **{key: given[1]})
    for number in arguments.delete or ():
        for path in delete(directory, number):
            print(f"moved to {shown(str(path))}")
    found = episodes(directory)
    if arguments.html:
        from molmoact2_ros.recording.page import page

        arguments.html.write_text(page(found, f"Episodes in {directory}"))
    if arguments.json:
        print(json.dumps({"directory": str(directory), "episodes": [episode.summary() for episode in found]}))
    else:
        _table(found)
    return OK


def _table(found: list[Episode]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("episode", "length", "outcome", "mark", "task", "verdict"):
        table.add_column(name, justify="right" if name == "length" else "left")
    for episode in found:
        verdict = "\n".join(episode.verdict) or "good"
        length = f"{episode.length_s:.1f} s" if episode.whole else ""
        name = episode.path.name.removeprefix("episode_")
        table.add_row(name, length, episode.outcome, episode.mark, episode.task, verdict)
    console = Console(highlight=False, markup=False)
    console.print(table, width=None if console.is_terminal else 200)
    bad = sum(1 for episode in found if episode.verdict or episode.mark == "bad")
    print(f"{len(found)} episodes, {sum(episode.length_s for episode in found):.0f} s; {bad} not to be trusted")
