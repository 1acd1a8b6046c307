"""While a robot runs: cameras are held against the board that stays in the cell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import Image

from molmoact2_ros.cameras.calibrating.result import standing_board
from molmoact2_ros.cameras.calibrating.watch import BoardWatch
from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.cell_cameras import CELL
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.nodes.ros.complaints import Complaints
from molmoact2_ros.nodes.ros.messages import rgb_from_image

READINGS = 30
"""Newest readings of the joints that say whether the arm is still."""


class BoardChecks:
    """Complains of a camera that does not see the board where it should. `present` is False without a board."""

    def __init__(
        self, robot: Embodiment, calibrations: Mapping[str, CameraCalibration], file: str, complaints: Complaints
    ) -> None:
        standing = standing_board(file) if file not in ("", CELL) else None
        self._watch = None if standing is None else BoardWatch(robot, calibrations, standing)
        self._dof, self._complaints = robot.dof, complaints

    @property
    def present(self) -> bool:
        """Whether the calibration file names a board that stays in the cell."""
        return self._watch is not None

    def look(self, images: Mapping[str, Image], joints: list[NDArray[np.float64]]) -> None:
        """Check every camera by its newest image; `joints` are readings (dof,), the oldest first."""
        if self._watch is None:
            return
        readings = np.array(joints[-READINGS:]).reshape(-1, self._dof)
        for camera, image in images.items():
            said = self._watch.look(camera, rgb_from_image(image), readings)
            if said is not None:
                self._complaints.say(f"calibration of {camera}", said)
