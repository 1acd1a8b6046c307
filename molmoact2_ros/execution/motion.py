"""State of motion of all joints, and the jerk-limited stop from it in closed form.

The stop is the proof of safety of this room: a state is safe when the stop that starts in it stays inside every limit,
and one tick along such a stop is a safe state again. So from a safe state there is always a safe next set-point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits

Array = NDArray[np.float64]

TOLERANCE = 1e-9
"""Slack of the comparisons with a limit, in the limit's own unit; it covers rounding only."""


@dataclass(frozen=True)
class Motion:
    """Position, velocity and acceleration of every joint; each (dof,), rad, rad/s, rad/s^2.

    A series of states, one a tick, has the shape (n, dof).
    """

    position: Array
    velocity: Array
    acceleration: Array

    @staticmethod
    def at_rest(position: Array) -> Motion:
        """Standing still at `position` (dof,)."""
        zero = np.zeros_like(position, dtype=np.float64)
        return Motion(np.array(position, dtype=np.float64), zero, zero.copy())

    @property
    def still(self) -> bool:
        """True when no joint moves; stops end in exact zeros."""
        return not (self.velocity.any() or self.acceleration.any())


@dataclass(frozen=True)
class Stop:
    """Fastest stop, each joint on its own, in three phases of constant jerk; durations and jerks (3, ..., dof)."""

    start: Motion
    durations: Array
    jerks: Array

    @staticmethod
    def of(motion: Motion, acceleration: Array, jerk: Array) -> Stop:
        """Plan the stop from `motion` with the limits `acceleration` and `jerk`, each (dof,)."""
        v, a = motion.velocity, motion.acceleration
        leaning = v + a * np.abs(a) / (2.0 * jerk)
        sign = np.where(leaning != 0.0, np.sign(leaning), -np.sign(a))
        speed, lean = sign * v, sign * a
        peak = np.minimum(np.sqrt(np.maximum(jerk * speed + 0.5 * lean * lean, 0.0)), acceleration)
        first = np.maximum(lean + peak, 0.0) / jerk
        last = peak / jerk
        rest = speed + (0.5 * lean * lean - peak * peak) / jerk
        cruise = np.where(peak > 0.0, np.maximum(rest, 0.0) / np.where(peak > 0.0, peak, 1.0), 0.0)
        zero = np.zeros_like(v)
        return Stop(motion, np.stack((first, cruise, last)), np.stack((-sign * jerk, zero, sign * jerk)))

    @property
    def duration(self) -> float:
        """Time until the last joint rests, s."""
        return float(self.durations.sum(axis=0).max())

    def at(self, elapsed_s: float | Array) -> Motion:
        """State after `elapsed_s`, a number or an array that broadcasts with (dof,); exact zeros at rest."""
        p, v, a = self.start.position, self.start.velocity, self.start.acceleration
        left = elapsed_s + np.zeros_like(p)
        for duration, jerk in zip(self.durations, self.jerks, strict=True):
            t = np.minimum(left, duration)
            p = p + t * (v + t * (a / 2.0 + t * jerk / 6.0))
            v = v + t * (a + t * jerk / 2.0)
            a = a + t * jerk
            left = left - t
        moving = elapsed_s < self.durations.sum(axis=0)
        return Motion(p, np.where(moving, v, 0.0), np.where(moving, a, 0.0))

    def extent(self) -> tuple[Array, Array]:
        """Smallest and largest position (dof,) on the way to rest."""
        start, end = self.start.position, self.at(np.inf).position
        sign = np.sign(self.jerks[2])
        speed, lean = sign * self.start.velocity, sign * self.start.acceleration
        jerk = np.abs(self.jerks[2])
        # A joint that moves against its acceleration turns round once, in the first phase.
        turning = (speed < 0.0) & (jerk > 0.0)
        safe_jerk = np.where(jerk > 0.0, jerk, 1.0)
        t = np.where(turning, (lean - np.sqrt(np.maximum(lean * lean + 2.0 * jerk * speed, 0.0))) / safe_jerk, 0.0)
        turn = start + sign * t * (speed + t * (lean / 2.0 - t * jerk / 6.0))
        return np.minimum(np.minimum(start, end), turn), np.maximum(np.maximum(start, end), turn)


def within_limits(motion: Motion, limits: JointLimits, way: tuple[Array, Array] | None = None) -> NDArray[np.bool_]:
    """Tell for each joint whether its state, and the stop from it, stay inside every constant limit; (..., dof).

    `way`: the extent of that stop, where it is known. For velocity limits that depend on the position see `safe_set`.
    """
    v, a = motion.velocity, motion.acceleration
    low, high = Stop.of(motion, limits.acceleration, limits.jerk).extent() if way is None else way
    bend = np.abs(a)
    fastest = np.maximum(np.abs(v), np.abs(v + a * bend / (2.0 * limits.jerk)))
    return np.asarray(
        (bend <= limits.acceleration + TOLERANCE)
        & (fastest <= limits.velocity + TOLERANCE)
        & (low >= limits.lower - TOLERANCE)
        & (high <= limits.upper + TOLERANCE)
    )
