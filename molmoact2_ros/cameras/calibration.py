"""Where a camera is and what it sees: the pinhole model of one camera, and the file that says it for a real cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

BOARD = "board"
"""The one name in a calibration file that is no camera's: the board that stays in the cell, for checks."""

_WIDEST = 5.0
"""No pinhole sees further from its axis, at distance 1."""


@dataclass(frozen=True)
class CameraCalibration:
    """A camera: a pinhole and the distortion of its lens.

    Attributes:
        width, height: image size, pixels.
        k: intrinsic matrix (3, 3), pixels.
        mount: the link the camera is fixed to: the robot's base link or one of its wrist links.
        pose: pose (4, 4) of the optical frame (z forward, x right, y down) in the mount link, m.
        d: distortion k1, k2, p1, p2, k3 (plumb_bob), (5,).
    """

    width: int
    height: int
    k: Array
    mount: str
    pose: Array
    d: Array = field(default_factory=lambda: np.zeros(5))

    @property
    def fovy_deg(self) -> float:
        """Vertical field of view, degrees."""
        return float(np.degrees(2.0 * np.arctan(0.5 * self.height / self.k[1, 1])))

    @property
    def widest(self) -> float:
        """Distance from the optical axis of what the furthest corner of the image shows, at distance 1, undistorted; or
        where the distortion's polynomial turns back before, beyond which it means nothing."""
        corners = np.array([[x, y] for x in (0.0, self.width) for y in (0.0, self.height)])
        furthest = np.max(np.linalg.norm((corners - self.k[:2, 2]) / np.diag(self.k)[:2], axis=1))
        away = np.linspace(0.0, _WIDEST, 1001)
        seen = distorted(np.stack([away, np.zeros_like(away)], axis=-1), np.where([1, 1, 0, 0, 1], self.d, 0.0))[:, 0]
        ends = np.flatnonzero((np.diff(seen) <= 0.0) | (seen[:-1] >= furthest))
        return float(away[ends[0]] if len(ends) else _WIDEST)


def distorted(points: Array, d: Array) -> Array:
    """Where the lens puts `points` (..., 2) of the plane at distance 1; `d` (..., 5) as `CameraCalibration.d`."""
    x, y = points[..., 0], points[..., 1]
    k1, k2, p1, p2, k3 = np.moveaxis(np.asarray(d, dtype=np.float64), -1, 0)
    square = x * x + y * y
    radial = 1.0 + square * (k1 + square * (k2 + square * k3))
    return np.stack(
        [
            x * radial + 2.0 * p1 * x * y + p2 * (square + 2.0 * x * x),
            y * radial + p1 * (square + 2.0 * y * y) + 2.0 * p2 * x * y,
        ],
        axis=-1,
    )


def undistorted(points: Array, d: Array) -> Array:
    """Inverse of `distorted` for points inside an image, by iteration."""
    points = np.asarray(points, dtype=np.float64)
    out = points.copy()
    for _ in range(20 if np.any(d) else 0):
        out = np.clip(out + points - distorted(out, d), -_WIDEST, _WIDEST)
    return out


def mount_poses(robot: Embodiment, mount: str, joints: Array | None) -> Array:
    """Poses (..., 4, 4) in the base frame of what a camera is mounted on, for `joints` (..., dof), ROS order.

    Raises:
        ValueError: `mount` is neither the base link nor a wrist link, or it moves and no joints were given.
    """
    if mount == robot.base_link:
        shape = () if joints is None else np.shape(joints)[:-1]
        return np.broadcast_to(np.eye(4), (*shape, 4, 4)).copy()
    if mount not in robot.wrist_links:
        raise ValueError(
            f"a camera of {robot.name} is mounted on {robot.base_link} or {' or '.join(robot.wrist_links)}, got "
            f"{mount!r}"
        )
    if joints is None:
        raise ValueError(f"a camera on {mount} moves with the arm: its pose needs the joint positions")
    chain, indices = robot.chains[robot.wrist_links.index(mount)]
    frames: Array = chain.frames(robot.checked(joints, "joint positions")[..., list(indices)])
    return frames[..., -2, :, :]


def read_calibration_file(path: str | Path) -> Mapping[str, Any]:
    """What a calibration file holds, by name.

    Raises:
        ValueError: it cannot be read, is no YAML, or holds no names with values.
    """
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable calibration file: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path}: a calibration file has a section for each camera; this holds {type(content).__name__}"
        )
    return content


def load_calibrations(path: str | Path) -> dict[str, CameraCalibration]:
    """Read where the cameras of a real cell are, from YAML.

    For each camera's name: `width`, `height`, `k` (9 values, row by row), `mount` (the robot's base link or a wrist
    link), the optical frame in the mount as `xyz` (m) and `wxyz` (quaternion), and `d`, the distortion k1, k2, p1, p2,
    k3, which may be left out. The section `board` is no camera.

    Raises:
        ValueError: the file cannot be read; a camera lacks a value or has too many or too few of it.
    """
    out: dict[str, CameraCalibration] = {}
    for name, values in read_calibration_file(path).items():
        if name == BOARD:
            continue
        try:
            k = np.asarray(values["k"], dtype=np.float64).reshape(3, 3)
            d = np.asarray(values.get("d", np.zeros(5)), dtype=np.float64).reshape(5)
            size = int(values["width"]), int(values["height"])
            out[name] = CameraCalibration(*size, k, str(values["mount"]), pose_in(values), d)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: camera {name!r} needs width, height, k, mount, xyz and wxyz: {error!r}"
            ) from None
    return out


def pose_in(values: Mapping[str, Any]) -> Array:
    """The pose (4, 4) that `xyz` (m) and `wxyz` (quaternion) of a section say.

    Raises:
        KeyError, TypeError, ValueError: one of them is missing, or no pose.
    """
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    w, x, y, z = (float(value) for value in values["wxyz"])
    return pose_of(Rotation.from_quat((x, y, z, w)), values["xyz"])
