"""Images and patience for the tests of cameras."""

import time

import numpy as np

from molmoact2_ros.cameras.health import Limits
from molmoact2_ros.cameras.source import CameraSettings

SECOND = 1_000_000_000
SETTINGS = CameraSettings(32, 24, 30.0)
LIMITS = Limits(rate_hz=10.0, width=32, height=24)
RANDOM = np.random.default_rng(7)


def picture(value: int | None = None) -> np.ndarray:
    if value is not None:
        return np.full((24, 32, 3), value, np.uint8)
    return RANDOM.integers(0, 255, (24, 32, 3), np.uint8)


def eventually(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
