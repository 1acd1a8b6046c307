"""What a leader says: set-points of a person at a leader arm, a gamepad or a keyboard, in the robot's own joints.

A leader is trusted less than a policy: its cable may be pulled out, its bus may repeat or mix up readings, and a second
one may be started. What it says is held against the clock, against the reading before and against the robot's limits;
what cannot be true ends its turn, and the arm holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import Counters, ExecutorConfig

Array = NDArray[np.float64]

STEADY_S = 0.2
"""So long, and three readings at least, a leader must have been sound before it may take over."""
LEAST_READINGS = 3
BEYOND_RAD = 0.5
"""How far outside the arm's limits a joint of the leader may be: arms are calibrated one by one. It counts as at the
limit; further out it is no reading of this robot."""
SLACK_RAD = 0.05
"""Steps of the leader's encoders, and play, between two readings."""
JITTER_S = 0.02
"""So much less time may lie between two stamps than between the readings."""


class LeaderError(ValueError):
    """A reading that cannot be used. `kind` stays the same while the cause does."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Leader:
    """The newest sound reading. Not thread-safe.

    Args:
        counters: where readings that are refused, come twice or out of order are counted.

    Attributes:
        position: (dof,), rad or m, ROS order; None until one has come.
        stamp_ns: when it was read.
        publishers: their ids -> names for messages, put here by who knows.
    """

    def __init__(self, robot: Embodiment, config: ExecutorConfig, counters: Counters) -> None:
        self._robot, self._config, self._counters = robot, config, counters
        self._arm_joints = np.concatenate([np.arange(robot.dof)[arm] for arm in robot.arms])
        self._timeout_ns = config.leader_timeout_s * 1e9
        self.position: Array | None = None
        self.stamp_ns = 0
        self.publishers: dict[str, str] = {}
        self._heard: dict[str, int] = {}
        self._since_ns: int | None = None
        self._readings = 0
        self._wrong = ""

    def take(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int, publisher: str = ""
    ) -> bool:
        """Take a reading; True when it is newer than the one before. Repeated and overtaken ones are counted only.

        Raises:
            LeaderError: it cannot be used.
        """
        self._heard[publisher] = now_ns
        if (self.stamp_ns - now_ns) * 1e-9 > self._config.max_future_s:
            # The clock was set back: readings from before would hide every one that comes now.
            self.position, self.stamp_ns, self._since_ns, self._readings = None, 0, None, 0
        try:
            if stamp_ns <= self.stamp_ns:
                repeated = stamp_ns == self.stamp_ns
                self._counters.leader_repeated += repeated
                self._counters.leader_out_of_order += not repeated
                self._only_one(now_ns)
                return False
            self._take(self._checked(names, positions, stamp_ns, now_ns), stamp_ns)
        except LeaderError as error:
            self._since_ns, self._readings, self._wrong = None, 0, str(error)
            self._counters.leader_refused += 1
            self._counters.last_leader_refusal = str(error)
            raise
        if self._since_ns is None:
            self._since_ns = stamp_ns
        self._readings += 1
        self._wrong = ""
        return True

    def trouble(self, now_ns: int) -> str:
        """Why the leader cannot be followed now; empty when it can."""
        if self._wrong:
            return self._wrong
        if self.position is None:
            return "no leader has been heard on teleop/command; is teleop_node running?"
        silence = (now_ns - self.stamp_ns) * 1e-9
        if silence > self._config.leader_timeout_s:
            return (
                f"the leader's newest reading is {silence:.2f} s old (limit {self._config.leader_timeout_s:.2f} s); is "
                "its cable in, and its power on?"
            )
        return ""

    def unsteady(self) -> str:
        """Why the leader has not been sound for long enough to take over; empty when it has."""
        read_s = 0.0 if self._since_ns is None else (self.stamp_ns - self._since_ns) * 1e-9
        if self._readings >= LEAST_READINGS and read_s >= STEADY_S:
            return ""
        return f"the leader was read for {read_s:.2f} s only, and {STEADY_S:.2f} s are wanted; try again"

    # -- inside -------------------------------------------------------------------------------------------------------

    def _checked(self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int) -> Array:
        ahead = (stamp_ns - now_ns) * 1e-9
        if ahead > self._config.max_future_s:
            raise LeaderError(
                "future",
                f"the leader's reading is stamped {ahead:.3f} s in the future; are the machines' clocks synchronised?",
            )
        self._only_one(now_ns)
        try:
            position = self._robot.reorder(list(names), np.asarray(positions, dtype=np.float64))
        except ValueError as error:
            raise LeaderError("reading", f"leader: {error}") from None
        beyond = self._robot.beyond(position, BEYOND_RAD)
        j = int(np.argmax(beyond))
        if beyond[j] > 0.0:
            limits = self._robot.limits
            raise LeaderError(
                "position",
                f"the leader's {self._robot.joint_names[j]} is at {position[j]:.4g} {self._robot.unit(j)}, far outside "
                f"the arm's limits {limits.lower[j]:.3f} to {limits.upper[j]:.3f}; is it calibrated?",
            )
        return position

    def _only_one(self, now_ns: int) -> None:
        present = [who for who, at_ns in self._heard.items() if now_ns - at_ns <= self._timeout_ns]
        if len(present) > 1:
            who = sorted(self.publishers.get(one, "a node without a name") for one in present)
            raise LeaderError("rivals", f"{len(present)} leaders speak at once ({', '.join(who)}); end all but one")

    def _take(self, position: Array, stamp_ns: int) -> None:
        """Raises LeaderError where no hand moves so fast; the new reading is then the one to compare the next with."""
        before, gap_ns = self.position, stamp_ns - self.stamp_ns
        self.position, self.stamp_ns = position, stamp_ns
        if before is None:
            return
        if gap_ns > self._timeout_ns:
            self._since_ns, self._readings = None, 0
            return
        allowed = self._config.leader_max_speed * (gap_ns * 1e-9 + JITTER_S) + SLACK_RAD
        moved = np.abs(position - before)[self._arm_joints]
        worst = int(np.argmax(moved))
        if moved[worst] > allowed:
            j = int(self._arm_joints[worst])
            raise LeaderError(
                "jump",
                f"the leader's {self._robot.joint_names[j]} jumped from {before[j]:.3f} to {position[j]:.3f} rad "
                f"within {gap_ns * 1e-6:.0f} ms, more than a hand does ({allowed:.3f})",
            )
