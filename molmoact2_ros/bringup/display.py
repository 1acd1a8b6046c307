"""What the user sees while the simulated cell runs: one live line and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from molmoact2_ros.simulation.episode_driver import Phase

_OUTCOMES = {"success": "green", "failure": "red", "timeout": "yellow", "fault": "red"}


def milliseconds(value: float | None) -> str:
    """Return `value` for people: `123 ms`, or a dash when there is none."""
    return "-" if value is None else f"{value:.0f} ms"


class RunDisplay:
    """Shows the lines of a session. Use as a context manager.

    Args:
        console: where to; it decides whether the line can be live.
        episodes: how many there will be.
    """

    def __init__(self, console: Console, episodes: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("episodes"), BarColumn(bar_width=32), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._bar = self._progress.add_task("episodes", total=episodes)
        self._status = Text("starting the nodes")
        # Refreshed by hand: a refreshing thread and starting processes do not go together.
        self._live = Live(self._view(), console=console, auto_refresh=False, transient=True)
        self._phase = ""

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        else:
            self._console.print("starting the nodes")
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _view(self) -> Group:
        return Group(self._status, self._progress)

    def hear(self, line: dict[str, Any]) -> None:
        """Show one line of the session."""
        if line["type"] == "status":
            self._show_status(line)
        elif line["type"] == "result":
            self._show_result(line)
        elif line["type"] == "warning":
            self._console.print(f"[yellow]warning:[/] {escape(line['message'])}", soft_wrap=True)

    def _show_status(self, line: dict[str, Any]) -> None:
        what = line["phase"] + (f": no {line['missing']}" if line["missing"] else "")
        if self._console.is_terminal:
            words = f"episode {line['episode'] + 1}/{line['episodes']}  {what}"
            if line["elapsed_s"]:
                words += f" {line['elapsed_s']:.1f} s"
            words += f"  |  executor {line['executor'] or '-'}"
            if line["reason"]:
                words += f" ({line['reason']})"
            words += f"  |  chunk age {milliseconds(line['chunk_age_ms'])}"
            words += f"  |  policy {milliseconds(line['policy_latency_ms'])}  |  {line['successes']} won"
            self._status = Text(words, overflow="ellipsis", no_wrap=True)
            self._live.update(self._view(), refresh=True)
        elif line["phase"] != self._phase and (not line["episode"] or line["phase"] == Phase.STOPPED.value):
            self._console.print(what, soft_wrap=True, highlight=False)
        self._phase = line["phase"]

    def _show_result(self, line: dict[str, Any]) -> None:
        self._progress.update(self._bar, completed=line["episode"] + 1)
        colour = _OUTCOMES.get(line["outcome"], "red")
        nearest = line["min_gripper_distance_m"]
        reached = "reached" if line["reached"] else "not reached"
        if nearest is not None:
            reached += f", nearest {100.0 * nearest:.1f} cm"
        text = (
            f"episode {line['episode'] + 1:>3}/{line['episodes']}  [{colour}]{line['outcome']:<8}[/]"
            f" {line['elapsed_s']:5.1f} s  cube {reached}"
        )
        if line["reason"]:
            text += f"  ({escape(line['reason'])})"
        self._console.print(text, soft_wrap=True, highlight=False)
        if self._console.is_terminal:
            self._live.update(self._view(), refresh=True)
