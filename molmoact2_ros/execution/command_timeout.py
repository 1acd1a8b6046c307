"""A driver's own guard: commands have ceased, so the arm is to hold. It trusts nobody, not even the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable

SILENCE_S = 0.2
"""How long commands may stay away before the arm holds."""


class CommandTimeout:
    """Tells a driver, once a silence, that commands have ceased. Thread-safe; `now_ns` is any clock that never jumps.

    Silence counts from a command on: an arm that nobody has commanded yet has nothing to hold. A driver calls `fed` for
    every command that it accepts and `expired` in its loop; when that is true it holds the measured position (and the
    gripper its last target), and goes on with the next command. An infinite silence never expires.

    Attributes:
        trips: how often commands have ceased.
    """

    def __init__(self, now_ns: Callable[[], int], silence_s: float = SILENCE_S) -> None:
        if silence_s <= 0.0:
            raise ValueError(f"the silence after which a driver holds must be above 0 s, got {silence_s}")
        self._now_ns, self._silence_ns = now_ns, silence_s * 1e9
        self._lock = threading.Lock()
        self._fed_ns: int | None = None
        self._holding = False
        self.trips = 0

    @property
    def holding(self) -> bool:
        """True from the end of the commands until the next one."""
        return self._holding

    def fed(self) -> None:
        """A command was accepted."""
        with self._lock:
            self._fed_ns, self._holding = self._now_ns(), False

    def forget(self) -> None:
        """No command is expected any more: the driver was reset, or the arm let go."""
        with self._lock:
            self._fed_ns, self._holding = None, False

    def expired(self) -> bool:
        """True once, when commands have ceased for longer than the silence allowed."""
        with self._lock:
            if self._fed_ns is None or self._now_ns() - self._fed_ns <= self._silence_ns:
                return False
            self._fed_ns, self._holding = None, True
            self.trips += 1
            return True
