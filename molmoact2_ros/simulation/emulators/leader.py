"""An SO-101 leader arm without one: its servos on a serial port, and a hand that moves them while they have no
torque."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.feetech import FeetechBus, write_calibration
from molmoact2_ros.simulation.emulators.plant import SecondOrderPlant

Array = NDArray[np.float64]

PORT, CALIBRATION = "leader", "leader"
"""Names of the port and of the calibration file in the rig's folder."""
_TORQUE = 40
HAND_RAD_S = 2.0
"""The hand moves no joint faster."""


class LeaderRig:
    """The port `<folder>/leader`, with lerobot's calibration file `leader.json` beside. Use as a context manager.

    Args:
        clock: time in s.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plant = SecondOrderPlant(embodiment("so101").rest_position, clock=clock)
        self._wish: Array | None = None
        self._moved_at = clock()
        self.bus = FeetechBus(self, folder / PORT)
        self.calibration = write_calibration(self.bus.servos, folder, CALIBRATION)

    def __enter__(self) -> Self:
        self.bus.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.bus.__exit__()
        self.calibration.unlink(missing_ok=True)

    @property
    def holds(self) -> bool:
        """Whether its servos have torque."""
        return any(servo.registers[_TORQUE] == 1 for servo in self.bus.servos.values())

    def hand(self, position: Array) -> None:
        """The hand moves the leader on its way to `position` (6,), rad. To be called often. With torque it stays."""
        now = self._clock()
        step, self._moved_at = HAND_RAD_S * min(now - self._moved_at, 0.1), now
        if self.holds:
            self._wish = None
            return
        wish = self._plant.joints()[0] if self._wish is None else self._wish
        self._wish = wish + np.clip(position - wish, -step, step)
        self._plant.drive(self._wish)

    # -- Plant ----------------------------------------------------------------------------------------------------

    def joints(self) -> tuple[Array, Array]:
        """See `Plant`."""
        return self._plant.joints()

    def drive(self, targets: Array) -> None:
        """See `Plant`: the servos' goals."""
        if self.holds:
            self._plant.drive(targets)
