"""Two YAM arms as leaders: i2rt's arms on CAN channels of their own, floating under their own weight."""

from __future__ import annotations

from molmoact2_ros.drivers.driver import Array, Reading
from molmoact2_ros.drivers.yam import YamDriver


class YamLeader(YamDriver):
    """See `Teleoperator`."""

    def connect(self) -> None:
        """See `Teleoperator`. The arms hold for the moment in which they start, then they float."""
        super().connect()
        self.hand_guiding(True)

    def lead(self, arm: Array | None, drives: bool) -> Reading:
        """See `Teleoperator`."""
        return self.read()

    def follow(self, positions: Array) -> None:
        """See `Teleoperator`."""
        if self.guided:
            self.hand_guiding(False)
        self.write(positions)

    def release(self) -> None:
        """See `Teleoperator`."""
        if not self.guided:
            self.hand_guiding(True)
