"""What the encoders say, in the order in which it was measured, and whether an arm can have moved like that."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import Counters, ExecutorConfig
from molmoact2_ros.execution.joint_states import JointStates, ReadingError

Array = NDArray[np.float64]

LEAST_READINGS = 3
"""So many readings in a row that agree are wanted of each joint before arming, however slow its driver is."""
JUMP_FACTOR = 1.5
"""A joint may go faster than its velocity limit by so much: it overshoots, and falls when it loses torque."""
JUMP_JITTER_S = 0.02
"""So much less time may lie between two stamps than between the readings: not every driver stamps at once."""
JUMP_SLACK_RAD = 0.02
"""Steps of encoders, and play."""


class Feedback:
    """The newest encoder reading of every joint, held against the clock and against the readings before.

    Args:
        counters: where readings that are refused, come twice or out of order, or jump are counted.
    """

    def __init__(self, robot: Embodiment, config: ExecutorConfig, counters: Counters) -> None:
        self._robot, self._config, self._counters = robot, config, counters
        self._states = JointStates(
            robot, config.joint_state_timeout_s, config.max_future_s, config.unstamped_joint_states == "receive"
        )
        self._arm_joints = np.concatenate([np.arange(robot.dof)[arm] for arm in robot.arms])
        self._jump = np.full(robot.dof, np.inf)
        # An arm that is told to be slow can still be moved by hand, or fall.
        fastest = np.maximum(robot.limits.velocity, robot.scaled_limits(config.speed_scale).velocity)
        self._jump[self._arm_joints] = JUMP_FACTOR * fastest[self._arm_joints]
        self._since_ns: NDArray[np.int64] = np.zeros(robot.dof, dtype=np.int64)
        self._readings: NDArray[np.int64] = np.zeros(robot.dof, dtype=np.int64)
        self._history: deque[tuple[int, Array]] = deque()
        self._jumped_ns = 0
        self._jump_told = ""
        self.jump = ""
        """What jumped as no joint can, since `forget_jump`; empty when nothing did."""

    @property
    def position(self) -> Array | None:
        """The newest reading (dof,), rad, ROS order; None until every joint has come."""
        return self._states.position if self._states.complete else None

    @property
    def stamp_ns(self) -> int:
        """Stamp of the joint that was read longest ago."""
        return self._states.oldest_ns

    @property
    def publishers(self) -> dict[str, str]:
        """Publisher's id -> the name of its node, for messages."""
        return self._states.publishers

    def take(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        now_ns: int | None = None,
        publisher: str = "",
    ) -> list[int]:
        """Take a message, as `JointStates.take` does.

        Returns the arms whose reading has changed.

        Raises:
            ReadingError: see there.
        """
        states, counters = self._states, self._counters
        before, stamps = states.position, states.stamps_ns.copy()
        try:
            taken = states.take(names, positions, stamp_ns, now_ns, publisher)
        except ReadingError as error:
            counters.joint_states_refused += 1
            counters.joint_states_unstamped += error.kind == "unstamped"
            raise
        counters.joint_states_repeated, counters.joint_states_out_of_order = states.repeated, states.out_of_order
        if not len(taken):
            return []
        self._follow(taken, before, stamps)
        if states.complete:
            self._history.append((int(states.stamps_ns.max()), states.position))
            self._prune()
        changed = before != states.position  # NaN, of a joint that had none, differs from everything
        return [arm for arm, joints in enumerate(self._robot.arms) if changed[joints].any()]

    def _follow(self, taken: NDArray[np.int_], before: Array, stamps: NDArray[np.int64]) -> None:
        """Hold new readings of the joints `taken` against those `before`, of `stamps`."""
        states = self._states
        gap_s = (states.stamps_ns - stamps)[taken] * 1e-9
        anew = (stamps[taken] == 0) | (gap_s <= 0.0) | (gap_s > self._config.joint_state_timeout_s)
        self._begin(taken[anew])
        self._readings[taken] += 1
        known = taken[~anew]
        moved = np.abs(states.position - before)[known]
        allowed = self._jump[known] * (gap_s[~anew] + JUMP_JITTER_S) + JUMP_SLACK_RAD
        over = moved - allowed
        if not len(known) or over.max() <= 0.0:
            return
        i = int(np.argmax(over))
        j = int(known[i])
        self.jump = self._jump_told = (
            f"{self._robot.joint_names[j]} jumped from {before[j]:.3f} to {states.position[j]:.3f} rad within "
            f"{gap_s[~anew][i] * 1e3:.0f} ms, more than it can ({allowed[i]:.3f}); does something else publish joint "
            "states, or values that no encoder measured?"
        )
        self._jumped_ns = int(states.stamps_ns[j])
        self._counters.joint_state_jumps += 1
        self._begin(np.arange(self._robot.dof))

    def _begin(self, joints: NDArray[np.int_]) -> None:
        """What was read of `joints` before says nothing about them any more."""
        self._since_ns[joints] = self._states.stamps_ns[joints]
        self._readings[joints] = 0
        if len(joints):
            self._history.clear()

    def _prune(self) -> None:
        newest = self._history[-1][0]
        while newest - self._history[0][0] > self._config.arming_steady_s * 1e9 or self._history[0][0] > newest:
            self._history.popleft()

    # -- what is wrong ------------------------------------------------------------------------------------------------

    def forget_jump(self) -> None:
        """A person has looked at the arm."""
        self.jump = ""

    def stale(self, now_ns: int) -> str | None:
        """Why there is no fresh reading that may be used; None when there is one."""
        return self._states.problem(now_ns) or None

    def unsteady(self, now_ns: int) -> str:
        """Why the readings of late do not say for certain where the arm is; empty when they agree."""
        wanted_s, robot = self._config.arming_steady_s, self._robot
        if wanted_s <= 0.0:
            return ""
        default = self._default()
        if default:
            return default
        read_s = (now_ns - self._since_ns) * 1e-9
        j = int(np.argmin(np.where(self._readings < LEAST_READINGS, read_s - 1e6, read_s)))
        if read_s[j] < wanted_s or self._readings[j] < LEAST_READINGS:
            if self._jumped_ns and self._jumped_ns >= self._since_ns[j]:
                return f"{max(0.0, (now_ns - self._jumped_ns) * 1e-9):.2f} s ago {self._jump_told}"
            return (
                f"{robot.joint_names[j]} was read for {max(0.0, read_s[j]):.2f} s only, {self._readings[j]} times, "
                f"and readings that agree for {wanted_s:.2f} s are wanted; try again"
            )
        travel = np.ptp([position for _, position in self._history], axis=0)[self._arm_joints]
        worst = int(np.argmax(travel))
        if travel[worst] > self._config.arming_spread:
            return (
                f"the readings of {robot.joint_names[int(self._arm_joints[worst])]} differ by {travel[worst]:.3f} rad "
                f"within {wanted_s:.2f} s (limit {self._config.arming_spread:g}); keep the arm still, or end what else "
                "publishes joint states"
            )
        return ""

    def _default(self) -> str:
        """A joint_state_publisher says 0 for each joint that may be there, until it has heard the arm."""
        lower, upper = self._robot.limits.lower, self._robot.limits.upper
        for arm in self._robot.arms:
            may = (lower[arm] <= 0.0) & (upper[arm] >= 0.0)
            if may.sum() > 1 and not self._states.position[arm][may].any():
                names = [name for name, zero in zip(self._robot.joint_names[arm], may, strict=True) if zero]
                return (
                    f"{', '.join(names)} read exactly 0, which no encoder does: so speaks a joint_state_publisher that "
                    "has not heard its driver; start the driver, or name its own topic in joint_state_topics"
                )
        return ""

    def clock_went_back(self, now_ns: int) -> None:
        """Forget stamps of a clock that was ahead: they would hide every reading that comes now."""
        self._states.clock_went_back(now_ns)
        np.minimum(self._since_ns, now_ns, out=self._since_ns)
        self._jumped_ns = min(self._jumped_ns, now_ns)
        self._history.clear()
