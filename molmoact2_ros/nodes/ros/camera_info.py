"""CameraInfo messages: from a pinhole, from what a camera says of itself, from a calibration file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.source import Intrinsics

Matrix = NDArray[np.float64]


def set_pinhole(info: CameraInfo, width: int, height: int, k: Matrix) -> None:
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


def is_rectified(topic: str) -> bool:
    """Whether an image topic bears the name of a rectified image: `image_rect_color`, `rgb/color/rect/image`."""
    return bool({"rect", "rectified"} & set(re.split(r"[/_]", topic)))


def intrinsics_of(info: CameraInfo, width: int, height: int, rectified: bool) -> Intrinsics | None:
    """The optics of an image (height, width) that comes with `info`; None when it says that it is not calibrated.

    `info` describes the full sensor: its region of interest and binning lead to the image. Of a rectified image the
    matrix is P and there is no distortion.

    Raises:
        ValueError: `info` belongs to an image of another size.
    """
    k = np.reshape(np.asarray(info.p, dtype=np.float64), (3, 4))[:, :3] if rectified else np.reshape(info.k, (3, 3))
    if not k[0, 0] > 0.0:
        return None
    region, steps = info.roi, np.array([max(1, info.binning_x), max(1, info.binning_y)])
    full = np.array([region.width or info.width, region.height or info.height])
    if tuple(full // steps) != (width, height):
        raise ValueError(
            f"it is of {full[0] // steps[0]}x{full[1] // steps[1]} images, and the images are {width}x{height}; is it "
            "another camera's, or calibrated at another size?"
        )
    seen = np.array(k, dtype=np.float64)
    seen[:2, 2] -= (region.x_offset, region.y_offset)
    seen[:2] /= steps[:, None]
    d = (0.0,) * 5 if rectified else tuple(float(value) for value in info.d)
    model = "plumb_bob" if rectified else (info.distortion_model or "plumb_bob")
    return Intrinsics(width, height, tuple(float(value) for value in seen.ravel()), model, d)


def file_info(path: str, width: int, height: int, rectified: bool = False) -> CameraInfo:
    """From a file as ROS's camera calibrator and `set_camera_info` write it, or with a CameraInfo message's own names.

    Zeros (not calibrated) when `path` is empty. Of a `rectified` image the matrix is the file's P, without distortion.

    Raises:
        ValueError: the file cannot be read, lacks a key or a value, or was made at another image size.
    """
    info = CameraInfo(width=width, height=height)
    if not path:
        return info
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable calibration file: {error}") from None
    if isinstance(values, Mapping) and isinstance(values.get("camera_info"), Mapping):
        values = values["camera_info"]
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: no calibration as camera_calibration writes it: it holds no names with values")
    try:
        size = int(_named(values, "image_width", "width")), int(_named(values, "image_height", "height"))
        info.distortion_model = str(values["distortion_model"])
        info.d = _numbers(_named(values, "distortion_coefficients", "d"), "distortion_coefficients", None)
        info.k = _numbers(_named(values, "camera_matrix", "k"), "camera_matrix", 9)
        info.r = _numbers(_named(values, "rectification_matrix", "r"), "rectification_matrix", 9)
        info.p = _numbers(_named(values, "projection_matrix", "p"), "projection_matrix", 12)
    except KeyError as error:
        raise ValueError(f"{path}: no calibration as camera_calibration writes it: {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no calibration as camera_calibration writes it: {error}") from None
    if size != (width, height):
        raise ValueError(f"{path}: made at {size[0]}x{size[1]}, but the camera gives {width}x{height}; calibrate again")
    if rectified:
        set_pinhole(info, width, height, np.reshape(np.asarray(info.p), (3, 4))[:, :3])
        info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    return info


def _named(values: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in values:
            return values[name]
    raise KeyError(names[0])


def _numbers(found: Any, name: str, count: int | None) -> list[float]:
    out = [float(value) for value in (found["data"] if isinstance(found, Mapping) else found)]
    if (count is not None and len(out) != count) or not np.all(np.isfinite(out)):
        raise ValueError(f"{name} must have {count or 'some'} finite values, has {len(out)}: {out}")
    return out
