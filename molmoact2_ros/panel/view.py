"""What the panel shows of a robot for what is heard of it. Pure: lines of the operator's desk in, one object out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molmoact2_ros.bringup.advice import BUTTONS, DECIDES, LET_GO, next_step, troubles

TONES: Mapping[str, str] = {
    "TRACKING": "go",
    "HOLDING": "hold",
    "DISARMED": "idle",
    "UNCONFIGURED": "idle",
    "STOPPING": "wait",
    "FAULT": "bad",
    "ESTOPPED": "bad",
}
"""The colour of a state; any other, and silence, is `unknown`."""
ACTIONS = ("arm", "disarm", "start", "reset", "take", "give", "task", "record", "end", "label")
"""Requests that have a control on the page; STOP is always there and asks nobody."""
SAID = {
    "arm": "Arm",
    "disarm": "Disarm",
    "start": "Start pose",
    "reset": "Reset",
    "take": "Take over",
    "give": "Give back",
    "task": "Task",
    "record": "Record",
    "end": "End recording",
    "label": "Label",
}
HISTORY = 20
LONGEST_TASK = 400
"""Letters of a task; policies read far fewer."""


@dataclass
class RobotView:
    """One robot on the page. For one thread.

    Args:
        namespace: with its leading slash. robot: the embodiment's name.

    Attributes:
        state: the last one that was heard, as `RobotWatch.state` has it.
        tasks: that were told, the newest first.
        episodes: as the recorder lists them.
        cameras: whose images come: name -> whether with overlays.
        problem: of the panel itself with this robot; empty while there is none.
    """

    namespace: str
    robot: str
    state: dict[str, Any] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    cameras: dict[str, bool] = field(default_factory=dict)
    problem: str = ""
    _seen: set[str] = field(default_factory=set)
    _last: str = ""
    _ticks: tuple[float, int] | None = None
    _limited: float | None = None
    _reuse: float | None = None

    def hear(self, state: Mapping[str, Any], now_s: float) -> None:
        """Take a state; `now_s` is of any steady clock."""
        self.state = dict(state)
        self._seen |= set(state.get("said", {}))
        self._last = state.get("executor", "") or self._last
        self.told(str(state.get("task", "")))
        ticks = str(state.get("limited_ticks", ""))
        if not ticks.isdecimal():
            self._ticks, self._limited = None, None
            return
        before, self._ticks = self._ticks, (now_s, int(ticks))
        if before is not None and now_s > before[0]:
            self._limited = max(0, int(ticks) - before[1]) / (now_s - before[0])

    def reused(self, share: float) -> None:
        """Take the share, 0 to 1, of the depth cells that the last prediction left as they were."""
        self._reuse = min(max(share, 0.0), 1.0)

    def told(self, task: str) -> None:
        """Put a task on top of the history."""
        text = " ".join(task.split())
        if text and text != next(iter(self.tasks), None):
            self.tasks = [text, *(old for old in self.tasks if old != text)][:HISTORY]

    def listed(self, answer: str) -> None:
        """Take the recorder's list of episodes; what is none changes nothing."""
        try:
            found = json.loads(answer)
        except ValueError:
            return
        if isinstance(found, list):
            self.episodes = [dict(episode) for episode in found if isinstance(episode, dict)]

    # -- what is shown ----------------------------------------------------------------------------------------------

    @property
    def moves(self) -> bool:
        """Whether the arm may be moved now, for all that is known: silence is no proof of rest."""
        return self._last not in (*LET_GO, "")

    @property
    def leads(self) -> bool:
        """Whether there is something that a person can take over with."""
        return "teleop" in self._seen

    @property
    def recording(self) -> str:
        """The episode that is being recorded, or nothing."""
        words = str(self.state.get("said", {}).get("recorder", (0, ""))[1])
        return words.removeprefix("recording ") if words.startswith("recording ") else ""

    def shown(self) -> dict[str, Any]:
        """The robot for the page, as JSON can carry it."""
        state, missing = self.state, self._missing()
        executor = str(state.get("executor", ""))
        found = troubles(state, missing)
        if self.problem:
            found.append((1, f"panel: {self.problem}"))
        return {
            "name": self.namespace,
            "robot": self.robot,
            "state": executor or "NOT HEARD",
            "heard": bool(executor),
            "stopped": executor == "ESTOPPED",
            "moves": self.moves,
            "tone": TONES.get(executor, "unknown"),
            "reason": state.get("reason", "") if executor else "the executor is silent: nobody knows what the arm does",
            "drives": state.get("drives", ""),
            "leads": self.leads,
            "next": next_step(state, missing, self._decided, BUTTONS, self.leads),
            "stops": state.get("stops", []),
            "task": state.get("task", ""),
            "tasks": self.tasks,
            "latency": milliseconds(state.get("latency_ms")),
            "age": milliseconds(state.get("chunk_age_ms")),
            "troubles": [{"level": level, "words": words} for level, words in found],
            "recording": self.recording,
            "records": "record" in state.get("ready", []),
            "buttons": {ask: self.refusal(ask) for ask in ACTIONS},
            "episodes": [episode_row(episode) for episode in self.episodes],
            "cameras": self.cameras,
            "sample": self.sample(),
        }

    def sample(self) -> list[float | None]:
        """One point of each plot: latency (ms), chunk age (ms), depth cells reused (%), ticks at a limit (1/s)."""
        reuse = None if self._reuse is None else 100.0 * self._reuse
        figures = (self.state.get("latency_ms"), self.state.get("chunk_age_ms"))
        return [*(number(text) for text in figures), reuse, self._limited]

    def refusal(self, ask: str) -> str:
        """Why a control is grey; empty where it may be used. The nodes have the last word."""
        if ask not in self.state.get("ready", []):
            return f"{SAID[ask]}: whoever answers this is not there (yet)"
        if ask == "record" and self.recording:
            return f"{self.recording} is being recorded"
        if ask == "end" and not self.recording:
            return "nothing is being recorded"
        return ""

    @property
    def _decided(self) -> bool:
        """Whether a policy belongs to the robot: it has spoken once, or can be asked."""
        return bool(set(DECIDES) & self._seen) or "task" in self.state.get("ready", [])

    def _missing(self) -> Sequence[str]:
        """Nodes that a robot cannot do without and that have not spoken yet."""
        return [name for name in ("executor",) if name not in self._seen]


def episode_row(episode: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the list: number, task, outcome as `label` wrote it, length, and what is wrong with it."""
    length = number(episode.get("length_s"))
    verdict = episode.get("verdict")
    return {
        "number": episode.get("episode", "?"),
        "task": str(episode.get("task", "")),
        "outcome": str(episode.get("outcome", "")),
        "length": "" if length is None else f"{length:.1f} s",
        "verdict": [str(line) for line in verdict] if isinstance(verdict, list) else [],
    }


def number(text: Any) -> float | None:
    """The finite number in `text`, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e12 else None


def milliseconds(text: Any) -> str:
    """A time for people."""
    value = number(text)
    return "" if value is None else f"{value:.0f} ms"


def checked(asked: Any, robots: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A page's request: the namespace it is for, and what the operator's desk is asked.

    Raises:
        ValueError: it is none of `ACTIONS`, or lacks what it needs.
    """
    if not isinstance(asked, Mapping) or asked.get("ask") not in ACTIONS:
        raise ValueError(f"a request must be an object with the key ask, one of {', '.join(ACTIONS)}")
    robot, ask = asked.get("robot"), asked["ask"]
    if robot not in robots:
        raise ValueError(f"robot must be one of {', '.join(robots)}, got {robot!r}")
    if ask == "task":
        text = asked.get("text")
        words = " ".join(text.split()) if isinstance(text, str) else ""
        if not words or len(words) > LONGEST_TASK:
            raise ValueError(f"a task needs 1 to {LONGEST_TASK} letters")
        return str(robot), {"ask": ask, "text": words}
    if ask == "label":
        if not isinstance(asked.get("success"), bool):
            raise ValueError("a label needs success, true or false")
        return str(robot), {"ask": ask, "success": asked["success"]}
    return str(robot), {"ask": ask}
