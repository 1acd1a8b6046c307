"""Runs a driver's loop in real time."""

from __future__ import annotations

import threading

from molmoact2_ros.drivers.driver import DriverError
from molmoact2_ros.drivers.loop import DriverLoop

CLOSE_S = 55.0
"""How long an orderly end may take: parking is slow."""


class DriverThread:
    """Runs a `DriverLoop` in a thread of its own."""

    def __init__(self, loop: DriverLoop) -> None:
        self.loop = loop
        self.failure: Exception | None = None
        """What ended the thread, if something did: a fault of this program."""
        self.kept = ""
        """What the arm did not let go of at the end, if there was something."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.loop.step()
        except Exception as error:  # the owner must learn of it: the thread has nobody to raise to
            self.failure = error
        finally:
            try:
                self.loop.close()
            except DriverError as error:
                self.kept = str(error)

    def end(self) -> bool:
        """Begin to end, without waiting; True once the arm is parked and let go."""
        self._ended.set()
        return not self._thread.is_alive()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """End the thread, which parks the arm where that is asked for, and lets go of it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
