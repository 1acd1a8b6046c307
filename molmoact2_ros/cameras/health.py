"""Is this camera telling the truth? Rate, age, size, black and frozen images, in words for the user."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from molmoact2_ros.cameras.source import Frame, RgbImage
from molmoact2_ros.diagnostics import Level

_SAMPLE = 8
"""Every eighth pixel in both directions tells black and frozen images well enough."""


_SAME_GREY, _FLAT_GREY = 2.0, 4.0
"""Pictures that differ by less on average are of one camera; flatter ones cannot be told apart."""


@dataclass(frozen=True)
class Limits:
    """What is expected of a camera: rate in Hz, sizes in pixels, times in seconds."""

    rate_hz: float
    width: int
    height: int
    silence_s: float = 0.5
    age_s: float = 0.25
    black_level: float = 4.0
    """Mean of the sampled pixel values (0..255) below which an image counts as black."""
    frozen_s: float = 1.0
    """Real sensors have noise: the same pixels for this long means that the driver repeats an image."""


@dataclass(frozen=True)
class Report:
    """State of one camera: level, one line, and the figures behind it."""

    level: Level
    message: str
    rate_hz: float
    age_s: float
    frames: int
    refused: int


class CameraHealth:
    """Watches the frames of one camera. Not thread-safe: frames and reports come from one thread, or under a lock."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name = name
        self._limits = limits
        self._stamps: deque[int] = deque(maxlen=31)
        self._last: Frame | None = None
        self._arrived_ns = 0
        self._delay_s = 0.0
        self._sample: RgbImage = np.zeros(0, np.uint8)
        self._changed_ns = 0
        self._mean = 255.0
        self._fault = ""
        self.frames = 0
        self.refused = 0

    def admit(self, frame: Frame, now_ns: int) -> str:
        """Take note of a frame; return why it must not be published, or an empty string when it may be.

        A wrong size, a stamp that does not advance and a frame older than the limit are refused. Black and frozen
        images pass (a dark room is no fault of the camera) and show in `report`.
        """
        limits = self._limits
        height, width = frame.rgb.shape[:2]
        delay_s = (now_ns - frame.stamp_ns) * 1e-9
        self._fault = ""
        if self._stamps and frame.stamp_ns == self._stamps[-1]:
            self.refused += 1  # a source that was opened anew gives its last frame again: silence, and reported as such
            return f"camera {self._name!r}: the same frame again"
        if frame.rgb.dtype != np.uint8 or frame.rgb.shape != (limits.height, limits.width, 3):
            self._fault = (
                f"camera {self._name!r}: image is {width}x{height} {frame.rgb.dtype}, expected "
                f"{limits.width}x{limits.height} uint8 RGB; set the parameters width and height to what it gives"
            )
        elif self._stamps and frame.stamp_ns < self._stamps[-1]:
            back_ms = (self._stamps[-1] - frame.stamp_ns) * 1e-6
            self._fault = f"camera {self._name!r}: capture time went back by {back_ms:.1f} ms; has the clock been set?"
            if back_ms > 1e3:  # a clock that was set back for good is followed, once it has been reported
                self._stamps.clear()
        elif delay_s > limits.age_s:
            self._fault = (
                f"camera {self._name!r}: frame is {delay_s:.2f} s old (limit {limits.age_s:.2f} s); "
                "is the machine overloaded, or its clock apart from the camera's?"
            )
        if self._fault:
            self.refused += 1
            return self._fault
        sample = frame.rgb[::_SAMPLE, ::_SAMPLE].copy()
        if sample.shape != self._sample.shape or not np.array_equal(sample, self._sample):
            self._changed_ns = frame.stamp_ns
        self._sample = sample
        self._mean = float(sample.mean())
        self._delay_s = delay_s
        self._stamps.append(frame.stamp_ns)
        self._last, self._arrived_ns = frame, now_ns
        self.frames += 1
        return ""

    @property
    def sample(self) -> RgbImage:
        """Every eighth pixel of the last image that was admitted; empty before the first."""
        return self._sample

    def report(self, now_ns: int, opening_error: str = "") -> Report:
        """Return the state of the camera at `now_ns`; `opening_error` says why it is not open, if it is not."""
        limits = self._limits
        age_s = (now_ns - self._last.stamp_ns) * 1e-9 if self._last else float("inf")
        span_s = (self._stamps[-1] - self._stamps[0]) * 1e-9 if len(self._stamps) > 1 else 0.0
        rate = (len(self._stamps) - 1) / span_s if span_s > 0.0 else 0.0
        name = f"camera {self._name!r}"
        frozen_s = (self._stamps[-1] - self._changed_ns) * 1e-9 if self._stamps else 0.0
        if opening_error:
            level, message = Level.ERROR, f"{name}: {opening_error}"
        elif self._fault and age_s > limits.silence_s:
            level, message = Level.ERROR, self._fault
        elif age_s > limits.silence_s:
            since = f"no frame for {age_s:.2f} s" if self._last else "no frame yet"
            level, message = Level.ERROR, f"{name}: {since} (limit {limits.silence_s:.2f} s); is the cable in?"
        elif frozen_s > limits.frozen_s:
            level = Level.ERROR
            message = f"{name}: the image has not changed for {frozen_s:.1f} s; unplug and replug the camera"
        elif self._mean < limits.black_level:
            level, message = Level.WARN, f"{name}: the image is black ({self._mean:.1f} of 255); is the cap on?"
        elif self._fault:
            level, message = Level.WARN, self._fault
        elif len(self._stamps) > 10 and rate < 0.8 * limits.rate_hz:
            level, message = Level.WARN, f"{name}: {rate:.1f} frames a second, expected {limits.rate_hz:.0f}"
        else:
            level, message = Level.OK, f"{name}: {rate:.1f} frames a second"
        return Report(level, message, rate, age_s, self.frames, self.refused)


def twins(samples: Mapping[str, RgbImage]) -> list[tuple[str, str]]:
    """Return the pairs of cameras that show the same image: one camera opened twice, or a source named twice.

    `samples` holds one small image a camera, as `CameraHealth.sample` gives it. Flat images (a dark room) and such
    of different sizes are not compared.
    """
    pairs = []
    names = sorted(samples)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b = (samples[name].astype(np.float32) for name in (first, second))
            if a.size == 0 or a.shape != b.shape or min(float(a.std()), float(b.std())) < _FLAT_GREY:
                continue
            if float(np.abs(a - b).mean()) < _SAME_GREY:
                pairs.append((first, second))
    return pairs
