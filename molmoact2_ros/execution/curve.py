"""From the rows of a chunk to a curve that the arm can follow.

Rows come with noise of a few milliradians; taken literally at 30 Hz that is far more jerk than an arm may have, and
a limiter that has to cut it lags and saws. So a curve through rows that are too rough is fitted to rows smoothed
just enough: the least smoothing, of a fixed ladder, with which the curve keeps to its share of the acceleration and
jerk limits.
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

Array = NDArray[np.float64]

SMOOTHING = (0.0, 0.03, 0.3, 3.0, 30.0, 300.0, 3000.0)
"""Weights of the squared third differences against the squared changes of the rows; 3000 passes 1.2 Hz at 30 rows/s."""
SHARE = 0.5
"""Share of the acceleration and jerk limits that a chunk may need; the rest is for the fade and for catching up."""
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
class ChunkCurve:
    """A chunk as piecewise cubics: `coefficients` (4, h - 1, dof), highest power first, from `knots` (h,).

    Knots are in s after the chunk's stamp. A chunk of one row has one constant piece. Arm joints follow the natural
    cubic spline (C2), grippers straight lines between their rows.

    Attributes:
        smoothing: the weight of `SMOOTHING` that was needed.
    """

    chunk: Chunk
    knots: Array
    coefficients: Array
    smoothing: float

    @staticmethod
    def of(chunk: Chunk, limits: JointLimits, gripper_indices: Sequence[int]) -> ChunkCurve:
        """Fit the curve; grippers (`gripper_indices`) are neither smoothed nor rounded."""
        rows = chunk.rows
        count, dof = rows.shape
        knots = (np.arange(count) + 1) / chunk.rate_hz
        if count == 1:
            return ChunkCurve(chunk, knots, np.concatenate((np.zeros((3, 1, dof)), rows[None]), axis=0), 0.0)
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
        return ChunkCurve(chunk, knots, coefficients, SMOOTHING[chosen])

    def at(self, t: float) -> tuple[Array, Array, Array]:
        """Position, velocity, acceleration (dof,) at `t` s after the stamp; before the first row a straight line."""
        before = min(0.0, t - self.knots[0])
        t = max(t, self.knots[0])
        i = min(int((t - self.knots[0]) * self.chunk.rate_hz), self.coefficients.shape[1] - 1)
        x = t - self.knots[i]
        c3, c2, c1, c0 = self.coefficients[:, i]
        velocity = c1 + x * (2.0 * c2 + 3.0 * x * c3)
        return c0 + x * (c1 + x * (c2 + x * c3)) + before * velocity, velocity, 2.0 * c2 + 6.0 * x * c3


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


def fade_duration(
    position: Array, velocity: Array, acceleration: Array, limits: JointLimits, shortest_s: float
) -> float:
    """How long to fade out this difference, each (dof,): `shortest_s`, or longer where that would need too much.

    The fade's own peaks are held to half of the limits where `LONGEST_BLEND_S` allows it. The factors are the peaks
    of the quintics that start with a difference of one in position, velocity or acceleration alone.
    """
    p, v, a = np.abs(position), np.abs(velocity), np.abs(acceleration)
    durations = np.linspace(shortest_s, max(LONGEST_BLEND_S, shortest_s), 13)[:, None]
    gentle = (
        (1.875 * p / durations <= SHARE * limits.velocity)
        & (5.774 * p / durations**2 + 3.94 * v / durations <= SHARE * limits.acceleration)
        & (60.0 * p / durations**3 + 36.0 * v / durations**2 + 9.0 * a / durations <= SHARE * limits.jerk)
    ).all(axis=1)
    return float(durations[int(np.argmax(gentle)) if gentle.any() else -1, 0])
