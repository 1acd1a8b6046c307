"""Operator node: what a person at a console sees and asks for, one JSON object a line.

Standard output has lines of two types: `state` (`status_hz`; see `RobotWatch.state`), and one `answer` (`ask`, `ok`,
`message`) to every request but `alive` and `stop`. A request on standard input has a key `ask`: `alive` (the console is
there), `stop`, `arm`, `disarm`, `start`, `reset`, `take` (the arm over from the policy), `give` (it back), `task` (with
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
from collections.abc import Mapping
from typing import Any

from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.operator_desk import OperatorDesk
from molmoact2_ros.nodes.ros.operator_requests import CALLS
from molmoact2_ros.nodes.ros.parameters import Parameter

HEARTBEAT_S = 0.2


class OperatorNode(MolmoNode):
    """See the module."""

    PARAMETERS = (
        Parameter("button", False, "Press e_stop for the console, and say that it is there while the console speaks."),
        Parameter("asks_policy", True, "A task is set at the policy node, which answers; false: it is published."),
        Parameter("silence_s", 1.0, "A console that is silent for longer is gone, s.", 0.2, 10.0),
        Parameter("status_hz", 5.0, "Rate of the state lines.", 0.1, 50.0),
    )

    def __init__(self) -> None:
        super().__init__("operator")
        self._desk: OperatorDesk | None = None
        self._alive = -1e9
        self._reader: threading.Thread | None = None
        self._ended = threading.Event()

    def setup(self) -> None:
        button, asks_policy = self.param("button"), self.param("asks_policy")
        self._desk = OperatorDesk(self, self._answer, self._print_state, button=button, asks_policy=asks_policy)
        if button:
            self.every(HEARTBEAT_S, self._beat, inactive=True, steady=True)
        self.every(1.0 / self.param("status_hz"), self._print_state, inactive=True, steady=True)
        self._ended.clear()
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()

    def teardown(self) -> None:
        self._ended.set()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.join(2.0)
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

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
        desk = self._desk
        if desk is not None and ask == "stop":
            desk.stop()
        elif desk is not None and ask in CALLS:
            desk.ask(asked)
        elif ask != "alive":
            self.get_logger().error(f"there is no request {ask!r}; there are: {', '.join(CALLS)}, stop, alive")

    def _beat(self) -> None:
        if self._desk is not None and time.monotonic() - self._alive < self.param("silence_s"):
            self._desk.beat()

    # -- lines out --------------------------------------------------------------------------------------------------

    def _answer(self, asked: Mapping[str, Any], ok: bool, message: str) -> None:
        self._print({"type": "answer", "ask": asked["ask"], "ok": ok, "message": message})

    def _print_state(self) -> None:
        if self._desk is not None:
            self._print({"type": "state", **self._desk.state()})

    def _print(self, line: Mapping[str, object]) -> None:
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:  # the reader has gone
            self.finished = 1


main = main_of(OperatorNode)

if __name__ == "__main__":
    main()
