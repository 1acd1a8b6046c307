"""The panel's node beside a real executor, the arm and the policy in the hands of the test, and a page of the panel."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fault_cell import PATIENCE, FaultCell
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

START_S = 120.0
"""A node takes seconds to start, and far longer on a machine that is busy."""


class Page:
    """A page without a browser: what it was sent, and what it asks for. Use as a context manager."""

    def __init__(self, port: int, speaks: bool = True, **options: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[tuple[dict[str, Any], bytes]] = []
        self.view: dict[str, Any] = {"robots": []}
        self.speaks = speaks
        self._socket = connect(f"ws://127.0.0.1:{port}/live", proxy=None, max_size=None, **options)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._speak)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave, as a browser does that is closed."""
        self._ended.set()
        self._socket.close()
        for thread in self._threads:
            thread.join(5.0)

    def _read(self) -> None:
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    size = int.from_bytes(message[:2], "big")
                    self.pictures.append((json.loads(message[2 : 2 + size]), message[2 + size :]))
                    continue
                found = json.loads(message)
                self.messages.append(found)
                if found["type"] == "view":
                    self.view = found
        except ConnectionClosed:
            pass

    def _speak(self) -> None:
        while not self._ended.wait(0.2):
            if self.speaks:
                try:
                    self.send({"ask": "alive"})
                except ConnectionClosed:
                    return

    def send(self, message: Any) -> None:
        """Send an object as JSON, or a text as it is."""
        self._socket.send(message if isinstance(message, str) else json.dumps(message))

    def stop(self) -> float:
        """Press STOP; returns when, s of the monotonic clock."""
        now = time.monotonic()
        self.send({"ask": "stop"})
        return now

    @property
    def robot(self) -> dict[str, Any]:
        """The first robot of the view."""
        return self.view["robots"][0] if self.view["robots"] else {"state": "", "buttons": {}}

    def shows(self, state: str, within_s: float = 20.0) -> dict[str, Any]:
        """Wait until the page shows this state of the executor."""
        wait_until(lambda: self.robot["state"] == state, lambda: f"{state}; the page shows {self.robot}", within_s)
        return self.robot

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def ask(self, ask: str, **fields: object) -> tuple[bool, str]:
        """Ask, and wait for the answer."""
        before = len(self.of("answer"))
        self.send({"ask": ask, "robot": "/so101", **fields})
        wait_until(lambda: len(self.of("answer")) > before, f"an answer to {ask}; {self.of('refused')}", 20.0)
        last = self.of("answer")[-1]
        return last["ok"], last["message"]


class PanelCell:
    """Executor and panel as processes. Use as a context manager."""

    def __init__(self, folder: Path, **parameters: object) -> None:
        self.folder, self.parameters = folder, {"port": 0, **parameters}
        self.companion = Companion()
        self.started = 0
        self.port = 0

    def __enter__(self) -> Self:
        self.companion.__enter__()
        self.cell = FaultCell(self.companion)
        self.executor = NodeProcess(
            "molmoact2_ros.nodes.executor_node", ros_arguments(PATIENCE), self.folder / "executor.log"
        ).__enter__()
        self.start_panel()
        wait_until(lambda: self.cell.state == "DISARMED", lambda: self.executor.output, START_S)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in (self.panel, self.executor):
            process.interrupt()
        self.companion.__exit__()

    def start_panel(self) -> None:
        """Start the panel's node, anew after it has ended; `port` is where its page is."""
        self.started += 1
        log = self.folder / f"panel{self.started}.log"
        self.panel = NodeProcess("molmoact2_ros.nodes.panel_node", ros_arguments(self.parameters), log).__enter__()

        def served() -> re.Match[str] | None:
            assert self.panel.popen is not None and self.panel.popen.poll() is None, self.panel.output
            return re.search(r"panel: http://[^:]+:(\d+)/", self.panel.output)

        wait_until(served, lambda: f"the page; the panel wrote\n{self.panel.output}", START_S)
        found = served()
        assert found is not None
        self.port = int(found[1])

    def page(self, **options: Any) -> Page:
        return Page(self.port, **options)

    def begin(self, page: Page) -> None:
        """DISARMED and at rest, on the page, too; nobody presses."""
        page.shows(self.cell.state)
        if self.cell.state == "ESTOPPED":
            wait_until(lambda: page.ask("reset")[0], lambda: f"a reset; {page.robot}", 20.0)
            wait_until(lambda: self.cell.state == "DISARMED", self.cell.told)
        self.cell.begin()
        page.shows("DISARMED")
