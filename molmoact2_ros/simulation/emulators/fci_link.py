"""What the cell and the emulated control box of a Franka exchange: positions, targets, fault switch, figures."""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum
from multiprocessing import resource_tracker, shared_memory

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DOF = 8


class Fault(IntEnum):
    """Fault switches of the box and its hand."""

    (
        NONE,
        SILENT,
        FROZEN,
        LOST,
        REFLEX,
        USER_STOP,
        UNPLUG,
        GUIDING,
        REFUSED,
        SLOW_RECOVERY,
        HAND_SILENT,
        HAND_REFUSED,
        HAND_UNHOMED,
        HAND_GONE,
    ) = range(14)


class FciLink:
    """Shared memory between the cell and the box.

    Attributes:
        positions, velocities, targets: (8,), of the arm's joints and of one finger, rad and m.
        seen: of the commands so far: largest share of the velocity limit, acceleration (rad/s2) and jerk (rad/s3) of a
            joint; commands, missed ones, most missed in a row, and milliseconds that were longer than one.
        reflexes: how often each error stopped the robot, (41,), in the order of `fci_wire.ERRORS`.
        hand: how often the hand was told to home, grasp, move and stop.
    """

    _FIGURES, _ERRORS = 7, 41
    _SIZE = 3 * DOF + 4 + _FIGURES + _ERRORS + 4

    def __init__(self, name: str, create: bool) -> None:
        if create:
            with suppress(FileNotFoundError):  # left behind by a killed run
                stale = shared_memory.SharedMemory(name=name)
                stale.close()
                stale.unlink()
        self._memory = shared_memory.SharedMemory(name=name, create=create, size=8 * self._SIZE)
        if not create:  # the one who made it removes it; Python's tracker would do so when this process ends
            resource_tracker.unregister(self._memory._name, "shared_memory")  # type: ignore[attr-defined]
        self._values: Array = np.ndarray((self._SIZE,), np.float64, self._memory.buf)
        self._owner = create
        self.positions, self.velocities, self.targets, self._rest, self.seen, self.reflexes, self.hand = np.split(
            self._values, np.cumsum((DOF, DOF, DOF, 4, self._FIGURES, self._ERRORS))
        )

    @property
    def driven(self) -> bool:
        """True once the box has set targets."""
        return bool(self._rest[2])

    def drive(self) -> None:
        """The targets count from now on."""
        self._rest[2] = 1.0

    @property
    def fault(self) -> tuple[Fault, float]:
        """The fault switch and its figure."""
        return Fault(int(self._rest[0])), float(self._rest[1])

    @fault.setter
    def fault(self, value: tuple[Fault, float]) -> None:
        self._rest[0], self._rest[1] = float(value[0]), value[1]

    @property
    def object_m(self) -> float:
        """Half the width of something hard between the fingers, where the cell has nothing of its own there, m."""
        return float(self._rest[3])

    @object_m.setter
    def object_m(self, value: float) -> None:
        self._rest[3] = value

    def close(self) -> None:
        """Let go of the memory; whoever made it removes it."""
        del self.positions, self.velocities, self.targets, self._rest, self.seen, self.reflexes, self.hand
        del self._values
        self._memory.close()
        if self._owner:
            with suppress(FileNotFoundError):
                self._memory.unlink()
