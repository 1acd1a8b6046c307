"""The console of a robot without its terminal: keys and the operator node's lines in, requests and rows of text out.

A space stops the arm, whatever else the console is waiting for. In a task that is being typed it is a blank as well,
and nothing but a blank where the arm is let go and cannot move. Everything else is asked for once and answered.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molmoact2_ros.bringup.advice import DECIDES, KEYS, LET_GO, next_step, troubles
from molmoact2_ros.bringup.keys import BACKSPACE, ENTER, ERASE_LINE, ESCAPE, PASTED, Key

Request = dict[str, Any]
"""What the operator node is asked, see there."""

ENDING = "ending: the arm comes to rest, is parked where park_pose says so, and its driver lets go last"
ASKED = {
    "arm": "arming",
    "disarm": "disarming",
    "start": "to the start pose",
    "reset": "resetting the e-stop",
    "take": "taking over",
    "give": "giving back",
    "task": "telling the task",
    "record": "starting a recording",
    "end": "ending the recording",
    "label": "labelling",
}
ASKING_KEYS = {"a": "arm", "d": "disarm", "s": "start", "r": "reset"}
HANDOVER = {"h": "take", "p": "give"}
LABELS = {"g": True, "b": False}


@dataclass(frozen=True)
class Row:
    """One row of the display."""

    name: str
    text: str
    style: str = ""


@dataclass
class Console:
    """See the module. Thread-safe: keys come from one thread, lines and looks from another.

    Args:
        title: what is driven, in a few words.
        nodes: names of the nodes that were started.
        task: told to the policy once it is there; empty: nothing is.
        records: a recorder is there.
    """

    title: str
    nodes: Sequence[str]
    task: str = ""
    records: bool = False
    quit: bool = False
    ending: bool = False
    """The nodes are being ended: nothing but a stop can be asked for."""
    state: dict[str, Any] = field(default_factory=dict)
    typed: str | None = None
    """The task that is being typed; None while none is."""
    labelling: bool = False
    recording: bool = False
    answer: tuple[bool, str] = (True, "")
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[str] = []
        self._last_task = self.task
        self._seen: set[str] = set()
        self._recorder = ""

    # -- keys -------------------------------------------------------------------------------------------------------

    @property
    def moves(self) -> bool:
        """Whether the arm may be moved now, for all that is known."""
        return self.state.get("executor", "") not in LET_GO

    @property
    def leads(self) -> bool:
        """Whether there is something to take over with."""
        return "teleop" in self.nodes

    def key(self, key: Key) -> list[Request]:
        """Take a key; returns what is to be asked for."""
        with self._lock:
            if key.name == " " and (self.typed is None or self.moves or self.ending):
                self.labelling = False
                if self.typed is not None:  # goes on: its letters must not become keys
                    self.typed += " "
                self.answer = (True, "STOP")
                return [{"ask": "stop"}]
            if self.ending:
                return []
            if self.typed is not None:
                return self._type(key)
            if self.labelling:
                self.labelling = False
                return self._ask("label", success=LABELS[key.name.lower()]) if key.name.lower() in LABELS else []
            return self._command(key.name.lower())

    def _command(self, name: str) -> list[Request]:
        if name in ASKING_KEYS:
            return self._ask(ASKING_KEYS[name])
        if name == "q":
            self.quit = True
        elif name == "t":
            self.typed = ""
        elif name in HANDOVER and not self.leads:
            self.answer = (False, "nobody can take over; start with --teleop, for instance so101_leader:PORT")
        elif name in HANDOVER:
            return self._ask(HANDOVER[name])
        elif name in ("e", "l") and not self.records:
            self.answer = (False, "nothing is recorded; start with --record DIR")
        elif name == "e":
            return self._ask("end" if self.recording else "record")
        elif name == "l":
            self.labelling = True
        elif name == PASTED:
            self.answer = (False, "a pasted text does nothing here; t takes one as the task")
        return []

    def _type(self, key: Key) -> list[Request]:
        assert self.typed is not None
        text = self.typed
        if key.name == ENTER:
            self.typed = None
            task = " ".join((text or self._last_task).split())
            if not task:
                self.answer = (False, "no task was typed")
                return []
            return self._ask("task", text=task)
        if key.name == ESCAPE:
            self.typed = None
        elif key.name == BACKSPACE:
            self.typed = text[:-1]
        elif key.name == ERASE_LINE:
            self.typed = ""
        elif key.name == PASTED:
            self.typed = text + key.text
        elif key.name == "_":
            self.typed = text + " "
        elif len(key.name) == 1:
            self.typed = text + key.name
        return []

    def _ask(self, ask: str, **fields: object) -> list[Request]:
        if ask in self._waiting:
            self.answer = (False, f"still {ASKED[ask]}; no answer yet")
            return []
        if ask == "task":
            self._last_task = str(fields["text"])
        self._waiting.append(ask)
        return [{"ask": ask, **fields}]

    # -- lines ------------------------------------------------------------------------------------------------------

    def hear(self, line: Mapping[str, Any]) -> list[Request]:
        """Take a line of the operator node, or a `warning` of whoever started the nodes; returns what is to be asked
        for."""
        with self._lock:
            if line["type"] == "answer":
                self._answered(line["ask"], bool(line["ok"]), str(line["message"]))
            elif line["type"] == "warning":
                self.warnings = [*self.warnings, str(line["message"])][-3:]
            elif line["type"] == "state":
                self.state = dict(line)
                self._seen |= set(line["said"])
                recorder = line["said"].get("recorder")
                if recorder is not None and recorder[1] != self._recorder:  # once a second; an answer is newer
                    self._recorder = recorder[1]
                    self.recording = self._recorder.startswith("recording")
                if self.task and "task" in line["ready"] and set(DECIDES) & self._seen | set(self._no_policy):
                    task, self.task = self.task, ""
                    return self._ask("task", text=task)
            return []

    @property
    def _no_policy(self) -> list[str]:
        return [] if set(DECIDES) & set(self.nodes) else ["none"]

    def _answered(self, ask: str, ok: bool, message: str) -> None:
        if ask in self._waiting:
            self._waiting.remove(ask)
        if ask in ("record", "end") and ok:
            self.recording = ask == "record"
        self.answer = (ok, message if ok else f"{ASKED.get(ask, ask)}: {message}")

    # -- what is shown ----------------------------------------------------------------------------------------------

    def missing(self) -> list[str]:
        """Nodes that have not spoken yet."""
        return [name for name in self.nodes if name not in self._seen and name != "operator"]

    def advice(self) -> str:
        """What to do next."""
        if self.ending:
            return ENDING
        return next_step(self.state, self.missing(), not self._no_policy, KEYS, self.leads)

    def rows(self) -> list[Row]:
        """The display, from top to bottom."""
        with self._lock:
            state = self.state.get("executor", "")
            colours = {"TRACKING": "green", "FAULT": "bold red", "ESTOPPED": "bold red", "": "dim"}
            age, latency = _milliseconds(self.state.get("chunk_age_ms")), _milliseconds(self.state.get("latency_ms"))
            task = self.state.get("task") or "none"
            out = [
                Row(self.title, f"{state or '-'}  {self.state.get('reason', '')}", colours.get(state, "cyan")),
                Row("task", f"{task}   |   chunk age {age}   |   policy {latency}"),
                Row("e-stop", ", ".join(self.state.get("stops", [])) or "nobody presses"),
            ]
            if self.leads:
                drives, handover = self.state.get("drives", ""), self.state.get("handover", "")
                out.append(Row("drives", f"{drives or '-'}   |   the arm is with: {handover or '-'}"))
            if self.records:
                out.append(Row("bag", "recording" if self.recording else "idle", "red" if self.recording else ""))
            out += [
                Row("look", words, "red" if level > 1 else "yellow")
                for level, words in troubles(self.state, self.missing())[:3]
            ]
            out += [Row("look", words.splitlines()[0], "yellow") for words in self.warnings]
            out.append(Row("next", self.advice(), "bold"))
            out.append(self._last_row())
            out.append(Row("keys", self._keys(), "dim"))
            return out

    def _last_row(self) -> Row:
        if self.typed is not None:
            return Row("task?", f"{self.typed}\u2588", "bold")
        if self._waiting:
            return Row("asked", f"{', '.join(ASKED[ask] for ask in self._waiting)} ...")
        ok, words = self.answer
        return Row("said", words, "" if ok else "yellow")

    def _keys(self) -> str:
        if self.ending:
            return "SPACE STOP (also while the arm is parked)   Ctrl-C hurries what does not hold the arm"
        if self.typed is not None:
            blank = "SPACE STOPS the arm, _ is a blank without" if self.moves else "SPACE is a blank"
            last = f"; Enter alone: {self._last_task}" if self._last_task and not self.typed else ""
            return f"Enter tells it, Esc does not; {blank}{last}"
        if self.labelling:
            return "the last episode was: g good, b bad; SPACE STOPS"
        bag = f"   e {'end' if self.recording else 'begin'} recording   l label" if self.records else ""
        hand = "   h take over   p give back" if self.leads else ""
        return f"SPACE STOP   a arm   d disarm   s start pose   t task   r reset{hand}{bag}   q quit"

    def plain(self) -> list[str]:
        """The same for a file: one line a subject, without what changes all the time."""
        with self._lock:
            state = self.state.get("executor", "")
            lines = [f"executor {state}: {self.state.get('reason', '')}" if state else "executor is not heard"]
            lines.append(f"task: {self.state.get('task') or 'none'}")
            if self.state.get("stops"):
                lines.append(f"e-stop pressed by {', '.join(self.state['stops'])}")
            lines += [words for _, words in troubles(self.state, self.missing())]
            lines += self.warnings
            if self.answer[1]:
                lines.append(self.answer[1])
            return [ENDING] if self.ending else lines


def same(line: str) -> str:
    """What makes a plain line another one: its words, not its figures."""
    return re.sub(r"\d+(\.\d+)?", "#", line)


def _milliseconds(text: str | None) -> str:
    try:
        return f"{float(text or ''):.0f} ms"
    except ValueError:
        return "-"
