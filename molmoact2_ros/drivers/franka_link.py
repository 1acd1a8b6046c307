"""Shared memory between the Franka driver and the processes that talk to the control box and to its hand."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing import resource_tracker, shared_memory

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JOINTS = 7
MODES = ("Other", "Idle", "Move", "Guiding", "Reflex", "UserStopped", "AutomaticErrorRecovery")
_ARM_TIME, _HAND_TIME, _HAND_BUSY, _COMMAND_TIME = range(4)


class FrankaLink:
    """What the processes exchange; rad, m. Counters only grow.

    Attributes:
        state: number of states, mode, controlling (0 or 1), q (7), dq (7).
        hand: half of the width between the fingers, largest width, something is held (0 or 1), number of readings,
            and whether it can be stopped (0 or 1).
        command: begun commands, q (7), half of the width, finished commands.
        holds: how often arm and hand were told to stay where they are, the last command before that, and how often the
            arm's process has done so.
        recover: how often error recovery was asked for, and how often it was done.
        steps: of the filter: all, planned by Ruckig, braked; and the time of one in us: mean and longest.
    """

    _SIZE, _TIMES, _TEXT = 64, 8, 512

    def __init__(self, name: str, create: bool) -> None:
        size = 8 * (self._SIZE + self._TIMES) + 2 * self._TEXT
        self._memory = shared_memory.SharedMemory(name=name, create=create, size=size)
        if not create:  # the driver removes it; Python's tracker would do so when this process ends
            resource_tracker.unregister(self._memory._name, "shared_memory")  # type: ignore[attr-defined]
        self.name, self._owner = self._memory.name, create
        self._values: Array = np.ndarray((self._SIZE,), np.float64, self._memory.buf)
        self._times: NDArray[np.int64] = np.ndarray((self._TIMES,), np.int64, self._memory.buf, 8 * self._SIZE)
        self._words: NDArray[np.uint8] = np.ndarray(
            (2, self._TEXT), np.uint8, self._memory.buf, 8 * (self._SIZE + self._TIMES)
        )
        self.state, self.hand, self.command = self._values[0:17], self._values[20:25], self._values[28:38]
        self.holds, self.recover, self.steps = self._values[40:43], self._values[44:46], self._values[48:53]

    def send(self, positions: Array, time_ns: int) -> None:
        """Put a set-point (8,), joints and half width, at `time_ns` of the monotonic clock."""
        self.command[0] += 1.0
        self.command[1:9] = positions
        self._times[_COMMAND_TIME] = time_ns
        self.command[9] = self.command[0]

    def hold(self) -> None:
        """Tell arm and hand to stay where they are; the commands up to now do not count any more."""
        self.holds[1] = self.command[9]
        self.holds[0] += 1.0

    def take(self, taken: float) -> tuple[float, Array, int] | None:
        """The newest set-point if its number is above `taken`: number, joints and half width (8,), and its time."""
        number = float(self.command[9])
        if number <= taken:
            return None
        found, time_ns = self.command[1:9].copy(), int(self._times[_COMMAND_TIME])
        if self.command[0] != number:  # the next one is just being written
            return None
        return number, found, time_ns

    @property
    def stamp_ns(self) -> int:
        """When the newest state came, ns."""
        return int(self._times[_ARM_TIME])

    @stamp_ns.setter
    def stamp_ns(self, value: int) -> None:
        self._times[_ARM_TIME] = value

    @property
    def hand_stamp_ns(self) -> int:
        """When the newest reading of the hand came, ns of the same clock; 0 before the first."""
        return int(self._times[_HAND_TIME])

    @hand_stamp_ns.setter
    def hand_stamp_ns(self, value: int) -> None:
        self._times[_HAND_TIME] = value

    @property
    def busy_since_ns(self) -> int:
        """When the motion began that the hand is in; 0 while it rests."""
        return int(self._times[_HAND_BUSY])

    @busy_since_ns.setter
    def busy_since_ns(self, value: int) -> None:
        self._times[_HAND_BUSY] = value

    @property
    def text(self) -> str:
        """What the box complains about."""
        return self._read_words(0)

    @text.setter
    def text(self, value: str) -> None:
        self._write_words(0, value)

    @property
    def hand_text(self) -> str:
        """What went wrong with the hand's last motion."""
        return self._read_words(1)

    @hand_text.setter
    def hand_text(self, value: str) -> None:
        self._write_words(1, value)

    def _read_words(self, row: int) -> str:
        return self._words[row].tobytes().rstrip(b"\0").decode(errors="replace")

    def _write_words(self, row: int, value: str) -> None:
        data = value.encode()[: self._TEXT]
        self._words[row] = np.frombuffer(data.ljust(self._TEXT, b"\0"), np.uint8)

    def close(self) -> None:
        """Let go of the memory; the driver removes it."""
        del self.state, self.hand, self.command, self.holds, self.recover, self.steps
        del self._values, self._times, self._words
        self._memory.close()
        if self._owner:
            with suppress(FileNotFoundError):
                self._memory.unlink()
