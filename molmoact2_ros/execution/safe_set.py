"""The states of motion that are safe: inside every limit, and so is the stop that starts there.

A velocity limit may depend on the position (FR3: the nearer a joint is to its end, the slower it may go there). Then
the stop is followed tick by tick. A limit that tightens towards the end of a joint is kept between two ticks when the
larger velocity of the two is permitted at the further position; so also the mean velocity of a tick is permitted at
both of its ends. The check uses the same ticks as the stop that it stands for, hence one tick along a stop that was
found safe is safe again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.motion import TOLERANCE, Motion, Stop, within_limits

Array = NDArray[np.float64]
VelocityBounds = Callable[[Array], tuple[Array, Array]]
"""Lowest and highest velocity (..., dof) permitted at positions (..., dof), as `Embodiment.velocity_bounds`."""

MARGIN = 1e-6
"""Share of the velocity, acceleration and jerk limits that is kept free, and room at the position limits, rad or m.

It is far above rounding, so that also the finite differences of the set-points never pass a limit.
"""
ROUNDING = 2e-6
"""Nearer to its limit than this, rad or m, a joint stands at it."""
CREEP = 0.05
"""Where no more than this share of the velocity limit is permitted towards the end of a joint, it counts as the end."""


def _inset(limits: JointLimits) -> JointLimits:
    room = np.minimum(MARGIN, (limits.upper - limits.lower) * 1e-3)
    scale = 1.0 - MARGIN
    return JointLimits(
        limits.lower + room,
        limits.upper - room,
        limits.velocity * scale,
        limits.acceleration * scale,
        limits.jerk * scale,
    )


def _chord_solver(period_s: float) -> Array:
    """Matrix (3, 3) that gives three equal phases of constant jerk from the change in p, v and a over one period.

    The change in position is what the start velocity and acceleration leave of it, the change in velocity likewise.
    """
    phase = period_s / 3.0
    rows = np.zeros((3, 3))
    for i in range(3):
        after = period_s - (i + 1) * phase
        rows[0, i] = phase**3 / 6.0 + phase**2 / 2.0 * after + phase * after**2 / 2.0
        rows[1, i] = phase**2 / 2.0 + phase * after
        rows[2, i] = phase
    return np.asarray(np.linalg.inv(rows))


class SafeSet:
    """What the joints may do, one period at a time.

    Attributes:
        limits: the limits less a margin for rounding; everything here keeps to these. Where a joint stands outside
            they reach out to it, and come in with it (`take_in`).
        lower, upper: positions (dof,) between which a joint may be sent; narrower than the limits where the velocity
            limit vanishes before the end of the joint.
    """

    def __init__(self, limits: JointLimits, period_s: float, velocity_bounds: VelocityBounds | None = None) -> None:
        self.limits = _inset(limits)
        self._within = _inset(limits)
        self._outside = False
        self.period_s = period_s
        self._outer_bounds = velocity_bounds
        self._solver = _chord_solver(period_s)
        self.lower, self.upper = self.limits.lower.copy(), self.limits.upper.copy()
        if velocity_bounds is not None:
            self.lower, self.upper = self._ends()
        self._low, self._high = self.lower, self.upper

    @property
    def varies(self) -> bool:
        """True when velocity limits depend on the position."""
        return self._outer_bounds is not None

    def velocity_bounds(self, position: Array) -> tuple[Array, Array]:
        """Lowest and highest velocity (..., dof) at `position` (..., dof)."""
        if self._outer_bounds is None:
            return -self.limits.velocity, self.limits.velocity
        low, high = self._outer_bounds(position)
        return low * (1.0 - MARGIN), high * (1.0 - MARGIN)

    def take_in(self, position: Array) -> None:
        """The joints stand at `position` (dof,). One outside its limits may be there and move in, never further out.

        But for the end of a stop, which may turn back by some microradians.
        """
        within = self._within
        self.limits.lower[:] = np.where(position < within.lower - ROUNDING, position, within.lower)
        self.limits.upper[:] = np.where(position > within.upper + ROUNDING, position, within.upper)
        self._draw()

    def draw_in(self, motion: Motion) -> None:
        """What a joint from outside has come in with the safe state `motion`, it cannot go out again."""
        if not self._outside:
            return
        low, high = Stop.of(motion, self.limits.acceleration, self.limits.jerk).extent()
        within = self._within
        self.limits.lower[:] = np.minimum(within.lower, np.maximum(self.limits.lower, low))
        self.limits.upper[:] = np.maximum(within.upper, np.minimum(self.limits.upper, high))
        self._draw()

    def _draw(self) -> None:
        out_low, out_high = self.limits.lower < self._within.lower, self.limits.upper > self._within.upper
        self._outside = bool((out_low | out_high).any())
        self._low = np.where(out_low, self.limits.lower, self.lower)
        self._high = np.where(out_high, self.limits.upper, self.upper)

    def inside(self, wanted: Motion) -> Motion:
        """The nearest motion that a joint may have: positions clipped and then at rest, velocities clipped."""
        position = np.clip(wanted.position, self._low, self._high)
        free = position == wanted.position
        low, high = self.velocity_bounds(position)
        velocity = np.where(free, np.clip(wanted.velocity, low, high), 0.0)
        acceleration = np.clip(wanted.acceleration, -self.limits.acceleration, self.limits.acceleration)
        # Arriving with an acceleration needs room below the velocity limit just before or just after.
        ahead = velocity + acceleration * np.abs(acceleration) / (2.0 * self.limits.jerk)
        behind = velocity - acceleration * np.abs(acceleration) / (2.0 * self.limits.jerk)
        room = (np.minimum(ahead, behind) >= low) & (np.maximum(ahead, behind) <= high)
        return Motion(position, velocity, np.where(free & room, acceleration, 0.0))

    def contains(self, motion: Motion) -> NDArray[np.bool_]:
        """Tell for each joint whether its state is safe; (..., dof)."""
        if self._outer_bounds is None:
            return within_limits(motion, self.limits)
        stop = Stop.of(motion, self.limits.acceleration, self.limits.jerk)
        low, high = stop.extent()
        safe = within_limits(motion, self.limits, (low, high))
        peak = motion.velocity + motion.acceleration * np.abs(motion.acceleration) / (2.0 * self.limits.jerk)
        fast_down = np.minimum(np.minimum(motion.velocity, peak), 0.0)
        fast_up = np.maximum(np.maximum(motion.velocity, peak), 0.0)
        # Permitted where the stop ends is permitted all the way.
        slowest, fastest = self._bounds_between(low, high)
        kept = (fast_down >= slowest - TOLERANCE) & (fast_up <= fastest + TOLERANCE)
        if not (kept | ~safe).all():
            kept |= self._stop_keeps_bounds(stop, peak)
        return np.asarray(safe & kept)

    def reachable(self, now: Motion, wanted: Motion) -> NDArray[np.bool_]:
        """Tell for each joint whether it can be in state `wanted` after one period, and be safe there; (..., dof)."""
        dt, limits = self.period_s, self.limits
        missing = np.stack(
            (
                wanted.position - now.position - dt * (now.velocity + dt * now.acceleration / 2.0),
                wanted.velocity - now.velocity - dt * now.acceleration,
                wanted.acceleration - now.acceleration,
            )
        )
        jerks = np.tensordot(self._solver, missing, axes=1)
        middle = now.acceleration + dt / 3.0 * np.cumsum(jerks[:2], axis=0)
        mean_velocity = (wanted.position - now.position) / dt
        low, high = self._bounds_between(now.position, wanted.position)
        return np.asarray(
            (np.abs(jerks) <= limits.jerk).all(axis=0)
            & (np.abs(middle) <= limits.acceleration).all(axis=0)
            & (mean_velocity >= low)
            & (mean_velocity <= high)
            & self.contains(wanted)
        )

    def follows(self, now: Motion, after: Motion) -> NDArray[np.bool_]:
        """Tell for each joint whether `after` can come one period after `now` at all; (dof,).

        A planner's word is held against what bounded jerk allows: its change of acceleration, velocity and position.
        """
        dt, jerk = self.period_s, self.limits.jerk * (1.0 + MARGIN / 10.0)
        change = after.acceleration - now.acceleration
        velocity = after.velocity - now.velocity - dt * (now.acceleration + after.acceleration) / 2.0
        position = after.position - now.position - dt * (now.velocity + dt * now.acceleration / 2.0)
        mean_velocity = (after.position - now.position) / dt
        low, high = self._bounds_between(now.position, after.position)
        return np.asarray(
            (np.abs(change) <= jerk * dt)
            & (np.abs(velocity) <= (jerk * dt * dt - change * change / jerk) / 4.0 + TOLERANCE * 1e-3)
            & (np.abs(position) <= jerk * dt**3 / 6.0 + 1e-14)
            & (mean_velocity >= low - TOLERANCE)
            & (mean_velocity <= high + TOLERANCE)
        )

    def bounds_ahead(self, motion: Motion) -> tuple[Array, Array]:
        """Lowest and highest velocity (dof,) permitted everywhere up to the end of a stop from `motion`."""
        return self._bounds_between(*Stop.of(motion, self.limits.acceleration, self.limits.jerk).extent())

    # -- velocity limits that depend on the position --------------------------------------------------------------

    def _ends(self) -> tuple[Array, Array]:
        """Where the velocity permitted towards the end of a joint falls below `CREEP`, by bisection."""
        assert self._outer_bounds is not None
        lower, upper, creep = self.limits.lower, self.limits.upper, CREEP * self.limits.velocity
        middle = (lower + upper) / 2.0
        low_in, high_in, low_out, high_out = middle.copy(), middle.copy(), lower.copy(), upper.copy()
        if (self._outer_bounds(lower)[0] < -creep).all() and (self._outer_bounds(upper)[1] > creep).all():
            return lower.copy(), upper.copy()
        for _ in range(50):
            low, high = (low_in + low_out) / 2.0, (high_in + high_out) / 2.0
            free = self._outer_bounds(low)[0] < -creep
            low_in, low_out = np.where(free, low, low_in), np.where(free, low_out, low)
            free = self._outer_bounds(high)[1] > creep
            high_in, high_out = np.where(free, high, high_in), np.where(free, high_out, high)
        return low_in, high_in

    def _bounds_between(self, position: Array, other: Array) -> tuple[Array, Array]:
        """Velocities permitted everywhere between two positions."""
        if self._outer_bounds is None:
            return -self.limits.velocity, self.limits.velocity
        low, high = self.velocity_bounds(np.stack((np.minimum(position, other), np.maximum(position, other))))
        return low[0], high[1]

    def _stop_keeps_bounds(self, stop: Stop, peak: Array) -> NDArray[np.bool_]:
        count = int(np.ceil(stop.duration / self.period_s)) + 1
        times = np.arange(count + 1, dtype=np.float64).reshape(-1, *(1 for _ in peak.shape))
        way = stop.at(times * self.period_s)
        peak_at = np.abs(stop.start.acceleration) / self.limits.jerk
        peak = np.where(times[:-1] * self.period_s <= peak_at, peak, 0.0)
        fast_down = np.minimum(np.minimum(way.velocity[:-1], way.velocity[1:]), peak)
        fast_up = np.maximum(np.maximum(way.velocity[:-1], way.velocity[1:]), peak)
        low = np.minimum(way.position[:-1], way.position[1:])
        high = np.maximum(way.position[:-1], way.position[1:])
        slowest, fastest = self._bounds_between(low, high)
        kept = (fast_down >= slowest - TOLERANCE) & (fast_up <= fastest + TOLERANCE)
        return np.asarray(kept.all(axis=0))
