"""An arm without a bus, for tests of the driver loop: it moves at once, and fails when it is told to."""

from __future__ import annotations

import numpy as np

from molmoact2_ros.drivers.driver import DriverError, Health, Reading, StaleError
from molmoact2_ros.embodiments import embodiment


class PretendArm:
    def __init__(self) -> None:
        self.robot = embodiment("so101")
        self.position = self.robot.rest_position.copy()
        self.written: list[np.ndarray] = []
        self.there, self.answers, self.closed = True, True, False
        self.present = Health()
        self.keeps = True
        self.connections = 0

    def connect(self) -> None:
        if not self.there:
            raise DriverError("no arm; plug it in")
        self.connections += 1

    def read(self) -> Reading:
        if not (self.there and self.answers):
            raise StaleError("no answer")
        return Reading(1, self.position.copy())

    def write(self, positions) -> None:
        if not (self.there and self.answers):
            raise StaleError("no answer")
        self.written.append(np.array(positions))

    def hold(self, positions) -> None:
        self.write(positions)

    def confirms(self, positions) -> bool:
        return bool(self.written) and np.array_equal(self.written[-1], positions) and self.keeps

    def health(self) -> Health:
        return self.present

    def disconnect(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
