"""The box in which each arm's tip may be: slow down and hold before its side, never a clip; the way back is free.

Two looks. When a chunk or a ramp is taken up, its whole way is sampled, and its motion ends before the first sample
outside. On every tick the guard asks whether the tip, there and on the stop from there, stays inside; so also what the
limits made of the way never leaves the box. A tip that is outside already may move as long as it gets no further out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, JointLimits, Workspace
from molmoact2_ros.execution.motion import Motion, Stop

Array = NDArray[np.float64]

AXES = ("x", "y", "z")
SLACK_M = 1e-9
"""Rounding of the forward kinematics."""


class WorkspaceGuard:
    """See the module. `limits` are those that stops keep to; `workspaces` one an arm, in the robot's base frame, m."""

    def __init__(
        self, robot: Embodiment, limits: JointLimits, period_s: float, workspaces: Sequence[Workspace] | None = None
    ) -> None:
        boxes = tuple(robot.workspaces if workspaces is None else workspaces)
        if len(boxes) != len(robot.chains):
            raise ValueError(
                f"{robot.name} needs a workspace for each of its {len(robot.chains)} arms, got {len(boxes)}"
            )
        self._robot, self._limits, self._period_s = robot, limits, period_s
        self._joints = [np.array(joints) for _, joints in robot.chains]
        self._names = ["arm"] if len(boxes) == 1 else [f"{name} arm" for name in robot.arm_names]
        self._lower = np.array([box.lower for box in boxes], dtype=np.float64)
        self._upper = np.array([box.upper for box in boxes], dtype=np.float64)
        self._reach = [_reach(robot, arm) for arm in range(len(boxes))]
        # What holds now: the box, grown to a tip that is outside.
        self._low, self._high = self._lower.copy(), self._upper.copy()
        self._anchor: list[Array] = [np.full(len(joints), np.nan) for joints in self._joints]
        self._free_m = [-1.0] * len(boxes)
        self._met = ""

    @property
    def reason(self) -> str:
        """Which side of which box stopped the last motion, as a sentence."""
        return self._met

    def begin(self, position: Array) -> None:
        """The arms are at `position` (dof,) and may get no further out than they are."""
        for arm, joints in enumerate(self._joints):
            tip = self._tips(arm, position[joints])
            self._low[arm] = np.minimum(self._lower[arm], tip)
            self._high[arm] = np.maximum(self._upper[arm], tip)
            self._move_anchor(arm, position[joints], tip)

    def outside(self, position: Array) -> str:
        """Where `position` (dof,) leaves a box, as a sentence; empty when it does not."""
        for arm, joints in enumerate(self._joints):
            tip = self._tips(arm, position[joints])[None]
            found = self._first_out(arm, tip, self._lower[arm], self._upper[arm])
            if found is not None:
                return found[1]
        return ""

    def first_outside(self, positions: Array) -> tuple[int, str] | None:
        """The first of `positions` (n, dof) that leaves what is allowed from the first one on, and why.

        The first position counts as where the arm is: if its tip is outside, the way may lead back, not further out.
        """
        first: tuple[int, str] | None = None
        for arm, joints in enumerate(self._joints):
            tips = self._tips(arm, positions[:, joints])
            # Once inside, a tip has to stay there: the box grown to the start shrinks along the way.
            low = np.minimum(self._lower[arm], np.maximum.accumulate(tips, axis=0))
            high = np.maximum(self._upper[arm], np.minimum.accumulate(tips, axis=0))
            found = self._first_out(arm, tips, low, high)
            if found is not None and (first is None or found[0] < first[0]):
                first = found
        return first

    def permits(self, arm: int, motion: Motion) -> bool:
        """Tell whether the tip of `arm` may be where `motion` (dof,) puts it, and on every tick of the stop from it."""
        joints = self._joints[arm]
        q, v, a = motion.position[joints], motion.velocity[joints], motion.acceleration[joints]
        accelerations, jerks = self._limits.acceleration[joints], self._limits.jerk[joints]
        # No stop is longer than this one: at the peak velocity until the whole of the acceleration is reached.
        peak = np.abs(v) + a * a / (2.0 * jerks)
        travel = peak * (peak / (2.0 * accelerations) + 2.0 * accelerations / jerks)
        if self._near(arm, q, travel):
            return True
        self._move_anchor(arm, q, self._tips(arm, q))
        if self._near(arm, q, travel):
            return True
        stop = Stop.of(Motion(q, v, a), accelerations, jerks)
        count = int(np.ceil(stop.duration / self._period_s))
        times = np.arange(count + 1, dtype=np.float64)[:, None] * self._period_s
        way = stop.at(np.asarray(times)).position
        found = self._first_out(arm, self._tips(arm, way), self._low[arm], self._high[arm])
        if found is None:
            # A tip that came back stays back.
            tip = self._tips(arm, q)
            self._low[arm] = np.minimum(self._lower[arm], np.maximum(self._low[arm], tip))
            self._high[arm] = np.maximum(self._upper[arm], np.minimum(self._high[arm], tip))
            return True
        self._met = found[1]
        return False

    # -- geometry ---------------------------------------------------------------------------------------------------

    def _tips(self, arm: int, positions: Array) -> Array:
        """Tips (..., 3), m, of `arm` for its joints' `positions` (..., joints), rad."""
        return np.asarray(self._robot.chains[arm][0].tip(positions)[..., :3, 3])

    def _move_anchor(self, arm: int, position: Array, tip: Array) -> None:
        self._anchor[arm] = position.copy()
        self._free_m[arm] = float(min((tip - self._low[arm]).min(), (self._high[arm] - tip).min()))

    def _near(self, arm: int, position: Array, travel: Array) -> bool:
        """True when no motion by `travel` from `position` can take the tip as far as the anchor is from the box."""
        way = float(self._reach[arm] @ (np.abs(position - self._anchor[arm]) + travel))
        return way <= self._free_m[arm]  # False while there is no anchor: NaN

    def _first_out(self, arm: int, tips: Array, low: Array, high: Array) -> tuple[int, str] | None:
        excess = np.maximum(low - tips, tips - high)
        rows = np.flatnonzero((excess > SLACK_M).any(axis=1))
        if not len(rows):
            return None
        i = int(rows[0])
        axis = int(np.argmax(excess[i]))
        below = tips[i, axis] < (self._lower[arm][axis] + self._upper[arm][axis]) / 2.0
        limit = (self._lower if below else self._upper)[arm][axis]
        side = "floor" if below and axis == 2 else f"{'lowest' if below else 'highest'} {AXES[axis]}"
        return i, (
            f"workspace: the tip of the {self._names[arm]} would be at {AXES[axis]} {tips[i, axis]:.3f} m, "
            f"outside its {side} {limit:.3f} m"
        )


def _reach(robot: Embodiment, arm: int) -> Array:
    """How far the tip can be from each joint (joints,), m: no joint moves it faster than that."""
    chain = robot.chains[arm][0]
    lengths = [float(np.linalg.norm(joint.xyz)) for joint in chain.joints[1:]] + [float(np.linalg.norm(chain.tip_xyz))]
    return np.cumsum(lengths[::-1])[::-1]
