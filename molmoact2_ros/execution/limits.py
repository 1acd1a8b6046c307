"""One safe set-point a tick: the reference seen through position, velocity, acceleration and jerk limits.

Invariant: after every `step` the commanded state is safe (`safe_set`), so there is always a safe next one. The joints
of an arm share one time scale: they meet the reference together or not at all. A gripper is a group of its own.

Ruckig gives the time-optimal motion between two states. Its `max_position` does not bound the way between them, and its
`position_extrema` misses the overshoot of a late stop (0.19.4), so every tick that it plans is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import ruckig
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.motion import TOLERANCE, Motion, Stop
from molmoact2_ros.execution.safe_set import CREEP, ROUNDING, SafeSet, VelocityBounds

Array = NDArray[np.float64]
Reference = Callable[[float], Motion]
"""The wanted motion so many seconds after the last commanded state."""

MEETINGS = (2, 3, 4, 6, 8, 11, 15, 20, 26, 34)
"""After how many ticks the set-point may meet a reference that it cannot follow at once."""


class Guard(Protocol):
    """Says where an arm may be beyond the limits of its joints; see `workspace`."""

    def permits(self, arm: int, motion: Motion) -> bool:
        """Tell whether `arm` may be in its part of `motion`: there, and on the whole stop from there."""


def _ruckig_input(limits: JointLimits, joints: NDArray[np.int_]) -> ruckig.InputParameter:
    out = ruckig.InputParameter(len(joints))
    out.max_velocity = limits.velocity[joints].tolist()
    out.max_acceleration = limits.acceleration[joints].tolist()
    out.max_jerk = limits.jerk[joints].tolist()
    # A straight line in joint space where the states allow it; the joints of an arm always arrive together.
    out.synchronization = ruckig.Synchronization.Phase
    return out


class Limiter:
    """Commanded state of all joints. `groups` are the joint indices that share one time scale.

    Args:
        velocity_bounds: where velocity limits depend on the position, as `Embodiment.velocity_bounds`.
        guard: asked before a group goes on; the index of the group is the number of the arm. Groups from
            `guarded` on (the grippers) are not asked about.
    """

    def __init__(
        self,
        limits: JointLimits,
        groups: Sequence[Sequence[int]],
        period_s: float,
        velocity_bounds: VelocityBounds | None = None,
        guard: Guard | None = None,
        guarded: int = 0,
    ) -> None:
        joints = sorted(i for group in groups for i in group)
        if joints != list(range(len(limits.lower))):
            raise ValueError(f"groups {groups} must name each of the {len(limits.lower)} joints once")
        self.safe = SafeSet(limits, period_s, velocity_bounds)
        self.groups = tuple(np.array(group) for group in groups)
        self.period_s = period_s
        self.motion = Motion.at_rest((limits.lower + limits.upper) / 2.0)
        self.refusal = ""
        """Why a group was braked in the last step for Ruckig found no way; empty when it was not."""
        self.blocked: int | None = None
        """The arm that the guard stopped in the last step, if it did."""
        self.limited_ticks = 0
        """Steps in which some group could not be exactly on the reference."""
        self._guard, self._guarded = guard, guarded
        self._planners = [ruckig.Ruckig(len(group), period_s) for group in self.groups]
        self._inputs = [_ruckig_input(self.safe.limits, group) for group in self.groups]
        self._trajectories = [ruckig.Trajectory(len(group)) for group in self.groups]
        self._meeting = [0] * len(self.groups)
        self._plans: list[Motion | None] = [None] * len(self.groups)
        self._played = 0

    def reset(self, position: Array) -> None:
        """Stand still at `position` (dof,), or up to a rounding margin inside the limits.

        Raises:
            ValueError: a position is outside its limits, and `SafeSet.take_in` was not told so.
        """
        lower, upper = self.safe.limits.lower, self.safe.limits.upper
        inside = np.clip(position, lower, upper)
        outside = ~(np.abs(inside - position) <= ROUNDING)
        if outside.any():
            raise ValueError(f"joints {np.flatnonzero(outside).tolist()} are outside their position limits: {position}")
        self.motion = Motion.at_rest(inside)
        self.refusal, self.blocked = "", None
        self.forget_stops()

    # -- stops that were planned ahead ------------------------------------------------------------------------------

    def plan_stop(self, group: int, states: Motion) -> None:
        """From now on braking `group` means these states (n, joints of the group), one a tick, ending at rest.

        They were found safe by `stopping`. All stops are planned in the same tick.
        """
        self._plans[group] = states
        self._played = 0

    def forget_stops(self) -> None:
        """Braking means the fastest stop again, each joint on its own."""
        self._plans = [None] * len(self.groups)

    def stop_duration(self, group: int) -> float:
        """How long braking `group` from now on takes, s; a whole number of periods."""
        plan = self._plans[group]
        if plan is not None:
            return max(0, len(plan.position) - self._played) * self.period_s
        joints = self.groups[group]
        limits = self.safe.limits
        stop = Stop.of(_of(self.motion, joints), limits.acceleration[joints], limits.jerk[joints])
        return float(np.ceil(stop.duration / self.period_s - 1e-9)) * self.period_s

    def longest_stop(self, group: int | None = None) -> float:
        """How long the fastest stop takes at most, from any state of `group` (all groups), s."""
        limits = self.safe.limits
        longest = limits.velocity / limits.acceleration + 2.0 * limits.acceleration / limits.jerk
        return float(longest.max() if group is None else longest[self.groups[group]].max())

    def rest_duration(self, group: int, position: Array) -> float:
        """How long `group` takes to rest at `position` (dof,), s."""
        rest = Motion.at_rest(np.clip(position, self.safe.lower, self.safe.upper))
        if self._plan(group, rest, None) is None:
            return self.stop_duration(group)
        return float(self._trajectories[group].duration)

    # -- the step -----------------------------------------------------------------------------------------------------

    def step(self, reference: Reference | None, braked: Sequence[bool], rest: Array | None = None) -> Array:
        """Advance one period and return the commanded position (dof,); `braked` stops the groups it names.

        A group follows exactly where it can, else meets the reference as early as its limits allow, else stops at it,
        else stops where it is. A gripper (a group from `guarded` on) goes to where the reference is, as fast as it can;
        so do all groups without a reference, to `rest` (dof,).
        """
        now = self.motion
        self.refusal, self.blocked = "", None
        refusals = []
        wanted: Motion | None = None
        if reference is not None and not all(braked):
            wanted = self.safe.inside(reference(self.period_s))
            reachable = self.safe.reachable(now, wanted)
        limited = False
        # What is not moved otherwise stops.
        stop = Stop.of(now, self.safe.limits.acceleration, self.safe.limits.jerk).at(self.period_s)
        after = Motion(stop.position.copy(), stop.velocity.copy(), stop.acceleration.copy())
        for g, joints in enumerate(self.groups):
            if braked[g]:
                state = self._play(g)
            elif wanted is None:
                state = self._rest(g, rest)
            elif self._guarded and g >= self._guarded:
                state = self._rest(g, wanted.position)
            elif reachable[joints].all():
                state = _of(wanted, joints)
                self._meeting[g] = 0
            else:
                limited = True
                assert reference is not None
                state = self._meet(g, reference, after)
            if state is None:
                refusals.append(self.refusal)
                continue
            _put(after, joints, state)
            if not braked[g] and self._guard is not None and g < self._guarded and not self._guard.permits(g, after):
                self.blocked = g
                _put(after, joints, _of(stop, joints))
        self.refusal = next(filter(None, refusals), "")
        self.limited_ticks += limited
        self._played += 1
        self.motion = after
        self.safe.draw_in(after)
        return after.position

    def _play(self, g: int) -> Motion | None:
        plan = self._plans[g]
        if plan is None:
            return None
        i = min(self._played, len(plan.position) - 1)
        return Motion(plan.position[i], plan.velocity[i], plan.acceleration[i])

    def _rest(self, g: int, rest: Array | None) -> Motion | None:
        if rest is None:
            return None
        goal = Motion.at_rest(np.clip(rest, self.safe.lower, self.safe.upper))
        joints = self.groups[g]
        now = _of(self.motion, joints)
        if now.still and (now.position == goal.position[joints]).all():
            return now
        state = self._plan(g, goal, None)
        # The last tick of the way ends in exact rest, or a stop would never be over.
        return _of(goal, joints) if state is not None and self._trajectories[g].duration <= self.period_s else state

    # -- the ways to meet the reference -------------------------------------------------------------------------------

    def _meet(self, g: int, reference: Reference, stop: Motion) -> Motion | None:
        """State of group `g` after one period on its way to meet the reference; None when it has to stop instead."""
        enough = 0.0
        # A meeting that was planned in the last tick is kept: one that is put off in every tick never comes about.
        agreed = self._meeting[g] - 1
        self._meeting[g] = 0
        for ticks in (agreed, *MEETINGS) if agreed > 1 else MEETINGS:
            within = ticks * self.period_s
            if within < enough:
                continue
            wanted = self.safe.inside(reference(within))
            state = self._plan(g, wanted, within, stop)
            if state is not None:
                self._meeting[g] = ticks
                return state
            if ticks != agreed:
                # The reference moves on, so what it took this time is a guide only.
                enough = 0.7 * self._trajectories[g].duration
        return self._plan(g, Motion.at_rest(wanted.position), None, stop)

    def _plan(self, g: int, wanted: Motion, within_s: float | None, stop: Motion | None = None) -> Motion | None:
        """First tick of the time-optimal way to `wanted`; None when it takes longer than `within_s` or is not safe."""
        joints, out, trajectory = self.groups[g], self._inputs[g], self._trajectories[g]
        now, target = _of(self.motion, joints), _of(wanted, joints)
        out.current_position = now.position.tolist()
        out.current_velocity = now.velocity.tolist()
        out.current_acceleration = now.acceleration.tolist()
        out.target_position = target.position.tolist()
        out.target_velocity = target.velocity.tolist()
        out.target_acceleration = target.acceleration.tolist()
        out.minimum_duration = within_s
        if self.safe.varies:
            self._bound_velocity(out, joints, wanted)
        try:
            result = self._planners[g].calculate(out, trajectory)
        except ruckig.RuckigError as error:
            self.refusal = "Ruckig: " + " ".join(str(error).split())[:200]
            return None
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            self.refusal = f"Ruckig returned {result}"
            return None
        self.refusal = ""
        if within_s is not None and trajectory.duration > within_s + TOLERANCE:
            return None
        state = Motion(*(np.array(values) for values in trajectory.at_time(self.period_s)))
        whole = Motion(*(values.copy() for values in _arrays(stop if stop is not None else self.motion)))
        _put(whole, joints, state)
        safe = self.safe.contains(whole)[joints] & self.safe.follows(self.motion, whole)[joints]
        return state if safe.all() else None

    def _bound_velocity(self, out: ruckig.InputParameter, joints: NDArray[np.int_], wanted: Motion) -> None:
        """Tell Ruckig what is permitted where a stop from now on would end: so a joint slows down ahead of its end."""
        low, high = self.safe.bounds_ahead(self.motion)
        creep = CREEP * self.safe.limits.velocity
        out.max_velocity = np.maximum(np.maximum(high, creep), wanted.velocity)[joints].tolist()
        out.min_velocity = np.minimum(np.minimum(low, -creep), wanted.velocity)[joints].tolist()


def _arrays(motion: Motion) -> tuple[Array, Array, Array]:
    return motion.position, motion.velocity, motion.acceleration


def _of(motion: Motion, joints: NDArray[np.int_]) -> Motion:
    return Motion(motion.position[joints], motion.velocity[joints], motion.acceleration[joints])


def _put(motion: Motion, joints: NDArray[np.int_], part: Motion) -> None:
    for whole, values in zip(_arrays(motion), _arrays(part), strict=True):
        whole[joints] = values
