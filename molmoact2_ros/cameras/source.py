"""What a camera is to this package: something that gives the newest picture and when it was taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Clock = Callable[[], int]
"""Returns the time in ns on the clock of the capture stamps (ROS time, which is system time on hardware)."""


@dataclass(frozen=True)
class Intrinsics:
    """What a camera says of its own optics: `k` row by row (9), distortion `model` by ROS's name with its `d`."""

    width: int
    height: int
    k: tuple[float, ...]
    model: str
    d: tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        rgb: shape (height, width, 3), uint8.
        stamp_ns: when it was captured, ns.
        depth: distance along the optical axis, m, aligned to `rgb`, (height, width), 0 unknown; None without depth.
        intrinsics: of `rgb`, where the camera knows them.
    """

    rgb: Picture
    stamp_ns: int
    depth: NDArray[np.float32] | None = None
    intrinsics: Intrinsics | None = None


@dataclass(frozen=True)
class Settings:
    """What is asked of a camera; a simulated one and a file have their own.

    Attributes:
        width, height: pixels. rate_hz: also the rate at which a file is played.
        depth: also give depth, where the camera can.
        exposure: fixed, in the camera's own unit (V4L2: 100 us; RealSense: us); 0 leaves it to the camera.
        white_balance: fixed, K; 0 leaves it to the camera.
    """

    width: int
    height: int
    rate_hz: float
    depth: bool = False
    exposure: float = 0.0
    white_balance: float = 0.0


class FrameSource(Protocol):
    """An open camera. One thread reads it."""

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame that was not returned yet, or None when none came within `timeout_s`."""

    def close(self) -> None:
        """Let go of the device; safe to call twice."""


class CameraError(RuntimeError):
    """A camera cannot be opened; the message says what to do."""


KINDS = "sim:<link>, v4l2:<device>, realsense:<serial or recording>, file:<video>"


def open_source(text: str, settings: Settings, clock: Clock = time.time_ns) -> FrameSource:
    """Open the camera that `text` names.

    Args:
        text: kind and address: `sim:<link>`, `v4l2:/dev/v4l/by-path/...`, `realsense:<serial>` or `file:/path.mp4`.
        settings: what to ask of the device.
        clock: time in ns for the stamps of devices that give none.

    Raises:
        CameraError: the kind is unknown or the camera cannot be opened.
    """
    kind, separator, address = text.partition(":")
    if not separator or not address:
        raise CameraError(f"camera source {text!r} must be one of {KINDS}")
    if kind == "sim":
        from molmoact2_ros.cameras.simulated import SimulatedSource

        return SimulatedSource(address)
    if kind in ("v4l2", "file"):
        from molmoact2_ros.cameras.video import FileSource, V4l2Source

        if kind == "file":
            return FileSource(address, settings.rate_hz, clock)
        return V4l2Source(address, settings, clock)
    if kind == "realsense":
        from molmoact2_ros.cameras.realsense import RealSenseSource

        return RealSenseSource(address, settings, clock)
    raise CameraError(f"camera source {text!r}: kind {kind!r} is unknown; it must be one of {KINDS}")
