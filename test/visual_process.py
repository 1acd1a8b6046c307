"""A node of this package in its own process, and a peer in the test's process that publishes to it and listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

NAMESPACE = "/so101"


class NodeProcess:
    """One node under test; its output goes to `log`."""

    def __init__(
        self, module: str, log: Path, parameters: dict[str, object], environment: dict[str, str] | None = None
    ):
        arguments = ["--ros-args", "-r", f"__ns:={NAMESPACE}"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"molmoact2_ros.nodes.{module}", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    def output(self) -> str:
        """What the node has written so far."""
        return self.log.read_text(errors="replace")

    def end(self, how: signal.Signals = signal.SIGINT, timeout_s: float = 30.0) -> int:
        """Send `how`, wait, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout_s)


class Peer:
    """The test's own node. `until` spins it until a condition holds."""

    def __init__(self) -> None:
        self.node = Node("peer", namespace=NAMESPACE)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.received: dict[str, list[Any]] = {}

    def listen(self, msgtype: Any, topic: str, qos: Any = 10, raw: bool = False) -> list[Any]:
        """Subscribe; the returned list fills with what arrives."""
        found: list[Any] = []
        self.node.create_subscription(msgtype, topic, found.append, qos, raw=raw)
        return found

    def until(
        self,
        condition: Callable[[], object],
        what: str,
        timeout_s: float = 20.0,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Spin until `condition` holds, calling `meanwhile` 20 times a second; fail with `what` at the deadline."""
        deadline = time.monotonic() + timeout_s
        due = 0.0
        while not condition():
            now = time.monotonic()
            assert now < deadline, f"not within {timeout_s:.0f} s: {what}"
            if meanwhile is not None and now >= due:
                meanwhile()
                due = now + 0.05
            self._executor.spin_once(timeout_sec=0.02)

    def call(self, service_type: Any, name: str, request: Any, timeout_s: float = 20.0) -> Any:
        """Call a service and return its response."""
        client = self.node.create_client(service_type, name)
        self.until(client.service_is_ready, f"service {name} is there", timeout_s)
        future = client.call_async(request)
        self.until(future.done, f"answer of {name}", timeout_s)
        self.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        """Release the node."""
        self._executor.shutdown()
        self.node.destroy_node()


@contextmanager
def peer() -> Iterator[Peer]:
    """A peer within an initialised rclpy."""
    rclpy.init()
    one = Peer()
    try:
        yield one
    finally:
        one.close()
        rclpy.try_shutdown()


@contextmanager
def running(
    module: str, log: Path, parameters: dict[str, object], environment: dict[str, str] | None = None
) -> Iterator[NodeProcess]:
    """A node under test that is gone afterwards, whatever happens."""
    node = NodeProcess(module, log, parameters, environment)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGINT)
            try:
                node.process.wait(20.0)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
