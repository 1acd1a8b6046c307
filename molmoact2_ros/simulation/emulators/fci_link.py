"""What the cell and the emulated control box of a Franka exchange: positions, targets, and the fault switch."""

from __future__ import annotations

from contextlib import suppress
from enum import IntEnum
from multiprocessing import resource_tracker, shared_memory

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DOF = 8


class Fault(IntEnum):
    """Fault switches of the box."""

    NONE, SILENT, FROZEN, LOST, DELAY, REFLEX, USER_STOP, UNPLUG = range(8)


class FciLink:
    """Shared memory between the cell and the box: positions, velocities and targets (8,), and the fault switch."""

    _SIZE = 3 * DOF + 4

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
        self.positions = self._values[:DOF]
        self.velocities = self._values[DOF : 2 * DOF]
        self.targets = self._values[2 * DOF : 3 * DOF]
        self._rest = self._values[3 * DOF :]

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

    def close(self) -> None:
        """Let go of the memory; whoever made it removes it."""
        del self.positions, self.velocities, self.targets, self._rest, self._values
        self._memory.close()
        if self._owner:
            with suppress(FileNotFoundError):
                self._memory.unlink()
