"""One run on a robot with a person at the console: the nodes, the keys, and what is shown. Knows nothing of rclpy."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console as Screen
from rich.live import Live
from rich.table import Table
from rich.text import Text

from molmoact2_ros.bringup.console import Console, Request, same
from molmoact2_ros.bringup.keys import Key, Listener, single_keys
from molmoact2_ros.bringup.processes import Process, ProcessGroup
from molmoact2_ros.bringup.session import Line, SessionError, lines_of, spoken
from molmoact2_ros.bringup.specs import NodeSpec

OPERATOR = "operator"


class Wire:
    """Requests to the operator node, from any thread. What cannot be sent is dropped: its process has ended then, which
    ends the run."""

    def __init__(self, descriptor: int) -> None:
        # Its own: whoever started the process closes the other while keys are still heard.
        self._descriptor, self._lock = os.dup(descriptor), threading.Lock()
        os.set_blocking(self._descriptor, False)

    def send(self, requests: Iterable[Request]) -> None:
        """Send each as one line."""
        for request in requests:
            with self._lock, contextlib.suppress(OSError):
                os.write(self._descriptor, json.dumps(request).encode() + b"\n")

    def close(self) -> None:
        """Nothing is sent any more."""
        with self._lock:
            os.close(self._descriptor)


class LiveScreen:
    """Draws the console's rows over and over at the same place. Use as a context manager."""

    def __init__(self, screen: Screen) -> None:
        # Refreshed by hand, and nothing of what others write is taken: a thread that draws might wait for a terminal.
        self._live = Live(
            Text("starting the nodes"),
            console=screen,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveScreen:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, console: Console) -> None:
        """Draw what there is to see now."""
        rows = console.rows()
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim", min_width=max(len(row.name) for row in rows))
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(row.name, Text(row.text, style=row.style))
        self._live.update(table, refresh=True)


class PlainScreen:
    """A line for every change; figures alone are none. Use as a context manager."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._shown: list[str] = []

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, console: Console) -> None:
        """Print what is new."""
        lines = console.plain()
        for line in lines:
            if same(line) not in self._shown:
                self._screen.print(line, highlight=False, markup=False, soft_wrap=True)
                self._screen.file.flush()
        self._shown = [same(line) for line in lines]


def operate(
    specs: Iterable[NodeSpec],
    log_dir: Path,
    environment: Mapping[str, str],
    console: Console,
    screen: Screen,
    keyboard: int | None,
) -> None:
    """Start the nodes and serve the console until it wants to quit; returns when every node has ended in order.

    Args:
        keyboard: descriptor of the terminal whose keys are taken; None takes none and prints plain lines.

    Raises:
        SessionError: the operator node ended.
        NodeEndedError: another node ended without which the run cannot go on.
    """
    with contextlib.ExitStack() as stack:
        if keyboard is not None:
            stack.enter_context(single_keys(keyboard))
        display: PlainScreen | LiveScreen = PlainScreen(screen) if keyboard is None else LiveScreen(screen)
        stack.enter_context(display)
        # Keys are heard until the last node has ended: also an arm that is being brought to rest can be stopped.
        listening = stack.enter_context(contextlib.ExitStack())
        group = stack.enter_context(ProcessGroup(specs, log_dir, environment, piped=[OPERATOR], fed=[OPERATOR]))
        process = group.processes[OPERATOR]
        assert process.popen.stdin is not None
        wire = Wire(process.popen.stdin.fileno())
        listening.callback(wire.close)
        if keyboard is not None:
            listening.enter_context(_listener(keyboard, console, wire))
        try:
            for line in _until_quit(console, lines_of(process, group, lambda line: wire.send(console.hear(line)))):
                if line is not None:
                    wire.send(console.hear(line))
                display.show(console)
        finally:
            console.ending = True
            listening.callback(_follow(process, console, display))
        if not console.quit:
            raise SessionError(f"the operator node ended by itself:\n{process.tail()}")


def _until_quit(console: Console, lines: Iterator[Line | None]) -> Iterator[Line | None]:
    for line in lines:
        if console.quit:
            return
        yield line


def _follow(process: Process, console: Console, display: PlainScreen | LiveScreen) -> Callable[[], None]:
    """Go on showing what the operator node says, in a thread, until it has ended; returns what waits for that."""
    assert process.popen.stdout is not None
    descriptor = os.dup(process.popen.stdout.fileno())  # whoever started the process closes the other

    def follow() -> None:
        try:
            for line in spoken(descriptor, process.log):
                if line is not None:
                    console.hear(line)
                display.show(console)
        except OSError:  # nobody looks any more: the pipe must still be emptied, or its writer waits for it
            for _ in spoken(descriptor, process.log):
                pass
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=follow, name="ending", daemon=True)
    thread.start()
    return lambda: thread.join(2.0)


def _listener(keyboard: int, console: Console, wire: Wire) -> Listener:
    def pressed(key: Key) -> None:
        wire.send(console.key(key))

    def gone() -> None:
        console.quit = True

    return Listener(keyboard, pressed, lambda: wire.send([{"ask": "alive"}]), gone)
