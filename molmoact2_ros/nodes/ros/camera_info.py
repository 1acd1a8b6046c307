"""CameraInfo messages: from a pinhole, from what a camera says of itself, from a calibration file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.source import Intrinsics


def set_pinhole(info: CameraInfo, width: int, height: int, k: NDArray[np.float64]) -> None:
    """Make `info` that of an unrectified camera with the intrinsic matrix `k` (3, 3)."""
    info.width, info.height = width, height
    info.k = [float(value) for value in np.ravel(k)]
    info.r = [float(value) for value in np.eye(3).ravel()]
    info.p = [float(value) for value in np.hstack([np.reshape(k, (3, 3)), np.zeros((3, 1))]).ravel()]


def pinhole_info(calibration: CameraCalibration) -> CameraInfo:
    """A pinhole without distortion."""
    info = CameraInfo(distortion_model="plumb_bob", d=[0.0] * 5)
    set_pinhole(info, calibration.width, calibration.height, calibration.k)
    return info


def fill_info(info: CameraInfo, found: Intrinsics) -> None:
    """Put into `info` what the camera itself says of its optics."""
    set_pinhole(info, found.width, found.height, np.reshape(found.k, (3, 3)))
    info.distortion_model, info.d = found.model, list(found.d)


def depth_info(calibration: CameraCalibration, width: int, height: int, header: Header) -> CameraInfo:
    """Of a depth image (height, width) that covers the whole view of the camera, squashed."""
    info = CameraInfo(header=header, distortion_model="plumb_bob", d=[0.0] * 5)
    squashed = np.diag([width / calibration.width, height / calibration.height, 1.0]) @ np.asarray(calibration.k)
    set_pinhole(info, width, height, squashed)
    return info


def file_info(path: str, width: int, height: int) -> CameraInfo:
    """From a file as ROS's camera calibrator writes it; zeros (not calibrated) when `path` is empty.

    Raises:
        ValueError: the file lacks a key, or was made at another image size.
    """
    info = CameraInfo(width=width, height=height)
    if not path:
        return info
    values = yaml.safe_load(Path(path).expanduser().read_text())
    try:
        size = int(values["image_width"]), int(values["image_height"])
        info.distortion_model = str(values["distortion_model"])
        info.d = [float(v) for v in values["distortion_coefficients"]["data"]]
        info.k = [float(v) for v in values["camera_matrix"]["data"]]
        info.r = [float(v) for v in values["rectification_matrix"]["data"]]
        info.p = [float(v) for v in values["projection_matrix"]["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no calibration as camera_calibration writes it: {error} is missing") from None
    if size != (width, height):
        raise ValueError(f"{path}: made at {size[0]}x{size[1]}, but the camera gives {width}x{height}; calibrate again")
    return info
