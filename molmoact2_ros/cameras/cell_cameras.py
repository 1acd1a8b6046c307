"""Where the cameras of the simulated cells are. The one home of these values: the scene, the overlays and the
CameraInfo messages read them here. Loads numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibration import CameraCalibration, load_calibrations
from molmoact2_ros.embodiments import EMBODIMENTS
from molmoact2_ros.embodiments.franka_droid import FrankaDroid
from molmoact2_ros.embodiments.urdf import robot_urdf

Array = NDArray[np.float64]
CELL = "cell"
"""What a node is told as its calibration file where the cameras are those of the simulated cell."""


def looking_at(
    eye: tuple[float, float, float], target: tuple[float, float, float], up: tuple[float, float, float]
) -> Array:
    """Pose (4, 4) of an optical frame at `eye` whose z axis points at `target`, with `up` towards the image's top."""
    forward = np.subtract(target, eye).astype(np.float64)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.column_stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = eye
    return pose


def _pinhole(width: int, height: int, fovy_deg: float) -> Array:
    focal = 0.5 * height / np.tan(0.5 * np.radians(fovy_deg))
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])


@cache
def _cells() -> dict[str, dict[str, CameraCalibration]]:
    """The cameras of every simulated cell, by family."""
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    # The hand of the Franka in the frame of the link that carries it, and the camera in the hand's frame: beside the
    # fingers, which move along y, and looking past their tips.
    hand = robot_urdf("franka").pose("fr3_link7", "fr3_hand")
    beside_hand = looking_at((0.100, 0.0, 0.035), (0.030, 0.0, 0.170), (-1, 0, 0))
    # Behind the gripper of the YAM, canted by 25 degrees towards the fingertips.
    yam_wrist = pose_of(Rotation.from_euler("x", -25.0, degrees=True), (0.0, -0.0704, 0.077))
    return {
        "so101": {
            # Faces the arm from across the table and a little above, so that the gripper never hides the whole cube.
            "front": CameraCalibration(
                320,
                240,
                _pinhole(320, 240, 37.0),
                "base_link",
                looking_at((0.60, 0.0, 0.42), (0.185, 0.0, 0.035), (0, 0, 1)),
            ),
            # On the gripper's side, looking past the fingertips.
            "wrist": CameraCalibration(
                320,
                240,
                _pinhole(320, 240, 75.0),
                "gripper_link",
                looking_at((0.012, -0.085, -0.015), (0.012, 0.0, -0.095), (1, 0, 0)),
            ),
        },
        "franka": {
            # Beside the table, as DROID has it, and of its image size.
            "exterior": CameraCalibration(
                320,
                180,
                _pinhole(320, 180, 44.0),
                "fr3_link0",
                looking_at((1.12, 0.50, 0.60), (0.46, 0.0, 0.20), (0, 0, 1)),
            ),
            "wrist": CameraCalibration(320, 180, _pinhole(320, 180, 64.0), "fr3_link7", hand @ beside_hand),
        },
        "yam": {
            # Where the vendor's station has them, at half the native size.
            "top": CameraCalibration(
                320,
                180,
                _pinhole(320, 180, 56.0),
                "left_base_link",
                looking_at((-0.1665, -0.305, 0.9543), (0.3335, -0.305, 0.0883), (0, 0, 1)),
            ),
            "left": CameraCalibration(320, 180, _pinhole(320, 180, 56.0), "left_link6", yam_wrist),
            "right": CameraCalibration(320, 180, _pinhole(320, 180, 56.0), "right_link6", yam_wrist),
        },
    }


def camera_calibration(robot: str, camera: str) -> CameraCalibration:
    """Return the calibration of a simulated camera.

    Raises:
        ValueError: the cell has no such camera; the message lists those it has.
    """
    cell = _cell(robot)
    if camera not in cell:
        raise ValueError(f"the simulated {robot} cell has no camera {camera!r}; it has {', '.join(cell)}")
    return cell[camera]


def calibrations_of(file: str, robot: str, cameras: Iterable[str]) -> dict[str, CameraCalibration]:
    """What a calibration file says of each camera; `CELL` stands for those of the simulated cell, empty for none.

    Raises:
        ValueError: as `load_calibrations`, or the cell has no such camera.
    """
    if file == CELL:
        return {camera: camera_calibration(robot, camera) for camera in cameras}
    return load_calibrations(file) if file else {}


def camera_names(robot: str) -> tuple[str, ...]:
    """Names of the cameras of a simulated cell."""
    return tuple(_cell(robot))


def _cell(robot: str) -> dict[str, CameraCalibration]:
    known = EMBODIMENTS.get(robot)
    if known is None or known.family not in _cells():
        raise ValueError(f"no simulated cell for robot {robot!r}; there are cells for {', '.join(sorted(_cells()))}")
    cell = _cells()[known.family]
    if not isinstance(known, FrankaDroid):
        return cell
    prefix = known.arm.joint_prefix
    return {name: replace(camera, mount=camera.mount.replace("fr3", prefix)) for name, camera in cell.items()}
