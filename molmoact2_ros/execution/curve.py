"""From the rows of a chunk to a curve that the arm can follow.

Rows come with noise of a few milliradians; taken literally at 30 Hz that is far more jerk than an arm may have, and
a limiter that has to cut it lags and saws. So a curve through rows that are too rough is fitted to rows smoothed
just enough: the least smoothing, of a fixed ladder, with which the curve keeps to its share of the acceleration and
jerk limits. What is too fast even so is passed more slowly, on the same way, with one time scale an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.chunk import Chunk
from molmoact2_ros.execution.safe_set import VelocityBounds

Array = NDArray[np.float64]

SMOOTHING = (0.0, 0.03, 0.3, 3.0, 30.0, 300.0, 3000.0)
"""Weights of the squared third differences against the squared changes of the rows; 3000 passes 1.2 Hz at 30 rows/s."""
SHARE = 0.5
"""Share of the acceleration and jerk limits that a chunk may need; the rest is for the fade and for catching up."""
VELOCITY_SHARE = 0.9
"""Share of the velocity limit that a chunk may need."""
PACE_SLACK = 0.01
ATTEMPTS = 12
"""So often is a chunk that is too fast refitted with longer intervals; the limiter deals with what is left."""
LONGEST_BLEND_S = 0.8


@lru_cache(maxsize=32)
def _smoothers(count: int) -> Array:
    """Matrices (len(SMOOTHING), count, count) that smooth `count` rows. Lines and parabolas pass through unchanged."""
    if count < 4:
        return np.broadcast_to(np.eye(count), (len(SMOOTHING), count, count))
    third = np.diff(np.eye(count), n=3, axis=0)
    penalty = third.T @ third
    return np.stack([np.linalg.inv(np.eye(count) + weight * penalty) for weight in SMOOTHING])


@dataclass(frozen=True)
class Piece:
    """Piecewise cubics of the joints of indices `joints` (n,).

    `coefficients` (4, h - 1, n), highest power first, count from `knots` (h,), s after the chunk's stamp.
    """

    joints: NDArray[np.int_]
    knots: Array
    coefficients: Array

    def at(self, t: Array) -> tuple[Array, Array, Array]:
        """Position, velocity, acceleration (..., n) at `t` (...); before the first knot a straight line."""
        first = self.knots[0]
        before = np.minimum(0.0, t - first)
        t = np.maximum(t, first)
        i = np.minimum(np.searchsorted(self.knots, t, side="right") - 1, self.coefficients.shape[1] - 1)
        x, before = (t - self.knots[i])[..., None], before[..., None]
        c3, c2, c1, c0 = self.coefficients[:, i]
        velocity = c1 + x * (2.0 * c2 + 3.0 * x * c3)
        return c0 + x * (c1 + x * (c2 + x * c3)) + before * velocity, velocity, 2.0 * c2 + 6.0 * x * c3


@dataclass(frozen=True)
class ChunkCurve:
    """A chunk as piecewise cubics, in as many `pieces` as there are time scales; a chunk of one row is constant.

    Arm joints follow the natural cubic spline (C2), grippers straight lines between their rows.

    Attributes:
        smoothing: the weight of `SMOOTHING` that was needed.
        stretch: how much longer than asked the slowest interval of the slowest arm takes; 1 when nothing was too fast.
    """

    chunk: Chunk
    pieces: tuple[Piece, ...]
    smoothing: float = 0.0
    stretch: float = 1.0

    @staticmethod
    def of(
        chunk: Chunk,
        limits: JointLimits,
        gripper_indices: Sequence[int],
        arms: Sequence[slice] | None = None,
        bounds: VelocityBounds | None = None,
        from_s: float = 0.0,
    ) -> ChunkCurve:
        """Fit the curve; grippers (`gripper_indices`) are neither smoothed nor rounded.

        An arm of `arms` (default: all other joints are one arm) that would be too fast from `from_s` s after the stamp
        on goes the same way more slowly. `bounds`: velocity limits that depend on the position.
        """
        rows = chunk.rows
        count, dof = rows.shape
        knots = (np.arange(count) + 1) / chunk.rate_hz
        everything = np.arange(dof)
        if count == 1:
            constant = np.concatenate((np.zeros((3, 1, dof)), rows[None]), axis=0)
            return ChunkCurve(chunk, (Piece(everything, knots, constant),))
        arm = np.array([j for j in range(dof) if j not in gripper_indices])
        candidates = np.moveaxis(_smoothers(count) @ rows[:, arm], 0, 1)
        splines = CubicSpline(knots, candidates, bc_type="natural").c
        # The second derivative of a cubic spline is largest at a knot, the third is constant between two.
        bends = np.abs(2.0 * splines[1]).max(axis=0) <= SHARE * limits.acceleration[arm]
        jerks = np.abs(6.0 * splines[0]).max(axis=0) <= SHARE * limits.jerk[arm]
        fitting = (bends & jerks).all(axis=1)
        chosen = int(np.argmax(fitting)) if fitting.any() else len(SMOOTHING) - 1
        coefficients = np.zeros((4, count - 1, dof))
        coefficients[:, :, arm] = splines[:, :, chosen]
        for j in gripper_indices:
            coefficients[2, :, j] = np.diff(rows[:, j]) * chunk.rate_hz
            coefficients[3, :, j] = rows[:-1, j]
        smoothed = rows.copy()
        smoothed[:, arm] = candidates[:, chosen]
        low, high = (-limits.velocity, limits.velocity) if bounds is None else bounds(smoothed)
        pace = _Pace(limits, np.broadcast_to(low, rows.shape), np.broadcast_to(high, rows.shape))
        whole = Piece(everything, knots, coefficients)
        groups = [everything[joints] for joints in arms] if arms is not None else [arm]
        pieces = [pace.slowed(whole, smoothed, joints, from_s) for joints in groups]
        if all(piece is None for piece in pieces):
            return ChunkCurve(chunk, (whole,), SMOOTHING[chosen])
        slowed = [piece for piece in pieces if piece is not None]
        stretch = max(float((np.diff(piece.knots) * chunk.rate_hz).max()) for piece in slowed)
        rest = np.setdiff1d(everything, np.concatenate([piece.joints for piece in slowed]))
        pieces_ = (Piece(rest, knots, coefficients[:, :, rest]), *slowed)
        return ChunkCurve(chunk, pieces_, SMOOTHING[chosen], stretch)

    def at(self, t: Array) -> tuple[Array, Array, Array]:
        """Position, velocity, acceleration (..., dof) at `t` (...) s after the stamp."""
        if len(self.pieces) == 1:
            return self.pieces[0].at(t)
        out = np.empty((3, *t.shape, self.chunk.rows.shape[1]))
        for piece in self.pieces:
            out[:, ..., piece.joints] = piece.at(t)
        return out[0], out[1], out[2]


@dataclass(frozen=True)
class _Pace:
    """How fast the rows of a chunk may be passed: `low` and `high` (h, dof) are the velocities permitted at them."""

    limits: JointLimits
    low: Array
    high: Array

    def slowed(self, whole: Piece, rows: Array, joints: NDArray[np.int_], from_s: float) -> Piece | None:
        """One time scale for all `joints`: each interval takes as much longer as its fastest joint needs.

        None when no interval after `from_s` needs it. The way through the rows stays the same.
        """
        knots, coefficients = whole.knots, whole.coefficients[:, :, joints]
        fixed = int(np.searchsorted(knots, from_s, side="right")) - 1
        for attempt in range(ATTEMPTS):
            need = self._need(np.diff(knots), coefficients, joints)
            need[: max(fixed, 0)] = 1.0
            if need.max() <= 1.0 + PACE_SLACK:
                return None if attempt == 0 else Piece(joints, knots, coefficients)
            # Neighbours slow down with it, or the change of pace would itself need too much.
            padded = np.pad(need, 2, constant_values=1.0)
            need = np.max(
                [padded[2:-2], 0.8 * padded[1:-3], 0.8 * padded[3:-1], 0.6 * padded[:-4], 0.6 * padded[4:]], 0
            )
            need[: max(fixed, 0)] = 1.0
            widths = np.diff(knots) * np.maximum(need, 1.0)
            knots = knots[0] + np.concatenate(([0.0], np.cumsum(widths)))
            coefficients = CubicSpline(knots, rows[:, joints], bc_type="natural").c
        return Piece(joints, knots, coefficients)

    def _need(self, widths: Array, coefficients: Array, joints: NDArray[np.int_]) -> Array:
        """By what factor each interval (h - 1,) is too fast, for its velocity, acceleration or jerk."""
        c3, c2, c1, _ = coefficients
        x = widths[:, None]
        speeds = np.stack((c1, c1 + x * (c2 + 0.75 * x * c3), c1 + x * (2.0 * c2 + 3.0 * x * c3)))
        low = np.maximum(self.low[:-1, joints], self.low[1:, joints]) * VELOCITY_SHARE
        high = np.minimum(self.high[:-1, joints], self.high[1:, joints]) * VELOCITY_SHARE
        floor = 0.1 * self.limits.velocity[joints]  # nearer to its end a joint is slowed down by the limiter alone
        permitted = np.maximum(np.where(speeds > 0.0, high, -low), floor)
        bends = np.abs(2.0 * np.stack((c2, c2 + 3.0 * x * c3))) / (SHARE * self.limits.acceleration[joints])
        jerks = np.abs(6.0 * c3) / (SHARE * self.limits.jerk[joints])
        needs = (np.abs(speeds) / permitted).max(axis=0), np.sqrt(bends.max(axis=0)), np.cbrt(jerks)
        return np.asarray(np.max(needs, axis=(0, 2)))


def fade_out(position: Array, velocity: Array, acceleration: Array, duration_s: float) -> Array:
    """Coefficients (6, n), lowest power first, of the quintic from the given state to zeros at `duration_s`."""
    d = duration_s
    c0, c1, c2 = position, velocity, acceleration / 2.0
    # What the first three terms leave at `d`, in position, velocity and acceleration, the last three take off.
    e0, e1, e2 = -(c0 + d * (c1 + d * c2)), -(c1 + 2.0 * d * c2), -2.0 * c2
    c3 = (10.0 * e0 - 4.0 * d * e1 + 0.5 * d * d * e2) / d**3
    c4 = (-15.0 * e0 + 7.0 * d * e1 - d * d * e2) / d**4
    c5 = (6.0 * e0 - 3.0 * d * e1 + 0.5 * d * d * e2) / d**5
    return np.stack((c0, c1, c2, c3, c4, c5))


def share_needed(velocity: Array, acceleration: Array, step_s: float, limits: JointLimits) -> float:
    """The largest share of a limit that states (n, dof) `step_s` apart need."""
    jerk = np.diff(acceleration, axis=0) / step_s
    return max(
        float((np.abs(velocity) / limits.velocity).max()),
        float((np.abs(acceleration) / limits.acceleration).max()),
        float((np.abs(jerk) / limits.jerk).max()),
    )


def fade_duration(
    position: Array, velocity: Array, acceleration: Array, limits: JointLimits, shortest_s: float, share: float = SHARE
) -> float:
    """How long to fade out this difference, each (dof,): `shortest_s`, or longer where that would need too much.

    The fade's own peaks are held to `share` of the limits where `LONGEST_BLEND_S` allows it. The factors are the peaks
    of the quintics that start with a difference of one in position, velocity or acceleration alone.
    """
    p, v, a = np.abs(position), np.abs(velocity), np.abs(acceleration)
    durations = np.linspace(shortest_s, max(LONGEST_BLEND_S, shortest_s), 25)[:, None]
    gentle = (
        (1.875 * p / durations <= share * limits.velocity)
        & (5.774 * p / durations**2 + 3.94 * v / durations <= share * limits.acceleration)
        & (60.0 * p / durations**3 + 36.0 * v / durations**2 + 9.0 * a / durations <= share * limits.jerk)
    ).all(axis=1)
    return float(durations[int(np.argmax(gentle)) if gentle.any() else -1, 0])
