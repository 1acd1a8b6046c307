"""One safe set-point a tick: the reference seen through position, velocity, acceleration and jerk limits.

Invariant: after every `step` the commanded state is inside the limits and so is the stop from it. The joints of an arm
share one time scale: they meet the reference together or not at all. A gripper is a group of its own.

Ruckig gives the time-optimal motion between two states. Its `max_position` does not bound the way between them, and its
`position_extrema` misses the overshoot of a late stop (0.19.4), so position limits are held here, by `within_limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import ruckig
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.motion import TOLERANCE, Motion, Stop, within_limits

Array = NDArray[np.float64]
Reference = Callable[[float], Motion]
"""The wanted motion so many seconds after the last commanded state."""

MEETINGS = (2, 3, 4, 6, 8, 11, 15, 20, 26, 34)
"""After how many ticks the set-point may meet a reference that it cannot follow at once."""


def _jerks_between(period_s: float) -> Array:
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


def _of_joints(limits: JointLimits, joints: NDArray[np.int_]) -> JointLimits:
    return JointLimits(
        limits.lower[joints],
        limits.upper[joints],
        limits.velocity[joints],
        limits.acceleration[joints],
        limits.jerk[joints],
    )


def _of_group(motion: Motion, group: NDArray[np.int_]) -> Motion:
    return Motion(motion.position[group], motion.velocity[group], motion.acceleration[group])


def _ruckig_input(limits: JointLimits) -> ruckig.InputParameter:
    out = ruckig.InputParameter(len(limits.velocity))
    out.max_velocity = limits.velocity.tolist()
    out.max_acceleration = limits.acceleration.tolist()
    out.max_jerk = limits.jerk.tolist()
    return out


class Limiter:
    """Commanded state of all joints. `groups` are the joint indices that share one time scale."""

    def __init__(self, limits: JointLimits, groups: Sequence[Sequence[int]], period_s: float) -> None:
        joints = sorted(i for group in groups for i in group)
        if joints != list(range(len(limits.lower))):
            raise ValueError(f"groups {groups} must name each of the {len(limits.lower)} joints once")
        self.limits = limits
        self.groups = tuple(np.array(group) for group in groups)
        self.period_s = period_s
        self.motion = Motion.at_rest((limits.lower + limits.upper) / 2.0)
        self.refusal = ""
        """Why Ruckig refused in the last step, empty when it did not."""
        self.limited_ticks = 0
        """Steps in which some group could not be exactly on the reference."""
        self._jerks_between = _jerks_between(period_s)
        self._group_limits = [_of_joints(limits, group) for group in self.groups]
        self._planners = [ruckig.Ruckig(len(group), period_s) for group in self.groups]
        self._inputs = [_ruckig_input(limits) for limits in self._group_limits]
        self._trajectories = [ruckig.Trajectory(len(group)) for group in self.groups]

    def reset(self, position: Array) -> None:
        """Stand still at `position` (dof,).

        Raises:
            ValueError: a position is outside its limits.
        """
        outside = (position < self.limits.lower) | (position > self.limits.upper) | ~np.isfinite(position)
        if outside.any():
            raise ValueError(f"joints {np.flatnonzero(outside).tolist()} are outside their position limits: {position}")
        self.motion = Motion.at_rest(position)
        self.refusal = ""

    def step(self, reference: Reference, braked: Sequence[bool]) -> Array:
        """Advance one period and return the commanded position (dof,); `braked` stops the groups it names.

        A group follows exactly where it can, else meets the reference as early as its limits allow, else stops at it,
        else stops where it is.
        """
        now = self.motion
        stop = Stop.of(now, self.limits.acceleration, self.limits.jerk).at(self.period_s)
        position, velocity, acceleration = stop.position.copy(), stop.velocity.copy(), stop.acceleration.copy()
        self.refusal = ""
        if not all(braked):
            wanted = self._inside(reference(self.period_s))
            reachable = self._reachable(now, wanted)
            limited = False
            for g, group in enumerate(self.groups):
                if braked[g]:
                    continue
                if reachable[group].all():
                    target: Motion | None = _of_group(wanted, group)
                else:
                    limited = True
                    target = self._meet(g, reference)
                if target is not None:
                    position[group] = target.position
                    velocity[group] = target.velocity
                    acceleration[group] = target.acceleration
            self.limited_ticks += limited
        # The clip takes away rounding errors only: the state was checked to stay inside to 1e-9.
        position = np.clip(position, self.limits.lower, self.limits.upper)
        self.motion = Motion(position, velocity, acceleration)
        return position

    # -- the ways to follow ---------------------------------------------------------------------------------------

    def _inside(self, wanted: Motion) -> Motion:
        """The nearest motion that a joint may have: positions clipped and then at rest, velocities clipped."""
        limits = self.limits
        position = np.clip(wanted.position, limits.lower, limits.upper)
        free = position == wanted.position
        velocity = np.where(free, np.clip(wanted.velocity, -limits.velocity, limits.velocity), 0.0)
        acceleration = np.clip(wanted.acceleration, -limits.acceleration, limits.acceleration)
        # Arriving with an acceleration needs room below the velocity limit just before or just after.
        room = np.abs(velocity) + acceleration**2 / (2.0 * limits.jerk) <= limits.velocity
        return Motion(position, velocity, np.where(free & room, acceleration, 0.0))

    def _reachable(self, now: Motion, wanted: Motion) -> NDArray[np.bool_]:
        """Tell for each joint whether it can be in state `wanted` after one period, and be safe there; (dof,)."""
        dt, limits = self.period_s, self.limits
        missing = np.stack(
            (
                wanted.position - now.position - dt * (now.velocity + dt * now.acceleration / 2.0),
                wanted.velocity - now.velocity - dt * now.acceleration,
                wanted.acceleration - now.acceleration,
            )
        )
        jerks = self._jerks_between @ missing
        middle = now.acceleration + dt / 3.0 * np.cumsum(jerks[:2], axis=0)
        mean_velocity = (wanted.position - now.position) / dt
        return np.asarray(
            (np.abs(jerks) <= limits.jerk).all(axis=0)
            & (np.abs(middle) <= limits.acceleration).all(axis=0)
            & (np.abs(mean_velocity) <= limits.velocity)
            & within_limits(wanted, limits)
        )

    def _meet(self, g: int, reference: Reference) -> Motion | None:
        """State of group `g` after one period on its way to meet the reference; None when it has to stop instead."""
        for ticks in MEETINGS:
            wanted = self._inside(reference(ticks * self.period_s))
            state = self._plan(g, wanted, ticks * self.period_s)
            if state is not None:
                return state
        return self._plan(g, Motion.at_rest(wanted.position), None)

    def _plan(self, g: int, wanted: Motion, within_s: float | None) -> Motion | None:
        """First tick of the time-optimal way to `wanted`; None when it takes longer than `within_s` or is not safe."""
        group, out, trajectory = self.groups[g], self._inputs[g], self._trajectories[g]
        out.current_position = self.motion.position[group].tolist()
        out.current_velocity = self.motion.velocity[group].tolist()
        out.current_acceleration = self.motion.acceleration[group].tolist()
        out.target_position = wanted.position[group].tolist()
        out.target_velocity = wanted.velocity[group].tolist()
        out.target_acceleration = wanted.acceleration[group].tolist()
        out.minimum_duration = within_s
        try:
            result = self._planners[g].calculate(out, trajectory)
        except ruckig.RuckigError as error:
            self.refusal = str(error)
            return None
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            self.refusal = f"Ruckig returned {result}"
            return None
        if within_s is not None and trajectory.duration > within_s + TOLERANCE:
            return None
        state = Motion(*(np.array(values) for values in trajectory.at_time(self.period_s)))
        return state if within_limits(state, self._group_limits[g]).all() else None
