"""Nodes in processes of their own, and a node of the test that talks to them. Wait on conditions, never for a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from molmoact2_ros.bringup.processes import node_environment

DEADLINE_S = 10.0
"""Discovery alone takes up to 2.2 s; on a loaded machine everything takes longer."""


def ros_arguments(parameters: Mapping[str, object], namespace: str = "/so101") -> list[str]:
    """The command line of a node in `namespace` with these parameters."""
    given = [part for name, value in parameters.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
    return ["--ros-args", "-r", f"__ns:={namespace}", *given]


class NodeProcess:
    """A module of this package run as its own process; ended with SIGINT at the end of the `with` block.

    Args:
        module: such as `molmoact2_ros.nodes.executor_node`.
        arguments: command line, usually that of `ros_arguments`.
        log: file for standard output and error.
        packages: directories whose Python packages and libraries the node may load as well.
    """

    started: ClassVar[list[NodeProcess]] = []
    """In the present test; what they wrote is told when it fails."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path, packages: Sequence[Path] = ()) -> None:
        self._module, self._arguments, self._log = module, list(arguments), log
        self._packages = [str(path) for path in packages]
        self.popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NodeProcess:
        with self._log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        self.started.append(self)
        return self

    def _environment(self) -> dict[str, str]:
        env = node_environment()
        for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):
            env[name] = os.pathsep.join(filter(None, (env.get(name, ""), *self._packages)))
        return env

    def __exit__(self, *_: object) -> None:
        self.interrupt()

    @property
    def output(self) -> str:
        """What the process has written so far."""
        return self._log.read_text(errors="replace")

    @property
    def tail(self) -> str:
        """What a failed test tells of it."""
        ended = "runs" if self.popen is None or self.popen.poll() is None else f"ended with {self.popen.returncode}"
        return "\n".join([f"{self._module} {ended}; it wrote last:", *self.output.splitlines()[-20:]])

    def interrupt(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send `how`, and after the deadline SIGKILL; returns the exit status. Safe to call twice."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(how)
            try:
                self.popen.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return int(self.popen.returncode)


class Companion:
    """A ROS node of the test, spun in a thread of its own. Use as a context manager."""

    def __init__(self, namespace: str = "/so101", name: str = "companion") -> None:
        self._owns_context = not rclpy.ok()
        if self._owns_context:
            rclpy.init()
        self.node = Node(name, namespace=namespace)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._clients: dict[str, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def __enter__(self) -> Companion:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._executor.wake()
        self._thread.join(DEADLINE_S)
        self._executor.shutdown()
        self.node.destroy_node()
        if self._owns_context:
            rclpy.try_shutdown()

    def _spin(self) -> None:
        try:
            while not self._ended.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass

    def listen(self, msgtype: Any, topic: str, qos: Any = 10, raw: bool = False) -> list[Any]:
        """Subscribe; the returned list fills with what arrives."""
        found: list[Any] = []
        self.node.create_subscription(msgtype, topic, found.append, qos, raw=raw)
        return found

    def call(self, service_type: Any, name: str, request: Any, deadline_s: float = DEADLINE_S) -> Any:
        """Call a service and return its response; fails when it does not answer in time."""
        # One client for all calls: the answer to a client that the server has not discovered yet is lost.
        client = self._clients.get(name) or self.node.create_client(service_type, name)
        self._clients[name] = client
        assert client.wait_for_service(deadline_s), f"no service {name} within {deadline_s} s"
        future = client.call_async(request)
        wait_until(future.done, f"an answer of {name}", deadline_s)
        return future.result()


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    deadline_s: float = DEADLINE_S,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Wait until `condition()` is true, calling `meanwhile` 20 times a second; at the deadline fail with `what`."""
    end, due = time.monotonic() + deadline_s, 0.0
    while not condition():
        now = time.monotonic()
        if now > end:
            raise AssertionError(f"waited {deadline_s} s for {what() if callable(what) else what}")
        if meanwhile is not None and now >= due:
            meanwhile()
            due = now + 0.05
        time.sleep(0.005)


def marked(mark: str) -> set[int]:
    """Living processes that carry `mark` in their environment, zombies left out."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and " Z " not in (folder / "stat").read_text():
                found.add(int(folder.name))
        except OSError:
            continue
    return found - {os.getpid()}


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> bool:
    """Whether `condition()` comes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
