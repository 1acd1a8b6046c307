"""An SO-101's driver, unmodified, on emulated servos with a calibration that fits them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np

from molmoact2_ros.drivers.driver import StaleError
from molmoact2_ros.drivers.so101 import So101Config, So101Driver
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.feetech import FeetechBus, write_calibration

ROBOT = embodiment("so101")


class Joints:
    """A plant that is where it is put, and goes at once where it is driven."""

    def __init__(self) -> None:
        self.position = ROBOT.rest_position.copy()

    def joints(self):
        return self.position.copy(), np.zeros(6)

    def drive(self, targets) -> None:
        self.position = np.array(targets)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.joints = Joints()
        self.bus = FeetechBus(self.joints, folder / "by-id" / "usb-arm")
        self.folder = folder
        self.path = write_calibration(self.bus.servos, folder, "so101")
        self.driver = So101Driver(self.config())

    def config(self, **changes) -> So101Config:
        return So101Config(**{"port": str(self.bus.link), "calibration_dir": str(self.folder), **changes})

    @contextmanager
    def running(self) -> Iterator[Self]:
        """With its bus; the driver is closed at the end."""
        with self.bus:
            yield self
            self.driver.close()

    def tried(self, count: int) -> list[np.ndarray | str]:
        """What so many reads gave: a position, or why there was none."""
        found: list[np.ndarray | str] = []
        for _ in range(count):
            try:
                found.append(self.driver.read().positions)
            except StaleError as error:
                found.append(str(error))
        return found
