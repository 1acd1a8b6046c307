"""A program on a terminal of its own, whose keys a test presses and whose screen it reads."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from typing import Any

_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[()].|[=>])")


class PseudoTerminal:
    """Starts `command` in the foreground of a new terminal. Use as a context manager; its end kills what still runs."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        self.before = self.settings()
        self._written = b""

        def in_front() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.popen = subprocess.Popen(
            list(command),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm", **(environment or {})},
            start_new_session=True,
            preexec_fn=in_front,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> PseudoTerminal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(30.0)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        os.close(self._slave)
        self._thread.join(5.0)
        os.close(self.master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            self._written += data

    def settings(self) -> list[Any]:
        """The terminal's settings."""
        return termios.tcgetattr(self._slave)

    def press(self, keys: str) -> None:
        """Press keys, as bytes of the terminal."""
        os.write(self.master, keys.encode())

    @property
    def text(self) -> str:
        """All that was ever written, without colours and movements."""
        return _SEQUENCE.sub(b"", self._written).decode(errors="replace")

    @property
    def screen(self) -> str:
        """The last 4000 characters of it: what is drawn now, and what was just before."""
        return self.text[-4000:]
