"""A node as a process: from its making to an orderly end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from molmoact2_ros.bringup.ending import DRIVERS, ENDS_AFTER, PARK_S, REST_S, SETTLE_S, Launcher

IN_LIBRARY_S = 1.5
"""How long a node that is ended while it is being configured may take to give back what it has."""


class EndedEarlyError(BaseException):
    """A signal came while a node was being configured. Not an Exception, so that nothing on the way swallows it."""


def run_node(factory: Callable[[], Any]) -> int:
    """Main of a node: spin until SIGINT, SIGTERM or the end of what started it, then tear down.

    A node that others end before (`ENDS_AFTER`) goes on until they have gone: a driver holds its arm until the executor
    has brought it to rest.

    Args:
        factory: makes the node, a `MolmoNode`.

    Returns the exit status: 0 for an orderly end, 1 when an autostarted node could not start.
    """
    ended = threading.Event()
    wake: list[Callable[[], object]] = []
    starting: list[str] = []

    def end(*_: object) -> None:
        ended.set()
        for action in wake:
            action()

    def interrupted(*_: object) -> None:
        end()
        if starting:  # loading a model takes minutes, and what is begun here is given back below
            starting.clear()
            raise EndedEarlyError

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    launcher = Launcher(os.environ)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = factory()
    except ParameterException as error:  # of the wrong type or out of bounds
        print(f"cannot start: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    wake.append(executor.wake)

    def watch_launcher() -> None:
        # One that dies without a signal to its children must not leave a moving arm behind.
        if launcher.ended and not ended.is_set():
            node.get_logger().warning("what started this node has ended; shutting down")
            end()

    node.create_timer(0.5, watch_launcher, clock=node.steady)
    watch_launcher()
    status = 0
    configured = _ended_by_force(IN_LIBRARY_S) if node.get_name() not in DRIVERS else lambda: None
    try:
        starting.append(node.get_name())
        if not ended.is_set() and node.param("autostart") and not node.autostart():
            status = 1
        starting.clear()
        configured()
        while not status and not ended.is_set() and node.finished is None and rclpy.ok():
            executor.spin_once(timeout_sec=0.5)
        if ended.is_set() and not status:
            _end_in_order(node, executor)
    except EndedEarlyError:
        if node.active:
            configured()
            _end_in_order(node, executor)
    except ExternalShutdownException:
        pass
    finally:
        node.release()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return status or node.finished or 0


def _ended_by_force(seconds: float) -> Callable[[], None]:
    """End this process so long after a signal, unless what is returned was called before.

    While a library computes, this thread runs no handler. The number of a signal is written to a pipe all the same.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    over = threading.Event()

    def watch() -> None:
        os.read(read, 1)
        if not over.wait(seconds):
            print("ended while it was being configured", file=sys.stderr, flush=True)
            os._exit(0)

    def done() -> None:
        over.set()
        signal.set_wakeup_fd(-1)
        os.write(write, b"\0")

    threading.Thread(target=watch, name="start", daemon=True).start()
    return done


def _end_in_order(node: Any, executor: SingleThreadedExecutor) -> None:
    """Spin until the nodes that end before this one have gone, or have had their time, and until this one is done."""
    names = os.environ.get(ENDS_AFTER, "").split()
    deadline = time.monotonic() + REST_S + (PARK_S if set(names) & set(DRIVERS) else 0.0)

    def others() -> list[str]:
        there = node.get_node_names_and_namespaces()
        return [name for name, namespace in there if name in names and namespace == node.get_namespace()]

    def spin_while(condition: Callable[[], object], until: float) -> None:
        while condition() and time.monotonic() < until and node.finished is None:
            executor.spin_once(timeout_sec=0.02)

    if names:
        spin_while(others, deadline)
    if node.get_name() in DRIVERS:
        spin_while(lambda: True, time.monotonic() + SETTLE_S)
    spin_while(node.lingers, time.monotonic() + PARK_S)
