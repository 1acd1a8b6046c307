"""While a robot runs: whether the board that stays in the cell is seen where it should be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import LEAST_CORNERS, Board, Detector
from molmoact2_ros.cameras.calibrating.bundle import inverse
from molmoact2_ros.cameras.calibrating.checking import OFF_DEG, OFF_MM
from molmoact2_ros.cameras.calibrating.taking import STILL_RAD
from molmoact2_ros.cameras.calibration import CameraCalibration, distorted, mount_poses
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]


class BoardWatch:
    """Compares seen with predicted corners. It cannot tell a camera that was moved from a board that was: it says both.

    Args:
        standing: board, link and pose (4, 4), as `result.standing_board` reads them.
    """

    def __init__(
        self,
        robot: Embodiment,
        calibrations: Mapping[str, CameraCalibration],
        standing: tuple[Board, str, Array],
    ) -> None:
        self._robot, self._calibrations = robot, calibrations
        self._board, self._mount, self._pose = standing
        self._detector = Detector(self._board)

    def look(self, camera: str, picture: NDArray[np.uint8], joints: Array) -> str | None:
        """What is wrong with `camera` by a picture (height, width, 3); empty for nothing, None where it does not show.

        Args:
            joints: the newest readings (n, dof), ROS order. An arm that moves is where its readings are not, so that
                nothing is said of a camera on it.
        """
        known = self._calibrations.get(camera)
        if known is None or picture.shape[:2] != (known.height, known.width):
            return None
        moving = not len(joints) or bool(np.max(np.ptp(joints, axis=0)) > STILL_RAD)
        if moving and {known.mount, self._mount} != {self._robot.base_link}:
            return None
        seen = self._detector.find(picture)
        if len(seen.ids) < LEAST_CORNERS:
            return None
        now = joints[-1] if len(joints) else None
        optical = mount_poses(self._robot, known.mount, now) @ known.pose
        pose = inverse(optical) @ mount_poses(self._robot, self._mount, now) @ self._pose
        local = self._board.corners[seen.ids] @ pose[:3, :3].T + pose[:3, 3]
        if np.any(local[:, 2] < 0.01):
            return f"camera {camera} sees the board, which should be behind it: {_ADVICE}"
        flat = distorted(local[:, :2] / local[:, 2:], known.d)
        miss = seen.pixels - flat @ known.k[:2, :2].T - known.k[:2, 2]
        pixels = float(np.sqrt(np.mean(np.sum(miss**2, axis=1))))
        angle = pixels / float(known.k[0, 0])
        millimetres = 1e3 * angle * float(np.mean(np.linalg.norm(local, axis=1)))
        if millimetres <= OFF_MM or np.degrees(angle) <= OFF_DEG:
            return ""
        return f"camera {camera} sees the board {pixels:.0f} px ({millimetres:.0f} mm) from its place: {_ADVICE}"


_ADVICE = "the camera or the board was moved; molmoact2 calibrate check tells which, calibrate cameras mends it"
