"""Stops on the path: the chunk's own time is slowed down to nothing, so the arm comes to rest where it was going.

A stop is planned as a whole, tick by tick, and taken only when every tick of it keeps every limit; so its time is known
when it begins. Where the path cannot be stopped on in good time, each joint stops as fast as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.execution.config import Counters
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion, Stop
from molmoact2_ros.execution.safe_set import SafeSet
from molmoact2_ros.execution.workspace import WorkspaceGuard

Array = NDArray[np.float64]
Path = Callable[[Array], Motion]
"""The states (n, dof) that are wanted so many seconds (n,) after the last commanded one."""

STRETCHES = (1.1, 1.4, 1.9, 2.7)
"""How much longer than its fastest stop an arm may take to stop on the path; the first that fits is taken."""
LONGEST_S = 0.8
OFF_PATH = 1e-6
"""Further away than this, rad, the arm is not on the path, and stopping on it means nothing."""


class Sampled(Protocol):
    """What moves the arm: a timeline or a ramp."""

    def sample(self, now_ns: int, after_s: Array | float = 0.0) -> Motion:
        """The wanted motion (..., dof) at `now_ns` + `after_s` (...)."""


class Stops:
    """The stop under way, of all arms together, and by when it has ended.

    Attributes:
        due_ns: by when all joints rest if every tick comes; None while nothing stops.
    """

    def __init__(self, limiter: Limiter, guard: WorkspaceGuard, arms: int, counters: Counters) -> None:
        self._limiter, self._guard, self._arms, self._counters = limiter, guard, arms, counters
        self._grippers_until_ns: int | None = None
        self.due_ns: int | None = None

    def plan(self, path: Sampled, commanded_ns: int) -> None:
        """Plan the stop of every arm on `path`, which was followed up to the command for `commanded_ns`."""
        self.due_ns = None
        self._limiter.forget_stops()
        for arm in range(self._arms):
            states = stop_on_path(
                lambda after_s: path.sample(commanded_ns, after_s),
                self._limiter.motion,
                self._limiter.safe,
                self._limiter.groups[arm],
                lambda positions: self._guard.first_outside(positions) is None,
            )
            if states is not None:
                self._limiter.plan_stop(arm, states)
                self._counters.stops_on_path += 1
            elif self._limiter.stop_duration(arm) > 0.0:
                self._counters.stops_off_path += 1

    def set_time(self, commanded_ns: int, rest: Array | None, slowing_s: float = 0.0) -> None:
        """Compute by when all rests: the joints go on for `slowing_s` and stop, the grippers go to `rest` (dof,).

        Grippers are braked when the time that their way takes is over; without `rest` they stop at once.
        """
        limiter, margin_s = self._limiter, 3.0 * self._limiter.period_s
        groups = range(len(limiter.groups))
        stops_s = max(limiter.stop_duration(g) for g in groups)
        if slowing_s > 0.0:
            stops_s = slowing_s + limiter.longest_stop()
        self._grippers_until_ns = None
        if rest is not None:
            grippers = [g for g in groups if g >= self._arms]
            until_s = slowing_s + max(limiter.rest_duration(g, rest) for g in grippers) + margin_s
            self._grippers_until_ns = commanded_ns + round(until_s * 1e9)
            stops_s = max(stops_s, until_s + max(limiter.longest_stop(g) for g in grippers))
        self.due_ns = commanded_ns + round((stops_s + margin_s) * 1e9)

    def grippers_overdue(self, now_ns: int) -> bool:
        """True when the grippers have had their time."""
        return self._grippers_until_ns is not None and now_ns > self._grippers_until_ns

    def ended(self) -> None:
        """All rests."""
        self.due_ns = self._grippers_until_ns = None

    def forget(self) -> None:
        """Another motion begins, or the arm is let go: braking means the fastest stop again."""
        self.ended()
        self._limiter.forget_stops()


def _pace(duration_s: float, times: Array) -> Motion:
    """Path time, pace and its rate (n, 1) at `times`, for a stop from pace 1; a quarter of it ramps at each end."""
    rate = np.array([1.0 / (0.75 * duration_s)])
    start = Motion(np.zeros(1), np.ones(1), np.zeros(1))
    return Stop.of(start, rate, rate / (0.25 * duration_s)).at(times[:, None])


def stop_on_path(
    path: Path, now: Motion, safe: SafeSet, joints: NDArray[np.int_], stays_inside: Callable[[Array], bool]
) -> Motion | None:
    """Plan the stop of an arm's `joints` from the commanded state `now`; None when it does not fit.

    `stays_inside` is asked about the positions (n, dof) of the plan. Returns states (n, joints), one a tick, of which
    the last is at rest.
    """
    limits = safe.limits
    fastest = Stop.of(now, limits.acceleration, limits.jerk)
    shortest_s = float(fastest.durations.sum(axis=0)[joints].max())
    if shortest_s == 0.0:
        return None
    here = path(np.zeros(1))
    if np.abs(here.position[0] - now.position)[joints].max() > OFF_PATH:
        return None
    for stretch in STRETCHES:
        duration_s = stretch * shortest_s
        if duration_s > LONGEST_S:
            return None
        count = int(np.ceil(duration_s / safe.period_s - 1e-9))
        times = np.asarray(np.arange(1, count + 1) * safe.period_s, dtype=np.float64)
        pace = _pace(count * safe.period_s, times)
        way = path(pace.position[:, 0])
        states = Motion(
            way.position,
            way.velocity * pace.velocity,
            way.acceleration * pace.velocity**2 + way.velocity * pace.acceleration,
        )
        states.velocity[-1] = states.acceleration[-1] = 0.0  # but for rounding they are
        before = Motion(
            np.concatenate((now.position[None], states.position[:-1])),
            np.concatenate((now.velocity[None], states.velocity[:-1])),
            np.concatenate((now.acceleration[None], states.acceleration[:-1])),
        )
        if safe.reachable(before, states)[:, joints].all() and stays_inside(states.position):
            return Motion(states.position[:, joints], states.velocity[:, joints], states.acceleration[:, joints])
    return None
