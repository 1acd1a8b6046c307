"""What whoever operates a robot hears of it: the executor's state, who presses the e-stop, what the nodes say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_msgs.msg import Bool, String

from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import LATCHED, RELIABLE
from molmoact2_ros.nodes.ros.subscriptions import Heard

SILENT_S = 1.5
"""After so long without a word of the executor its last state no longer counts."""
SAID_S = 3.5
"""What a node said on `/diagnostics` (once a second) counts for so long."""
CHUNKS_S = 2.0
"""After so long without a usable chunk none come any more."""
E_STOPPED = "ESTOPPED"
UNKNOWN = "_UNKNOWN_"
"""Part of the name that rmw gives a node that it has not discovered yet."""


class RobotWatch:
    """Hears one robot until the node's teardown. For its `setup`; everything is called from the spinning thread.

    Args:
        namespace: of the robot; the node's own where it is empty.
        me: what a press of the node's own button is called.
        changed: called when the executor's state has changed.
    """

    def __init__(self, node: MolmoNode, namespace: str, me: str, changed: Callable[[], None]) -> None:
        self._node, self._me, self._changed = node, me, changed
        self.namespace = namespace or node.get_namespace()
        self._executor: tuple[float, str, dict[str, str]] = (-1e9, "", {})
        self._driver: tuple[int, str] | None = None
        self._task, self._task_at = "", -1e9
        self._chunks, self._chunk_at = 0, -1e9
        self._pressing: dict[str, str] = {}
        self._said: dict[str, tuple[float, int, str, dict[str, str]]] = {}
        node.listen(DiagnosticStatus, self.name("executor/state"), self._on_executor, LATCHED)
        node.hear(DiagnosticStatus, self.name("driver/state"), self._on_driver)
        node.hear(String, self.name("task"), self._on_task)
        node.hear(Bool, self.name("e_stop"), self._on_e_stop)
        node.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)

    def name(self, relative: str) -> str:
        """The full name of a topic or service of this robot."""
        return f"{self.namespace.rstrip('/')}/{relative}"

    @property
    def stopped(self) -> bool:
        """Whether the executor is known to be stopped by an e-stop."""
        return self._state_of()[0] == E_STOPPED

    def values(self, node: str) -> dict[str, str]:
        """What the node called `node` said last with its diagnostics; empty while it is silent."""
        at, _, _, values = self._said.get(node, (-1e9, 0, "", {}))
        return values if time.monotonic() - at < SAID_S else {}

    def speaks(self, node: str) -> bool:
        """Whether the node called `node` has spoken lately."""
        return node in self._said and time.monotonic() - self._said[node][0] < SAID_S

    def state(self, ready: list[str]) -> dict[str, Any]:
        """executor: its state, empty while it is silent, with its reason. drives, handover: who moves the arm, and who
        has it. chunk_age_ms, latency_ms: as text, or empty.
        chunks: whether usable ones come. stops: who presses the e-stop. driver: [level, words], or null. said: [level,
        words] by node. ready: requests that can be made. limited_ticks: since the executor began, as text."""
        state, values = self._state_of()
        now = time.monotonic()
        said = {name: (level, words) for name, (at, level, words, _) in self._said.items() if now - at < SAID_S}
        policy = self._said.get("policy") or self._said.get("expert")
        latency = policy[3].get("input_age_ms") or policy[3].get("latency_ms", "") if policy else ""
        return {
            "executor": state,
            "reason": values.get("reason", ""),
            "drives": values.get("drives", ""),
            "handover": values.get("handover", ""),
            "chunk_age_ms": values.get("chunk_age_ms", ""),
            "latency_ms": latency,
            "limited_ticks": values.get("limited_ticks", ""),
            "chunks": now - self._chunk_at < CHUNKS_S,
            "task": self._task,
            "stops": self._stops(),
            "driver": self._driver,
            "said": said,
            "ready": ready,
        }

    def _state_of(self) -> tuple[str, dict[str, str]]:
        heard, state, values = self._executor
        return (state, values) if time.monotonic() - heard < SILENT_S else ("", {})

    # -- what is heard ----------------------------------------------------------------------------------------------

    def _on_executor(self, message: DiagnosticStatus) -> None:
        before = self._executor[1]
        values = {pair.key: pair.value for pair in message.values}
        self._executor = time.monotonic(), message.message, values
        counts = [values.get(f"chunks_{what}", "0") for what in ("accepted", "previewed")]
        chunks = sum(int(count) for count in counts if count.isdecimal())
        if chunks > self._chunks:
            self._chunk_at = time.monotonic()
        self._chunks = chunks
        if before == E_STOPPED != message.message:
            self._pressing.clear()  # a reset forgets buttons whose publishers have gone, and no other could be pressed
        if message.message != before:
            self._changed()

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
        node = self._node
        for info in node.get_publishers_info_by_topic(self.name("e_stop")):
            if bytes(info.endpoint_gid).hex() == publisher and UNKNOWN not in info.node_name:
                own = info.node_name == node.get_name() and info.node_namespace == node.get_namespace()
                return self._me if own else f"{info.node_namespace.rstrip('/')}/{info.node_name}"
        return ""

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        own = self.namespace.rstrip("/") + "/"
        for status in message.status:
            if status.name.startswith(own):
                name, values = status.name.removeprefix(own), {pair.key: pair.value for pair in status.values}
                self._said[name] = time.monotonic(), int.from_bytes(status.level), status.message, values
                if name == "policy" and time.monotonic() - self._task_at > 2.0:  # it may have been started anew
                    self._task = values.get("task", "")
