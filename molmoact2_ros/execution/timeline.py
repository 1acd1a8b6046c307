"""The present action chunk as a smooth motion in absolute time.

A chunk is sampled at `now`, so a late row is simply in the past. On a new chunk the difference to the present motion
(position, velocity and acceleration) is faded out by a quintic, so the sum is C2 like the chunk's curve; grippers
take the new target at once. Towards the end of the horizon the chunk's own time is slowed down, so that the arm
comes to rest on the path and within the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.chunk import Chunk
from molmoact2_ros.execution.curve import ChunkCurve, fade_duration, fade_out
from molmoact2_ros.execution.motion import Motion

Array = NDArray[np.float64]


class Order(Enum):
    """Where a chunk stands to those before it."""

    NEWER = "newer"
    REPEATED = "same stamp as the present chunk"
    OLDER = "older than the present chunk"
    OLD_EPOCH = "observed before the last arming, reset, task or stop"


class Timeline:
    """The chunk that is being executed, spliced to the motion before it.

    Args:
        blend_s: the shortest time in which a difference is faded out; a large one takes longer (`fade_duration`).
        slow_down_s: the last part of the horizon, in which the arm slows down to rest.
    """

    def __init__(self, limits: JointLimits, gripper_indices: Sequence[int], blend_s: float, slow_down_s: float) -> None:
        self._limits = limits
        self._grippers = list(gripper_indices)
        self._blend_s = blend_s
        self._slow_down_s = slow_down_s
        self._curve: ChunkCurve | None = None
        self._newest_ns: int | None = None
        self.epoch_ns = 0

    @property
    def chunk(self) -> Chunk | None:
        """The chunk being executed."""
        return None if self._curve is None else self._curve.chunk

    def order(self, stamp_ns: int) -> Order:
        """Tell whether a chunk with this stamp may replace the present one."""
        if stamp_ns < self.epoch_ns:
            return Order.OLD_EPOCH
        if self._newest_ns is None or stamp_ns > self._newest_ns:
            return Order.NEWER
        return Order.REPEATED if stamp_ns == self._newest_ns else Order.OLDER

    def drop(self, epoch_ns: int) -> None:
        """Forget the chunk; from now on only observations of `epoch_ns` or later count."""
        self._curve = None
        self._newest_ns = None
        self.epoch_ns = epoch_ns

    def finish(self) -> None:
        """Forget the chunk at the end of its horizon; a newer one of the same epoch goes on."""
        self._curve = None

    def splice(self, curve: ChunkCurve, at_ns: int, motion: Motion) -> None:
        """Go over to `curve` from the commanded `motion` at `at_ns`. The caller has asked `order` before."""
        chunk = curve.chunk
        self._curve = curve
        self._newest_ns = chunk.stamp_ns
        self._at_s = (at_ns - chunk.stamp_ns) * 1e-9
        self._end_s = len(chunk.rows) / chunk.rate_hz
        position, velocity, acceleration = self._on_curve(self._at_s)
        offsets = motion.position - position, motion.velocity - velocity, motion.acceleration - acceleration
        for offset in offsets:
            offset[self._grippers] = 0.0
        self._blend = fade_duration(*offsets, self._limits, self._blend_s)
        self._fade = fade_out(*offsets, self._blend)
        # A chunk adopted in its last moments still gets the time to fade out the difference to its last row.
        self._done_s = max(self._end_s, self._at_s + self._blend)

    def slowing(self, now_ns: int) -> bool:
        """True in the last part of the horizon, where the arm slows down because no newer chunk has come."""
        return self._curve is not None and self._since_stamp(now_ns) > self._end_s - self._slow_down_s

    def finished(self, now_ns: int) -> bool:
        """True when the chunk has nothing left to say."""
        return self._curve is None or self._since_stamp(now_ns) >= self._done_s

    def sample(self, now_ns: int, after_s: float = 0.0) -> Motion:
        """The wanted motion at `now_ns` + `after_s`; after the end of the chunk, rest where it ended.

        Raises:
            RuntimeError: no chunk is being executed.
        """
        if self._curve is None:
            raise RuntimeError("no chunk is being executed; ask `finished` first")
        t = self._since_stamp(now_ns) + after_s
        position, velocity, acceleration = self._on_curve(t)
        x = t - self._at_s
        if x < self._blend:
            x = max(x, 0.0)
            c0, c1, c2, c3, c4, c5 = self._fade
            position = position + c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * c5))))
            velocity = velocity + c1 + x * (2.0 * c2 + x * (3.0 * c3 + x * (4.0 * c4 + x * 5.0 * c5)))
            acceleration = acceleration + 2.0 * c2 + x * (6.0 * c3 + x * (12.0 * c4 + x * 20.0 * c5))
        return Motion(position, velocity, acceleration)

    def _since_stamp(self, now_ns: int) -> float:
        assert self._curve is not None
        return (now_ns - self._curve.chunk.stamp_ns) * 1e-9

    def _on_curve(self, t: float) -> tuple[Array, Array, Array]:
        """The chunk alone, at `t` s after its stamp, with its time slowed down towards the end."""
        assert self._curve is not None
        window = min(self._slow_down_s, self._end_s)
        x = (t - (self._end_s - window)) / window if window > 0.0 else 0.0
        if x <= 0.0:
            return self._curve.at(t)
        x = min(x, 1.0)
        pace = 1.0 - x**3 * (10.0 + x * (-15.0 + 6.0 * x))
        change = -30.0 * x**2 * (1.0 - x) ** 2 / window
        gone = x - x**4 * (2.5 + x * (-3.0 + x))
        position, velocity, acceleration = self._curve.at(self._end_s - window + gone * window)
        return position, velocity * pace, acceleration * pace**2 + velocity * change
