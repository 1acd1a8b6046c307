"""Parameters of the camera node."""

from __future__ import annotations

import math
import re

from molmoact2_ros.nodes.ros.parameters import Parameter

_FORMAT = re.compile(r"(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?")

PARAMETERS = (
    Parameter("names", ["front", "wrist"], "Names of the cameras; topics are cameras/<name>/..."),
    Parameter(
        "sources",
        [""],
        "Where images come from: sim:<link>, v4l2:<device>, realsense:<serial>, topic:<topic>, file:<video>.",
    ),
    Parameter("calibrations", [""], "Calibration file of each real camera; empty: not calibrated."),
    Parameter("width", 640, "Image width of cameras that are not simulated, pixels.", 16, 4096),
    Parameter("height", 480, "Image height of cameras that are not simulated, pixels.", 16, 4096),
    Parameter("rate_hz", 30.0, "Rate asked of the cameras, Hz.", 1.0, 240.0),
    Parameter("formats", [""], "Size and rate of each camera, such as 1280x720@15; empty: width, height, rate_hz."),
    Parameter("max_age_s", 0.25, "Older images are not published, s.", 0.01, 10.0),
    Parameter("silence_s", 0.5, "Silence after which a camera is reported, s.", 0.05, 10.0),
    Parameter("frozen_s", 1.0, "The same image for longer is not published, s; sim: and file: may; 0: off.", 0.0, 60.0),
    Parameter("black_s", 1.0, "Black images for longer than this are not published, s; 0: off.", 0.0, 60.0),
    Parameter("doubled_s", 1.0, "Cameras with the same image for longer are not published, s; 0: off.", 0.0, 60.0),
    Parameter("reopen_s", 1.0, "Silence after which a camera is opened anew, time between tries, s.", 0.1, 60.0),
    Parameter("depth", False, "Also publish the depth of RealSense cameras, aligned to the image, 32FC1 in m."),
    Parameter("exposures_us", [0.0], "Fixed exposure of each camera, or of all, us; 0: its own choice."),
    Parameter("white_balances_k", [0.0], "Fixed white balance of each camera, or of all, K; 0: its own choice."),
    Parameter("jpeg_quality", 0, "Quality of image_raw/compressed; 0 publishes none.", 0, 100),
)


def image_format(text: str, width: int, height: int, rate_hz: float) -> tuple[int, int, float]:
    """Width, height and rate that `text` such as `1280x720@15` says; what it leaves out is as given.

    Raises:
        ValueError: the text is of another form.
    """
    if not text:
        return width, height, rate_hz
    found = _FORMAT.fullmatch(text)
    if not found:
        raise ValueError(f"parameter formats: {text!r} must be like 1280x720@15, or empty")
    return int(found[1]), int(found[2]), float(found[3] or rate_hz)


def limit_of(seconds: float) -> float:
    """A limit as a parameter says it, s; 0 switches it off."""
    return seconds if seconds > 0.0 else math.inf
