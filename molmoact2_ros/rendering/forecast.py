"""What chunks say of the time to come, the newest beside those before it, and what came of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.rendering.projection import TipPath

Array = NDArray[np.float64]

CHUNKS = 6
"""Chunks that are compared."""
EXECUTED_S = 3.0
"""How long the way that the tips have come is shown."""
STEP_S = 1.0 / 30.0
"""Tips that were closer in time than this are one point of that way."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """A chunk as it is drawn.

    Attributes:
        stamp_ns: of its observation. times_s: of its rows after it, (rows,).
        paths: of the tips, one an arm. latency_s: from observation to its arrival.
    """

    stamp_ns: int
    times_s: Array
    paths: tuple[TipPath, ...]
    latency_s: float

    @property
    def end_ns(self) -> int:
        """Time of its last row."""
        return self.stamp_ns + round(self.times_s[-1] * 1e9)

    def row_at(self, now_ns: int) -> float | None:
        """Row whose time is `now_ns`, or None when the horizon is over."""
        if now_ns > self.end_ns:
            return None
        return float(np.interp((now_ns - self.stamp_ns) * 1e-9, self.times_s, np.arange(len(self.times_s))))

    def tips_at(self, times_ns: Array) -> Array:
        """Tips (arms, times, 3) at `times_ns` (times,), m; NaN outside the horizon."""
        elapsed = (np.asarray(times_ns, np.float64) - self.stamp_ns) * 1e-9
        return np.array(
            [
                np.stack(
                    [np.interp(elapsed, self.times_s, axis, left=np.nan, right=np.nan) for axis in path.points.T], -1
                )
                for path in self.paths
            ]
        )


class Forecasts:
    """The newest chunk and those before it that still say something."""

    def __init__(self) -> None:
        self._chunks: deque[Forecast] = deque(maxlen=CHUNKS)

    @property
    def newest(self) -> Forecast | None:
        """The chunk that came last."""
        return self._chunks[-1] if self._chunks else None

    def add(self, chunk: Forecast) -> None:
        """Take a chunk; what it does not go on from (a jump back in time) is forgotten."""
        if self._chunks and chunk.stamp_ns < self._chunks[-1].stamp_ns:
            self.clear()
        self._chunks.append(chunk)

    def clear(self) -> None:
        """Forget all: a new task, a chunk that could not be read."""
        self._chunks.clear()

    def earlier(self, now_ns: int) -> list[tuple[float, tuple[Array, ...]]]:
        """Of each chunk before the newest the part after `now_ns`: how fresh it is, 0 to 1, and an arm's tips (n, 3),
        m. The oldest first; a chunk that has nothing left is left out."""
        found = []
        chunks = list(self._chunks)[:-1]
        for i, chunk in enumerate(chunks):
            row = chunk.row_at(now_ns)
            if row is not None and int(np.ceil(row)) < len(chunk.times_s) - 1:
                first = int(np.ceil(row))
                found.append(((i + 1) / (len(chunks) + 1), tuple(path.points[first:] for path in chunk.paths)))
        return found

    def spread(self) -> Array | None:
        """How far apart the chunks are at each row of the newest: root mean square distance of the tips from their
        middle, (arms, rows), m; NaN where the newest is alone. None without a chunk."""
        newest = self.newest
        if newest is None:
            return None
        times = newest.stamp_ns + newest.times_s * 1e9
        tips = np.array([chunk.tips_at(times) for chunk in self._chunks])  # (chunks, arms, rows, 3)
        there = np.isfinite(tips[..., 0])
        count = there.sum(axis=0)
        known = np.where(there[..., None], tips, 0.0)
        middle = known.sum(axis=0) / np.maximum(count, 1)[..., None]
        square = np.where(there, np.sum((known - middle) ** 2, axis=-1), 0.0).sum(axis=0) / np.maximum(count, 1)
        return np.where(count > 1, np.sqrt(square), np.nan)


class Executed:
    """The way that the tips have come in the last `EXECUTED_S`."""

    def __init__(self) -> None:
        self._tips: deque[tuple[int, Array]] = deque()

    def add(self, stamp_ns: int, tips: Array) -> None:
        """Take the tips (arms, 3), m, measured at `stamp_ns`."""
        if self._tips and stamp_ns < self._tips[-1][0]:
            self._tips.clear()
        self._tips.append((stamp_ns, tips))
        while stamp_ns - self._tips[0][0] > EXECUTED_S * 1e9:
            self._tips.popleft()

    def due(self, stamp_ns: int) -> bool:
        """Whether a reading of `stamp_ns` would be a new point."""
        return not self._tips or abs(stamp_ns - self._tips[-1][0]) >= STEP_S * 1e9

    def clear(self) -> None:
        """Forget all."""
        self._tips.clear()

    def ways(self) -> tuple[Array, ...]:
        """The way of each arm's tip, (n, 3), m, the oldest first; empty without readings."""
        if not self._tips:
            return ()
        tips = np.array([tips for _, tips in self._tips])
        return tuple(tips[:, arm] for arm in range(tips.shape[1]))


def tube(points: Array, radii: Array, sides: int = 8) -> Array:
    """Triangles (n, 3, 3) of a tube around `points` (rows, 3) of `radii` (rows,), m; NaN leaves a gap."""
    points, radii = np.asarray(points, np.float64), np.asarray(radii, np.float64)
    if len(points) < 2:
        return np.zeros((0, 3, 3))
    along = np.gradient(points, axis=0)
    lengths = np.linalg.norm(along, axis=1, keepdims=True)
    along = np.where(lengths > 1e-9, along / np.maximum(lengths, 1e-9), [0.0, 0.0, 1.0])
    # Any direction that is not along the path begins the ring.
    beside = np.where(np.abs(along[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(along, beside)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angles = np.linspace(0.0, 2.0 * np.pi, sides, endpoint=False)
    ring = np.cos(angles)[None, :, None] * first[:, None] + np.sin(angles)[None, :, None] * second[:, None]
    rings = points[:, None] + radii[:, None, None] * ring
    near, far = rings[:-1], rings[1:]
    near_next, far_next = np.roll(near, -1, axis=1), np.roll(far, -1, axis=1)
    triangles = np.concatenate(
        [np.stack([near, far, far_next], axis=2), np.stack([near, far_next, near_next], axis=2)], axis=1
    ).reshape(-1, 3, 3)
    return np.asarray(triangles[np.isfinite(triangles).all(axis=(1, 2))])
