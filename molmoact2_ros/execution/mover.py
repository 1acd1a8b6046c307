"""What moves the arm from one set-point to the next: a chunk's timeline, a ramp or a leader, through limits, to a
stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, JointLimits
from molmoact2_ros.execution.config import Counters, ExecutorConfig
from molmoact2_ros.execution.leader_path import LeaderPath
from molmoact2_ros.execution.limits import Limiter, Reference
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.ramp import Ramp
from molmoact2_ros.execution.safe_set import VelocityBounds
from molmoact2_ros.execution.stopping import Stops
from molmoact2_ros.execution.timeline import Timeline
from molmoact2_ros.execution.workspace import WorkspaceGuard

Array = NDArray[np.float64]
Path = Timeline | Ramp | LeaderPath

DRIVES = {Timeline: "policy", Ramp: "ramp", LeaderPath: "teleop"}
"""Who drives, by what moves the arm; nobody does while nothing is followed."""
NOBODY = "nobody"


def _bounds(robot: Embodiment, limits: JointLimits) -> VelocityBounds:
    """The robot's bounds of the velocity, and no more than `limits` allow."""

    def bounds(position: Array) -> tuple[Array, Array]:
        low, high = robot.velocity_bounds(position)
        return np.maximum(low, -limits.velocity), np.minimum(high, limits.velocity)

    return bounds


class Mover:
    """One set-point a tick, each for a moment one period, and the way to the robot, ahead of its tick.

    Attributes:
        ramp: the way to the start pose while it is under way; it goes before the timeline.
        leader: what a person at a leader asks for while he drives; it goes before both.
        drives: who moved the arm in the last tick: policy, teleop, ramp or nobody.
        rest: where grippers keep going when the arm stops, (dof,).
        refused_s: how long the limits' planner has refused, s.
        last_due_ns: the moment that the last set-point was for; None before the first.
    """

    def __init__(self, robot: Embodiment, config: ExecutorConfig, counters: Counters) -> None:
        self._robot, self.counters = robot, counters
        groups = [list(range(robot.dof))[arm] for arm in robot.arms] + [[j] for j in robot.gripper_indices]
        arms = len(robot.arms)
        self.period_s = 1.0 / config.rate_hz
        self._ahead_ns = round((self.period_s + config.lead_s) * 1e9)
        limits = robot.scaled_limits(config.speed_scale)
        # A ramp is not asked to be fast: it goes at a share of the robot's own limits, where those are the lower ones.
        self._slow = replace(robot.limits, velocity=np.minimum(limits.velocity, robot.limits.velocity))
        self.guard = WorkspaceGuard(robot, limits, self.period_s, config.workspaces)
        varies = type(robot).velocity_bounds is not Embodiment.velocity_bounds
        slower = config.speed_scale < 1.0
        bounds = (_bounds(robot, limits) if slower else robot.velocity_bounds) if varies else None
        self.limiter = Limiter(limits, groups, self.period_s, bounds, self.guard, arms)
        self._all_braked, self._none_braked = [True] * len(groups), [False] * len(groups)
        self._arms_braked = [g < arms for g in range(len(groups))]
        self.stops = Stops(self.limiter, self.guard, arms, counters)
        self.timeline = Timeline(limits, robot.gripper_indices, config.blend_s, config.slow_down_s)
        self.ramp: Ramp | None = None
        self.leader: LeaderPath | None = None
        self.drives = NOBODY
        self.refused_s = 0.0
        self.rest = robot.rest_position.copy()
        self.last_due_ns: int | None = None

    @property
    def motion(self) -> Motion:
        """The last commanded position, velocity and acceleration."""
        return self.limiter.motion

    def begin(self, position: Array) -> None:
        """Begin at rest at `position` (dof,), a gripper at the limit that it lies beyond.

        An arm joint beyond its limit begins there: a step to the limit would be a jerk of the arm. It only moves in.
        """
        limits, grippers = self._robot.limits, list(self._robot.gripper_indices)
        start = np.array(position, dtype=np.float64)
        start[grippers] = np.clip(start, limits.lower, limits.upper)[grippers]
        self.limiter.safe.take_in(start)
        self.limiter.reset(start)
        self.rest = self.limiter.motion.position.copy()
        self.guard.begin(self.rest)
        self.stops.forget()
        self.drives, self.refused_s = NOBODY, 0.0
        self.last_due_ns = None

    def due_ns(self, now_ns: int) -> int:
        """The moment that the set-point of this tick is for."""
        return now_ns + self._ahead_ns

    def commanded_ns(self, now_ns: int) -> int:
        """What moment the last command was for; with none since arming, what the next one is for."""
        return self.due_ns(now_ns) if self.last_due_ns is None else self.last_due_ns

    def path(self, due_ns: int) -> Path | None:
        """What moves the arm at `due_ns`; None when its end is reached."""
        path: Path = self.leader or self.ramp or self.timeline
        return None if path.finished(due_ns) else path

    def ramp_to(self, pose: Array, speed: float, now_ns: int) -> Ramp:
        """The slow path from the last command to `pose` (dof,), at a share `speed` of the velocity limits.

        Raises:
            ValueError: it leaves the workspace.
        """
        goal = np.clip(pose, self.limiter.safe.lower, self.limiter.safe.upper)
        start, grippers = self.motion.position.copy(), list(self._robot.gripper_indices)
        start[grippers] = self.rest[grippers]
        ramp = Ramp(start, goal, self._slow, grippers, speed, self.commanded_ns(now_ns))
        outside = self.guard.first_outside(ramp.way())
        if outside is not None:
            raise ValueError(outside[1])
        return ramp

    def arrived(self, due_ns: int) -> bool:
        """Whether a ramp is under way and has reached its end."""
        return self.ramp is not None and (self.ramp.reached(self.motion) or self.ramp.finished(due_ns))

    def follow(self, path: Path, due_ns: int) -> Array:
        """The set-point (dof,) for `due_ns` on `path`."""
        first: list[Motion] = []

        def reference(after_s: float) -> Motion:
            # The limiter counts from the last command, which was for the tick before.
            wanted = path.sample(due_ns, after_s - self.period_s)
            if not first:
                first.append(wanted)
            return wanted

        setpoint = self._step(reference, self._none_braked)
        self.drives = DRIVES[type(path)]
        self.rest = np.clip(first[0].position, self._robot.limits.lower, self._robot.limits.upper)
        return setpoint

    def brake(self, due_ns: int, grippers: bool) -> Array:
        """The set-point (dof,) for `due_ns` on the way to rest; `grippers` stop, too."""
        everything = grippers or self.stops.grippers_overdue(due_ns)
        self.drives = NOBODY
        return self._step(None, self._all_braked if everything else self._arms_braked, self.rest)

    def _step(self, reference: Reference | None, braked: Sequence[bool], rest: Array | None = None) -> Array:
        setpoint = self.limiter.step(reference, braked, rest)
        self.refused_s = self.refused_s + self.period_s if self.limiter.refusal else 0.0
        return setpoint
