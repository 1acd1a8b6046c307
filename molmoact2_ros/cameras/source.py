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
class Frame:
    """One picture.

    Attributes:
        rgb: shape (height, width, 3), uint8.
        stamp_ns: when it was captured, ns.
    """

    rgb: Picture
    stamp_ns: int


class FrameSource(Protocol):
    """An open camera. One thread reads it."""

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame that was not returned yet, or None when none came within `timeout_s`."""

    def close(self) -> None:
        """Let go of the device; safe to call twice."""


class CameraError(RuntimeError):
    """A camera cannot be opened; the message says what to do."""


KINDS = "sim:<link>, v4l2:<device>, file:<video>"


def open_source(text: str, width: int, height: int, rate_hz: float, clock: Clock = time.time_ns) -> FrameSource:
    """Open the camera that `text` names: `sim:<link>`, `v4l2:/dev/v4l/by-path/...` or `file:/path.mp4`.

    Args:
        text: kind and address of the camera.
        width, height: picture size to ask the device for, pixels. A simulated camera and a file have their own.
        rate_hz: rate to ask the device for, and the rate at which a file is played.
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
            return FileSource(address, rate_hz, clock)
        return V4l2Source(address, width, height, rate_hz, clock)
    raise CameraError(f"camera source {text!r}: kind {kind!r} is unknown; it must be one of {KINDS}")
