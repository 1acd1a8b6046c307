"""Where a camera is and what it sees: the pinhole model of one camera, and the file that says it for a real cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CameraCalibration:
    """An ideal pinhole camera.

    Attributes:
        width, height: image size, pixels.
        k: intrinsic matrix (3, 3), pixels.
        mount: the link the camera is fixed to: the robot's base link or one of its wrist links.
        pose: pose (4, 4) of the optical frame (z forward, x right, y down) in the mount link, m.
    """

    width: int
    height: int
    k: Array
    mount: str
    pose: Array

    @property
    def fovy_deg(self) -> float:
        """Vertical field of view, degrees."""
        return float(np.degrees(2.0 * np.arctan(0.5 * self.height / self.k[1, 1])))


def load_calibrations(path: str | Path) -> dict[str, CameraCalibration]:
    """Read where the cameras of a real cell are, from YAML.

    For each camera's name: `width`, `height`, `k` (9 values, row by row), `mount` (the robot's base link or a wrist
    link), and the optical frame in the mount as `xyz` (m) and `wxyz` (quaternion).

    Raises:
        ValueError: a camera lacks a value or has too many or too few of it.
    """
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    out: dict[str, CameraCalibration] = {}
    for name, values in (yaml.safe_load(Path(path).expanduser().read_text()) or {}).items():
        try:
            w, x, y, z = (float(value) for value in values["wxyz"])
            pose = pose_of(Rotation.from_quat((x, y, z, w)), values["xyz"])
            k = np.asarray(values["k"], dtype=np.float64).reshape(3, 3)
            out[name] = CameraCalibration(int(values["width"]), int(values["height"]), k, str(values["mount"]), pose)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: camera {name!r} needs width, height, k, mount, xyz and wxyz: {error!r}"
            ) from None
    return out
