"""One run: the nodes, what the one that is listened to says, and how it ended. Knows nothing of rclpy."""

from __future__ import annotations

import json
import os
import selectors
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from molmoact2_ros.bringup.processes import NodeEndedError, Process, ProcessGroup
from molmoact2_ros.bringup.specs import NodeSpec

Line = dict[str, Any]
"""One JSON object of the episode or the operator node, which say what keys each `type` has."""

EPISODE = "episode"
_POLL_S = 0.1


class SessionError(RuntimeError):
    """The run ended before its last episode; the message says why."""


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP came: end in order. Not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def orderly_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `TerminatedError` while inside, as Python turns SIGINT into KeyboardInterrupt."""

    def terminate(number: int, _: object) -> None:
        raise TerminatedError(number)

    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    # A shell that starts a job in the background makes it ignore SIGINT; the user's `kill -INT` must still work.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_session(
    specs: Iterable[NodeSpec],
    log_dir: Path,
    environment: Mapping[str, str],
    hear: Callable[[Line], None],
    speaker: str = EPISODE,
) -> Line:
    """Start the nodes, hand every line of `speaker` to `hear`, and return its summary when all nodes have ended.

    A node that ends although the session needs it ends the session; the end of any other is heard as a line of type
    `warning` with the key `message`.

    Raises:
        SessionError: the speaker reported an error, or ended without a summary.
        NodeEndedError: a node of the session ended.
    """
    with ProcessGroup(specs, log_dir, environment, piped=[speaker]) as bringup:
        process = bringup.processes[speaker]
        for line in lines_of(process, bringup, hear):
            if line is None:
                continue
            if line["type"] == "summary":
                return line
            if line["type"] == "error":
                raise SessionError(f"{line['error']} (logs: {log_dir})")
            hear(line)
        status = process.popen.wait()
    raise SessionError(f"the {speaker} node ended with status {status} before its summary:\n{process.tail()}")


def lines_of(process: Process, bringup: ProcessGroup, hear: Callable[[Line], None]) -> Iterator[Line | None]:
    """Yield what `process` says until it closes its output, and None about ten times a second, looking after the nodes.

    Raises:
        NodeEndedError: a node ended without which the run cannot go on.
    """
    assert process.popen.stdout is not None
    for line in spoken(process.popen.stdout.fileno(), process.log):
        yield line
        if line is None:
            for message in bringup.check(expected=(process.spec.name,)):
                hear({"type": "warning", "message": message})


def spoken(descriptor: int, log: Path) -> Iterator[Line | None]:
    """Yield the objects that are written to a pipe until it is closed, and None at least ten times a second."""
    os.set_blocking(descriptor, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if selector.select(_POLL_S):
                data = os.read(descriptor, 65536)
                if not data:
                    return
                *complete, rest = (rest + data).split(b"\n")
                for text in complete:
                    line = _parsed(text.decode(errors="replace"), log)
                    if line is not None:
                        yield line
            yield None


def _parsed(text: str, log: Path) -> Line | None:
    """The object of a line; anything else that the process wrote to standard output goes into the log."""
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if isinstance(line, dict) and "type" in line:
        return line
    with log.open("a") as file:
        file.write(text + "\n")
    return None


__all__ = ["NodeEndedError", "SessionError", "TerminatedError", "lines_of", "orderly_signals", "run_session", "spoken"]
