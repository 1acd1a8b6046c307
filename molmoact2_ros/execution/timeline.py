"""The present action chunk as a smooth motion in absolute time.

A chunk is sampled at `now`, so a late row is simply in the past. On a new chunk the difference to the present motion
(position, velocity and acceleration) is faded out by a quintic, so the sum is C2 like the chunk's curve; grippers
take the new target at once. Around the end of the horizon the chunk's own time is slowed down, so that the arm comes
to rest on its last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.chunk import Chunk
from molmoact2_ros.execution.curve import (
    LONGEST_BLEND_S,
    SHARE,
    ChunkCurve,
    fade_duration,
    fade_out,
    share_needed,
)
from molmoact2_ros.execution.motion import Motion

Array = NDArray[np.float64]


class Order(Enum):
    """Where a chunk stands to those before it."""

    NEWER = "newer"
    REPEATED = "same stamp as the present chunk"
    OLDER = "older than the present chunk"
    OLD_EPOCH = "observed before the last arming, reset, task or stop"


@dataclass(frozen=True)
class Spliced:
    """A chunk's curve joined to the motion before it. Times are s after the chunk's stamp.

    Attributes:
        at_s: when it was joined on. end_s: where its own way ends. done_s: when nothing of it is left to do.
        slow_down_s: how long the arm slows down to rest, half of it before `end_s` and half after.
        fade: coefficients (6, dof), lowest power first, of the difference at `at_s`, gone after `blend_s`.
        ends_because: why it is followed only in part; empty when it is followed to its end.
    """

    curve: ChunkCurve
    at_s: float
    end_s: float
    done_s: float
    slow_down_s: float
    blend_s: float
    fade: Array
    ends_because: str = ""

    @property
    def left_s(self) -> float:
        """How long it moves the arm, from its adoption on."""
        return max(0.0, self.done_s - self.at_s)

    def since_origin(self, now_ns: int) -> float:
        """`now_ns` in s after the chunk's origin."""
        return (now_ns - self.curve.chunk.origin_ns) * 1e-9

    def sample(self, now_ns: int, after_s: Array | float = 0.0) -> Motion:
        """The wanted motion (..., dof) at `now_ns` + `after_s` (...); after the end of the chunk, at rest."""
        t = self.since_origin(now_ns) + np.asarray(after_s, dtype=np.float64)
        position, velocity, acceleration = on_curve(self.curve, t, self.end_s, self.slow_down_s)
        x = t - self.at_s
        if (x < self.blend_s).any():
            here = (x < self.blend_s)[..., None]
            x = np.maximum(x, 0.0)[..., None]
            c0, c1, c2, c3, c4, c5 = self.fade
            position = position + here * (c0 + x * (c1 + x * (c2 + x * (c3 + x * (c4 + x * c5)))))
            velocity = velocity + here * (c1 + x * (2.0 * c2 + x * (3.0 * c3 + x * (4.0 * c4 + x * 5.0 * c5))))
            acceleration = acceleration + here * (2.0 * c2 + x * (6.0 * c3 + x * (12.0 * c4 + x * 20.0 * c5)))
        return Motion(position, velocity, acceleration)


def on_curve(curve: ChunkCurve, t: Array, end_s: float, slow_down_s: float) -> tuple[Array, Array, Array]:
    """The chunk alone (..., dof), at `t` (...) s after its stamp.

    Its time is slowed down over `slow_down_s` around `end_s`: half of that on the way is all that is left by then, so
    the arm rests exactly where the way is at `end_s`.
    """
    begin_s = end_s - slow_down_s / 2.0
    if np.all(t <= begin_s):
        return curve.at(t)
    window = slow_down_s
    x = np.clip((t - begin_s) / window, 0.0, 1.0)
    pace = (1.0 - x**3 * (10.0 + x * (-15.0 + 6.0 * x)))[..., None]
    change = (-30.0 * x**2 * (1.0 - x) ** 2 / window)[..., None]
    gone = x - x**4 * (2.5 + x * (-3.0 + x))
    position, velocity, acceleration = curve.at(np.minimum(t, begin_s + gone * window))
    return position, velocity * pace, acceleration * pace**2 + velocity * change


class Timeline:
    """The chunk that is being executed.

    Args:
        blend_s: the shortest time in which a difference is faded out; a large one takes longer (`fade_duration`).
        slow_down_s: how long the arm slows down to rest around the end of the horizon.
    """

    def __init__(self, limits: JointLimits, gripper_indices: Sequence[int], blend_s: float, slow_down_s: float) -> None:
        self._limits = limits
        self._grippers = list(gripper_indices)
        self._arm = np.array([j for j in range(len(limits.lower)) if j not in self._grippers])
        self._arm_limits = JointLimits(
            *(getattr(limits, name)[self._arm] for name in ("lower", "upper", "velocity", "acceleration", "jerk"))
        )
        self._blend_s = blend_s
        self._slow_down_s = slow_down_s
        self._present: Spliced | None = None
        self._newest_ns: int | None = None
        self.epoch_ns = 0

    @property
    def chunk(self) -> Chunk | None:
        """The chunk being executed."""
        return None if self._present is None else self._present.curve.chunk

    @property
    def stretch(self) -> float:
        """How much longer than asked the slowest part of the chunk takes; 1 without one."""
        return 1.0 if self._present is None else self._present.curve.stretch

    @property
    def ends_because(self) -> str:
        """Why the chunk is followed only in part; empty when it is followed to its end."""
        return "" if self._present is None else self._present.ends_because

    def order(self, stamp_ns: int) -> Order:
        """Tell whether a chunk with this stamp may replace the present one."""
        if stamp_ns < self.epoch_ns:
            return Order.OLD_EPOCH
        if self._newest_ns is None or stamp_ns > self._newest_ns:
            return Order.NEWER
        return Order.REPEATED if stamp_ns == self._newest_ns else Order.OLDER

    def drop(self, epoch_ns: int) -> None:
        """Forget the chunk; from now on only observations of `epoch_ns` or later count."""
        self._present = None
        self._newest_ns = None
        self.epoch_ns = epoch_ns

    def finish(self) -> None:
        """Forget the chunk at the end of its horizon; a newer one of the same epoch goes on."""
        self._present = None

    def spliced(
        self, curve: ChunkCurve, at_ns: int, motion: Motion, end_ns: int | None = None, because: str = ""
    ) -> Spliced:
        """Join `curve` to the commanded `motion` at `at_ns`; nothing changes until `follow`.

        `end_ns`: come to rest where the chunk is by then although it goes on, `because` of this.
        """
        chunk = curve.chunk
        at_s = (at_ns - chunk.origin_ns) * 1e-9
        end_s = len(chunk.rows) / chunk.rate_hz
        slow_down_s = self._slow_down_s
        if end_ns is not None:
            end_s = min(end_s, (end_ns - chunk.origin_ns) * 1e-9)
        position, velocity, acceleration = on_curve(curve, np.asarray(at_s), end_s, slow_down_s)
        offsets = motion.position - position, motion.velocity - velocity, motion.acceleration - acceleration
        for offset in offsets:
            offset[self._grippers] = 0.0
        # What the chunk itself does not need of the limits is free for catching up with it.
        ahead: Array = np.linspace(at_s, at_s + LONGEST_BLEND_S, 17, dtype=np.float64)
        _, speeds, bends = on_curve(curve, ahead, end_s, slow_down_s)
        free = 0.9 - share_needed(
            speeds[:, self._arm], bends[:, self._arm], float(ahead[1] - ahead[0]), self._arm_limits
        )
        blend_s = fade_duration(*offsets, self._limits, self._blend_s, min(max(free, SHARE), 0.8))
        # A chunk adopted in its last moments still gets the time to fade out the difference to its last row.
        done_s = max(end_s + slow_down_s / 2.0, at_s + blend_s)
        return Spliced(curve, at_s, end_s, done_s, slow_down_s, blend_s, fade_out(*offsets, blend_s), because)

    def follow(self, spliced: Spliced) -> None:
        """Go over to `spliced`. The caller has asked `order` before."""
        self._present = spliced
        self._newest_ns = spliced.curve.chunk.stamp_ns

    def slowing(self, now_ns: int) -> bool:
        """True at the end of the horizon, where the arm slows down because no newer chunk has come."""
        present = self._present
        return present is not None and present.since_origin(now_ns) > present.end_s - present.slow_down_s / 2.0

    def finished(self, now_ns: int) -> bool:
        """True when the chunk has nothing left to say."""
        return self._present is None or self._present.since_origin(now_ns) >= self._present.done_s

    def left_from(self, now_ns: int) -> float:
        """How long the chunk still moves the arm, s."""
        return 0.0 if self._present is None else max(0.0, self._present.done_s - self._present.since_origin(now_ns))

    def sample(self, now_ns: int, after_s: Array | float = 0.0) -> Motion:
        """The wanted motion (..., dof) at `now_ns` + `after_s` (...).

        Raises:
            RuntimeError: no chunk is being executed.
        """
        if self._present is None:
            raise RuntimeError("no chunk is being executed; ask `finished` first")
        return self._present.sample(now_ns, after_s)
