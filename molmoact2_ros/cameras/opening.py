"""Opens the camera that a text such as `v4l2:/dev/video0` names."""

from __future__ import annotations

import time

from molmoact2_ros.cameras.realsense import RealSenseSource
from molmoact2_ros.cameras.simulated import SimulatedSource
from molmoact2_ros.cameras.source import CameraError, CameraSettings, Clock, FrameSource
from molmoact2_ros.cameras.video import FileSource, V4l2Source

KINDS = "sim:<link>, v4l2:<device>, realsense:<serial or recording>, file:<video>"


def open_source(text: str, settings: CameraSettings, clock: Clock = time.time_ns) -> FrameSource:
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
        return SimulatedSource(address)
    if kind == "file":
        return FileSource(address, settings.rate_hz, clock)
    if kind == "v4l2":
        return V4l2Source(address, settings, clock)
    if kind == "realsense":
        return RealSenseSource(address, settings, clock)
    raise CameraError(f"camera source {text!r}: kind {kind!r} is unknown; it must be one of {KINDS}")
