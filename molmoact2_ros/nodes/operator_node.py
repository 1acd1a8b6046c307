"""Operator node: what a person at a console sees and asks for, one JSON object a line.

Standard output has lines of two types: `state` (`status_hz`; see `_state`), and one `answer` (`ask`, `ok`, `message`)
to every request but `alive` and `stop`. A request on standard input has a key `ask`: `alive` (the console is there),
`stop`, `arm`, `disarm`, `start`, `reset`, `take` (the arm over from the policy), `give` (it back), `task` (with
`text`), `record`, `end` (of the recording), `label` (with `success`).

`stop` is acted upon in the thread that reads, whatever the node does meanwhile. With `button` this node presses the
emergency stop for the console, and says five times a second whether it is pressed, as long as the console is heard.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import Bool, String

from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.operator_requests import AGAIN, CALLS, OperatorRequests
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, RELIABLE
from molmoact2_ros.nodes.ros.subscriptions import Heard

HEARTBEAT_S = 0.2
SILENT_S = 1.5
"""After so long without a word of the executor its last state no longer counts."""
SAID_S = 3.5
"""What a node said on `/diagnostics` (once a second) counts for so long."""
CHUNKS_S = 2.0
"""After so long without a usable chunk none come any more."""

MOVING = ("arm", "start", "take", "give")
E_STOPPED = "ESTOPPED"
UNKNOWN = "_UNKNOWN_"
"""Part of the name that rmw gives a node that it has not discovered yet."""


class OperatorNode(MolmoNode):
    """See the module. Invariant: whoever presses `stop` last wins; a reset that is under way is given up by it."""

    PARAMETERS = (
        Parameter("button", False, "Press e_stop for the console, and say that it is there while the console speaks."),
        Parameter("asks_policy", True, "A task is set at the policy node, which answers; false: it is published."),
        Parameter("silence_s", 1.0, "A console that is silent for longer is gone, s.", 0.2, 10.0),
        Parameter("status_hz", 5.0, "Rate of the state lines.", 0.1, 50.0),
    )

    def __init__(self) -> None:
        super().__init__("operator")
        self._lock = threading.Lock()
        self._pressed, self._presses = False, 0
        self._button: Any = None
        self._alive = -1e9
        self._reader: threading.Thread | None = None
        self._ended = threading.Event()
        self._queue: deque[Mapping[str, Any]] = deque()
        self._executor: tuple[float, str, dict[str, str]] = (-1e9, "", {})
        self._driver: tuple[int, str] | None = None
        self._task, self._task_at = "", -1e9
        self._chunks, self._chunk_at = 0, -1e9
        self._pressing: dict[str, str] = {}
        self._said: dict[str, tuple[float, int, str, dict[str, str]]] = {}

    def setup(self) -> None:
        self._requests = OperatorRequests(
            self, self._answer, lambda: self._pressed, lambda: self._state_of()[0] == E_STOPPED
        )
        self._tell = None if self.param("asks_policy") else self.output(String, "task", LATCHED)
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)
        self.hear(DiagnosticStatus, "driver/state", self._on_driver)
        self.hear(String, "task", self._on_task)
        self.hear(Bool, "e_stop", self._on_e_stop)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        if self.param("button"):
            with self._lock:
                self._button = self.output(Bool, "e_stop", LATCHED)
            self.every(HEARTBEAT_S, self._beat, inactive=True, steady=True)
        self._wake = self.create_guard_condition(self._take_requests)
        self.every(0.05, self._requests.look_after, inactive=True, steady=True)
        self.every(1.0 / self.param("status_hz"), self._print_state, inactive=True, steady=True)
        self._ended.clear()
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()

    def teardown(self) -> None:
        self._ended.set()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.join(2.0)
            self.destroy_guard_condition(self._wake)
        with self._lock:
            self._button = None

    # -- the console (its own thread) -------------------------------------------------------------------------------

    def _read(self) -> None:
        rest = b""
        while not self._ended.is_set():
            if not select.select([0], [], [], 0.2)[0]:
                continue
            data = os.read(0, 65536)
            if not data:  # the console has gone: this node ends with it, and the button falls silent
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._heard(line)

    def _heard(self, line: bytes) -> None:
        try:
            asked = json.loads(line)
        except ValueError:
            asked = None
        ask = asked.get("ask") if isinstance(asked, dict) else None
        if not isinstance(ask, str):
            self.get_logger().error(f"a request must be a JSON object with the key 'ask', got {line!r}")
            return
        self._alive = time.monotonic()
        if ask == "stop":
            self._press()
        elif ask in CALLS:
            self._queue.append({**asked, "presses": self._presses})
            self._wake.trigger()
        elif ask != "alive":
            self.get_logger().error(f"there is no request {ask!r}; there are: {', '.join(CALLS)}, stop, alive")

    def _press(self) -> None:
        with self._lock:
            self._pressed = True
            self._presses += 1
            self._publish_button()

    def _let_go(self, presses: int) -> bool:
        """Release the button, but for a press after the first `presses`."""
        with self._lock:
            if self._presses == presses:
                self._pressed = False
                self._publish_button()
            return not self._pressed

    def _publish_button(self) -> None:
        if self._button is not None:
            self._button.publish(Bool(data=self._pressed))

    def _beat(self) -> None:
        if time.monotonic() - self._alive < self.param("silence_s"):
            with self._lock:
                self._publish_button()

    # -- requests ---------------------------------------------------------------------------------------------------

    def _take_requests(self) -> None:
        while self._queue:
            asked = self._queue.popleft()
            try:
                self._begin(asked)
            except (KeyError, TypeError, ValueError) as error:
                self._answer(asked, False, f"not understood: {error!r}")

    def _begin(self, asked: Mapping[str, Any]) -> None:
        ask = asked["ask"]
        if ask == "task" and self._tell is not None:
            self._tell.publish(String(data=str(asked["text"])))
            self._answer(asked, True, f"told: {asked['text']}")
            return
        others = self.count_publishers("executor/state") - 1
        if ask in MOVING and others > 0:
            where = f"in {self.get_namespace()} of ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}"
            self._answer(asked, False, f"there is another executor {where}: end it, two must not command one arm")
            return
        if ask == "reset" and not self._let_go(asked["presses"]):
            self._answer(asked, False, AGAIN)
            return
        self._requests.begin(asked)

    def _answer(self, asked: Mapping[str, Any], ok: bool, message: str) -> None:
        self._print({"type": "answer", "ask": asked["ask"], "ok": ok, "message": message})

    # -- what is heard ----------------------------------------------------------------------------------------------

    def _on_executor(self, message: DiagnosticStatus) -> None:
        before = self._executor[1]
        values = {pair.key: pair.value for pair in message.values}
        self._executor = time.monotonic(), message.message, values
        chunks = sum(int(values.get(f"chunks_{what}", 0)) for what in ("accepted", "previewed"))
        if chunks > self._chunks:
            self._chunk_at = time.monotonic()
        self._chunks = chunks
        if before == E_STOPPED != message.message:
            self._pressing.clear()  # a reset forgets buttons whose publishers have gone, and no other could be pressed
        if message.message != before:
            self._print_state()

    def _on_driver(self, heard: Heard) -> None:
        self._driver = int.from_bytes(heard.message.level), heard.message.message

    def _on_task(self, heard: Heard) -> None:
        self._task, self._task_at = heard.message.data, time.monotonic()

    def _on_e_stop(self, heard: Heard) -> None:
        if not heard.message.data:
            self._pressing.pop(heard.publisher, None)
        else:
            self._pressing.setdefault(heard.publisher, "")

    def _stops(self) -> list[str]:
        """Who presses. The name of a node may be discovered later than what it says."""
        for publisher, name in self._pressing.items():
            self._pressing[publisher] = name or self._name_of(publisher)
        return sorted({name or "a node without a name" for name in self._pressing.values()})

    def _name_of(self, publisher: str) -> str:
        for info in self.get_publishers_info_by_topic(self.resolve_topic_name("e_stop")):
            if bytes(info.endpoint_gid).hex() == publisher and UNKNOWN not in info.node_name:
                own = info.node_name == self.get_name() and info.node_namespace == self.get_namespace()
                return "this console" if own else f"{info.node_namespace.rstrip('/')}/{info.node_name}"
        return ""

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        own = self.get_namespace().rstrip("/") + "/"
        for status in message.status:
            if status.name.startswith(own):
                name, values = status.name.removeprefix(own), {pair.key: pair.value for pair in status.values}
                self._said[name] = time.monotonic(), int.from_bytes(status.level), status.message, values
                if name == "policy" and time.monotonic() - self._task_at > 2.0:  # it may have been started anew
                    self._task = values.get("task", "")

    # -- lines out --------------------------------------------------------------------------------------------------

    def _state_of(self) -> tuple[str, dict[str, str]]:
        heard, state, values = self._executor
        return (state, values) if time.monotonic() - heard < SILENT_S else ("", {})

    def _state(self) -> dict[str, object]:
        """executor: its state, empty while it is silent, with its reason. drives, handover: who moves the arm, and who
        has it. chunk_age_ms, latency_ms: as text, or empty. chunks: whether usable ones come. stops: who presses the
        e-stop. driver: [level, words], or null. said: [level, words] by node. ready: requests that can be made."""
        state, values = self._state_of()
        now = time.monotonic()
        said = {name: (level, words) for name, (at, level, words, _) in self._said.items() if now - at < SAID_S}
        policy = self._said.get("policy") or self._said.get("expert")
        latency = policy[3].get("input_age_ms") or policy[3].get("latency_ms", "") if policy else ""
        ready = self._requests.ready()
        return {
            "executor": state,
            "reason": values.get("reason", ""),
            "drives": values.get("drives", ""),
            "handover": values.get("handover", ""),
            "chunk_age_ms": values.get("chunk_age_ms", ""),
            "latency_ms": latency,
            "chunks": now - self._chunk_at < CHUNKS_S,
            "task": self._task,
            "stops": self._stops(),
            "driver": self._driver,
            "said": said,
            "ready": ready if self.param("asks_policy") else [*ready, "task"],
        }

    def _print_state(self) -> None:
        self._print({"type": "state", **self._state()})

    def _print(self, line: Mapping[str, object]) -> None:
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:  # the reader has gone
            self.finished = 1


main = main_of(OperatorNode)

if __name__ == "__main__":
    main()
