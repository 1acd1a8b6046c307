"""What a camera is to this package: something that gives the newest image and when it was taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]
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
    """One image.

    Attributes:
        rgb: shape (height, width, 3), uint8.
        stamp_ns: when it was captured, ns.
        depth: distance along the optical axis, m, aligned to `rgb`, (height, width), 0 unknown; None without depth.
        intrinsics: of `rgb`, where the camera knows them.
    """

    rgb: RgbImage
    stamp_ns: int
    depth: NDArray[np.float32] | None = None
    intrinsics: Intrinsics | None = None


@dataclass(frozen=True)
class CameraSettings:
    """What is asked of a camera; a simulated one and a file have their own.

    Attributes:
        width, height: pixels. rate_hz: also the rate at which a file is played.
        depth: also give depth, where the camera can.
        exposure_us: fixed, us, whatever unit the camera counts in; 0 leaves it to the camera.
        white_balance_k: fixed, K; 0 leaves it to the camera.
    """

    width: int
    height: int
    rate_hz: float
    depth: bool = False
    exposure_us: float = 0.0
    white_balance_k: float = 0.0


class FrameSource(Protocol):
    """An open camera. One thread reads it."""

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame that was not returned yet, or None when none came within `timeout_s`."""

    def close(self) -> None:
        """Let go of the device; safe to call twice."""


class CameraError(RuntimeError):
    """A camera cannot be opened; the message says what to do."""


class BadImageError(CameraError):
    """One image cannot be used; the next may be good, so that the camera stays open."""
