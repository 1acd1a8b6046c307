"""Is this camera telling the truth? Rate, age, size, black, frozen and doubled images, in words for the user."""

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
"""Images that differ by less on average are of one camera; flatter ones cannot be told apart."""

FROZEN, BLACK, DOUBLED = "frozen", "black", "doubled"


@dataclass(frozen=True)
class Limits:
    """What is expected of a camera: rate in Hz, sizes in pixels, times in seconds (`inf` switches a check off)."""

    rate_hz: float
    width: int
    height: int
    silence_s: float = 0.5
    age_s: float = 0.25
    ahead_s: float = 0.1
    """A stamp further in the future than this comes from a clock that is not in step."""
    black_level: float = 4.0
    """Mean of the sampled pixel values (0..255) below which an image counts as black."""
    black_s: float = 1.0
    """Black for longer than this is not published: a policy must not act on it."""
    frozen_s: float = 1.0
    """Real sensors have noise: the same pixels for longer than this mean that the driver repeats an image."""


@dataclass(frozen=True)
class Report:
    """State of one camera: level, what kind of trouble in one word, one line, and the figures behind it."""

    level: Level
    kind: str
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
        self._sample: RgbImage = np.zeros(0, np.uint8)
        self._changed_ns = 0
        self._bright_ns: int | None = None
        self._mean = 255.0
        self._fault = ""
        self._twins = ""
        self.content = ""
        """What is wrong with what the last image shows: FROZEN, BLACK or DOUBLED; empty when nothing is."""
        self.frames = 0
        self.refused = 0

    def admit(self, frame: Frame, now_ns: int) -> str:
        """Take note of a frame; return why it must not be published, or an empty string when it may be.

        Refused are a wrong size, a stamp that does not advance, a frame older than the limit or from the future, and
        images that are frozen or black for longer than their limits or those of another camera: whoever acts on the
        images then stops as for silence.
        """
        limits = self._limits
        height, width = frame.rgb.shape[:2]
        delay_s = (now_ns - frame.stamp_ns) * 1e-9
        name = f"camera {self._name!r}"
        self.content = ""
        if self._stamps and frame.stamp_ns == self._stamps[-1]:
            self._fault = ""
            self.refused += 1  # a source that was opened anew gives its last frame again: silence, and reported as such
            return f"{name}: the same frame again"
        if frame.rgb.dtype != np.uint8 or frame.rgb.shape != (limits.height, limits.width, 3):
            return self.refuse(
                f"image is {width}x{height} {frame.rgb.dtype}, expected {limits.width}x{limits.height} uint8 RGB; "
                "set the parameters width and height, or its entry in formats, to what it gives"
            )
        if self._stamps and frame.stamp_ns < self._stamps[-1]:
            back_ms = (self._stamps[-1] - frame.stamp_ns) * 1e-6
            if back_ms > 1e3:  # a clock that was set back for good is followed, once it has been reported
                self._stamps.clear()
                self._changed_ns = min(self._changed_ns, frame.stamp_ns)
                self._bright_ns = None
            return self.refuse(f"capture time went back by {back_ms:.1f} ms; has the clock been set?")
        if delay_s > limits.age_s:
            return self.refuse(
                f"frame is {delay_s:.2f} s old (limit {limits.age_s:.2f} s); is the machine overloaded, or its clock "
                "apart from the camera's?"
            )
        if -delay_s > limits.ahead_s:
            return self.refuse(
                f"stamps lie {-delay_s:.2f} s in the future (limit {limits.ahead_s:.2f} s); are the clocks in step?"
            )
        self._fault = ""
        self._look(frame)
        self._stamps.append(frame.stamp_ns)
        self._last = frame
        told = self._content()
        if told:
            self.refused += 1
            return f"{name}: {told}"
        self.frames += 1
        return ""

    def refuse(self, reason: str) -> str:
        """Take note of an image that cannot be published for `reason`; return it with the camera's name."""
        self.refused += 1
        self._fault = f"camera {self._name!r}: {reason}"
        return self._fault

    def doubled_by(self, others: str) -> None:
        """Images are those of the cameras `others`, in words, and not published until this is called with ''."""
        self._twins = others

    def _look(self, frame: Frame) -> None:
        sample = frame.rgb[::_SAMPLE, ::_SAMPLE].copy()
        if sample.shape != self._sample.shape or not np.array_equal(sample, self._sample):
            self._changed_ns = frame.stamp_ns
        self._sample = sample
        self._mean = float(sample.mean())
        if self._mean >= self._limits.black_level or self._bright_ns is None:
            self._bright_ns = frame.stamp_ns

    def _content(self) -> str:
        """What is wrong with what the camera shows, beyond the limits."""
        limits, newest_ns = self._limits, self._stamps[-1] if self._stamps else 0
        frozen_s = (newest_ns - self._changed_ns) * 1e-9
        black_s = (newest_ns - (self._bright_ns or newest_ns)) * 1e-9
        self.content = ""
        if not self._stamps:
            return ""
        if frozen_s > limits.frozen_s:
            self.content = FROZEN
            return (
                f"frozen, the image has not changed for {frozen_s:.1f} s (limit {limits.frozen_s:.1f} s); "
                "unplug and replug the camera"
            )
        if black_s > limits.black_s:
            self.content = BLACK
            return f"black for {black_s:.1f} s ({self._mean:.1f} of 255, limit {limits.black_s:.1f} s); is the cap on?"
        if self._twins:
            self.content = DOUBLED
            return f"shows the same image as {self._twins}; is one source named twice?"
        return ""

    @property
    def sample(self) -> RgbImage:
        """Every eighth pixel of the last image; empty before the first."""
        return self._sample

    def report(self, now_ns: int, opening_error: str = "") -> Report:
        """Return the state of the camera at `now_ns`; `opening_error` says why it is not open, if it is not."""
        limits = self._limits
        age_s = (now_ns - self._last.stamp_ns) * 1e-9 if self._last else float("inf")
        span_s = (self._stamps[-1] - self._stamps[0]) * 1e-9 if len(self._stamps) > 1 else 0.0
        rate = (len(self._stamps) - 1) / span_s if span_s > 0.0 else 0.0
        name = f"camera {self._name!r}"
        level, kind, silent = Level.ERROR, "", age_s > limits.silence_s
        if opening_error:
            kind, message = "not open", f"{name}: {opening_error}"
        elif silent and self._fault:
            kind, message = "refused", self._fault
        elif silent:
            since = f"no frame for {age_s:.2f} s" if self._last else "no frame yet"
            kind, message = "silent", f"{name}: {since} (limit {limits.silence_s:.2f} s); is the cable in?"
        elif told := self._content():
            kind, message = self.content, f"{name}: {told}"
        elif self._mean < limits.black_level:
            level, kind = Level.WARN, "dark"
            message = f"{name}: the image is black ({self._mean:.1f} of 255); is the cap on?"
        elif self._fault:
            level, kind, message = Level.WARN, "some refused", self._fault
        elif len(self._stamps) > 10 and rate < 0.8 * limits.rate_hz:
            level, kind = Level.WARN, "slow"
            message = f"{name}: {rate:.1f} frames a second, expected {limits.rate_hz:.0f}"
        else:
            level, message = Level.OK, f"{name}: {rate:.1f} frames a second"
        return Report(level, kind, message, rate, age_s, self.frames, self.refused)


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


class TwinWatch:
    """Cameras that have shown the same image at every look for longer than `limit_s`. One passing likeness is none."""

    def __init__(self, limit_s: float = 1.0) -> None:
        self._limit_s = limit_s
        self._since: dict[tuple[str, str], int] = {}

    def look(self, samples: Mapping[str, RgbImage], now_ns: int) -> dict[str, str]:
        """For each camera of `samples` the others that it is the same as, in words; empty for a camera of its own."""
        pairs = twins(samples)
        self._since = {pair: self._since.get(pair, now_ns) for pair in pairs}
        told: dict[str, list[str]] = {name: [] for name in samples}
        for (first, second), since in self._since.items():
            if (now_ns - since) * 1e-9 > self._limit_s:
                told[first].append(repr(second))
                told[second].append(repr(first))
        return {name: ", ".join(others) for name, others in told.items()}
