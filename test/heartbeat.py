"""Tells whether this machine was away while a test ran: stopped by its hypervisor, or given to others.

The drivers promise answers within 25 ms and the executor stops an arm on silence of a quarter of a second, on real
clocks. On a machine that stands still for that long they do what they promise, and a test that expects an arm to go on
fails for no fault of the code. A process that only sleeps is the witness: it wakes up late when nobody could run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAP_S = 0.005
AWAY_S = 0.02
"""From this lateness on the machine counts as away; the shortest promise tested is the 25 ms of an answer."""

_WITNESS = f"""
import os, sys, time
parent, out = os.getppid(), open(sys.argv[1], "a", buffering=1)
last = time.monotonic()
while os.getppid() == parent:
    time.sleep({NAP_S})
    now = time.monotonic()
    if now - last - {NAP_S} > {AWAY_S}:
        print(last, now, file=out)
    last = now
"""


class Heartbeat:
    """The witness, from `begin` to `end`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def begin(self) -> None:
        """Start it."""
        self._folder = tempfile.TemporaryDirectory(prefix="heartbeat")
        command = [sys.executable, "-S", "-c", _WITNESS, str(self._file)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(self) -> None:
        """Stop it and forget what it saw."""
        if self._process is not None and self._folder is not None:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()
        self._process = self._folder = None

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "away"

    def away(self, since_s: float = 0.0) -> list[float]:
        """How long, s, the machine was away each time, in what has passed since `since_s` on the monotonic clock."""
        if self._folder is None or not self._file.exists():
            return []
        time.sleep(2 * NAP_S)  # it may have woken up as late as this process
        spans = (line.split() for line in self._file.read_text().splitlines())
        return [float(end) - float(begin) for begin, end in spans if float(end) > since_s]


def told(gaps: list[float]) -> str:
    """Say it in a few words."""
    if not gaps:
        return f"the machine was never away for {AWAY_S * 1e3:.0f} ms"
    return f"the machine was away {len(gaps)} times, {sum(gaps):.2f} s in all, {max(gaps) * 1e3:.0f} ms at the longest"
