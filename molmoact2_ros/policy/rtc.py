"""Real-time chunking, the part outside the model: which rows of the last chunk bind the next one, and how much.

The last chunk is a function of absolute time, and the next one is guided by its values at the next one's own row times:
no counters are shared with whoever plays the chunks. Rows that the last chunk does not reach have weight zero.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCHEDULES = ("zeros", "ones", "linear", "exp")
"""How the weight falls from the expected delay to the horizon: at once, at the horizon only, in a line, or faster."""


@dataclass(frozen=True)
class RTCOptions:
    """How chunks are guided.

    Attributes:
        enabled: guide at all.
        schedule: one of `SCHEDULES`.
        horizon: rows of the new chunk from which on nothing binds it.
        max_weight: bound of the guidance; the number of flow steps (10) puts bound rows exactly on the last chunk.
        percentile: of the latest latencies, taken as the expected delay, 0 to 100.
        window: how many latencies are remembered.
        max_delay_s: bound of the expected delay, s.
        max_deviation: the arm must be this near to the last chunk (share of a joint's training range, grippers aside):
            a chunk that nobody follows (disarmed, held, stopped) must not bind the next, or they would wander off
            without the arm.
    """

    enabled: bool = False
    schedule: str = "linear"
    horizon: int = 10
    max_weight: float = 10.0
    percentile: float = 80.0
    window: int = 20
    max_delay_s: float = 1.0
    max_deviation: float = 0.15

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown rtc schedule {self.schedule!r}; use {', '.join(SCHEDULES)}")
        if self.horizon < 1 or self.window < 1:
            raise ValueError(f"rtc horizon and window must be at least 1, got {self.horizon} and {self.window}")
        if not self.max_weight > 0.0 or not self.max_delay_s > 0.0:
            raise ValueError(f"rtc max_weight and max_delay_s must be positive: {self.max_weight}, {self.max_delay_s}")
        if not self.max_deviation > 0.0:
            raise ValueError(f"rtc max_deviation must be positive, got {self.max_deviation}")
        if not 0.0 <= self.percentile <= 100.0:
            raise ValueError(f"rtc percentile must lie in 0 to 100, got {self.percentile}")


@dataclass(frozen=True)
class Prefix:
    """What binds a chunk: `actions` (horizon, dof) in the checkpoint's units, `weights` (horizon,) in 0 .. 1, and the
    bound of the guidance. Rows of weight zero hold numbers that mean nothing. `delay_rows` are expected to be over
    when the chunk arrives."""

    actions: NDArray[np.float32]
    weights: NDArray[np.float32]
    max_weight: float
    delay_rows: int


class LatencyWindow:
    """The latest latencies, of which a percentile is what to expect; after `window` more one is forgotten."""

    def __init__(self, window: int, percentile: float, max_delay_s: float) -> None:
        self._latest: deque[float] = deque(maxlen=window)
        self._percentile, self._max_delay_s = percentile, max_delay_s

    def add(self, seconds: float) -> None:
        """Take one latency; a negative one (the clock was set back) is passed over."""
        if seconds >= 0.0 and math.isfinite(seconds):
            self._latest.append(seconds)

    def clear(self) -> None:
        """Forget all."""
        self._latest.clear()

    def expected_s(self) -> float | None:
        """What to expect of the next call, s, at most the bound; None before the first latency."""
        if not self._latest:
            return None
        return min(float(np.percentile(np.array(self._latest), self._percentile)), self._max_delay_s)


class ChunkGuide:
    """Keeps the last chunk and the latencies, and makes the prefix of the next chunk from them.

    Invariant: a prefix comes from the chunk published last, of the same task, which the arm follows, and from rows that
    it really has.

    Args:
        rate_hz: of the rows.
        ranges: (dof,) span of each joint in training, in the checkpoint's units; infinite for grippers, whose measured
            opening never reaches the target when they hold something.
    """

    def __init__(self, options: RTCOptions, rate_hz: float, ranges: NDArray[np.float64]) -> None:
        self.options = options
        self._ranges = ranges
        self._rate_hz = rate_hz
        self.latencies = LatencyWindow(options.window, options.percentile, options.max_delay_s)
        self._last: tuple[NDArray[np.float32], int, str] | None = None

    def reset(self) -> None:
        """Begin an episode: nothing is known."""
        self._last = None
        self.latencies.clear()

    def published(self, actions: NDArray[np.float32], stamp_ns: int, task: str, latency_s: float | None) -> None:
        """Keep the chunk `actions` (rows, dof), observed at `stamp_ns`, that took `latency_s` from then on; None where
        whoever asked for it will tell."""
        self._last = actions, stamp_ns, task
        if latency_s is not None:
            self.latencies.add(latency_s)

    def prefix(self, stamp_ns: int, task: str, rows: int, state: NDArray[np.float64]) -> Prefix | None:
        """What binds a chunk of `rows` rows observed at `stamp_ns`, with the joints at `state` (dof,).

        None where nothing does: the first chunk, another task, an observation that is older than the last one, an arm
        that is not where the last chunk wants it, or a last chunk that is over when the new one is expected.
        """
        expected_s = self.latencies.expected_s()
        if not self.options.enabled or self._last is None or expected_s is None:
            return None
        actions, last_ns, last_task = self._last
        ahead = (stamp_ns - last_ns) * 1e-9 * self._rate_hz
        if task != last_task or ahead < 0.0:
            return None
        here, _ = resampled(actions, max(ahead - 1.0, 0.0), 1)
        if np.max(np.abs(state - here[0]) / self._ranges) > self.options.max_deviation:
            return None
        actions, known = resampled(actions, ahead, rows)
        delay = math.ceil(expected_s * self._rate_hz)
        if known <= delay:
            return None
        # A horizon within the delay would bind only rows that are over when the chunk arrives.
        horizon = min(max(self.options.horizon, delay + 1), known)
        weights = prefix_weights(self.options.schedule, delay, horizon, rows)
        return Prefix(actions, weights, self.options.max_weight, delay)


def resampled(actions: NDArray[np.float32], ahead: float, rows: int) -> tuple[NDArray[np.float32], int]:
    """The chunk `actions` (n, dof) on a grid that begins `ahead` >= 0 rows later: (rows, dof), and how many rows it
    reaches. Between two rows it is a line, as far as its last row; the rows beyond hold its last row and do not count.
    """
    position = ahead + np.arange(rows)
    # A grid that is in step must not lose its last row to rounding.
    known = int(np.count_nonzero(position <= len(actions) - 1 + 1e-6))
    position = np.minimum(position, len(actions) - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, len(actions) - 1)
    part = (position - low)[:, None]
    return ((1.0 - part) * actions[low] + part * actions[high]).astype(np.float32), known


def prefix_weights(schedule: str, delay: int, horizon: int, rows: int) -> NDArray[np.float32]:
    """The weight of each of `rows` rows, as lerobot's `RTCProcessor` gives it: one for the first `delay`, zero from
    `horizon` on, and what `schedule` says between."""
    horizon = min(horizon, rows)
    delay = min(delay, horizon)
    weights = np.zeros(rows, np.float32)
    weights[:delay] = 1.0
    if schedule == "ones":
        weights[:horizon] = 1.0
    elif schedule in ("linear", "exp"):
        falling = np.linspace(1.0, 0.0, horizon - delay + 2)[1:-1]
        if schedule == "exp":
            falling = falling * np.expm1(falling) / (math.e - 1.0)
        weights[delay:horizon] = falling
    elif schedule != "zeros":
        raise ValueError(f"unknown rtc schedule {schedule!r}; use {', '.join(SCHEDULES)}")
    return weights
