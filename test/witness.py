"""Keeps everything that an executor commands, and says what of it must never be."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.supervisor import Event, State

Array = NDArray[np.float64]

LONGEST_STOP_NS = 2_500_000_000
"""No stop is longer, whatever was computed for it: a gripper may take its whole stroke."""
LONGEST_ARM_STOP_NS = 1_200_000_000
"""The same for the arms: a fade of 0.8 s to the last row of a chunk that came late, and a stop."""


@dataclass
class Record:
    """What was commanded without a break: positions (n, dof), and the executor's own state of motion."""

    positions: list[Array] = field(default_factory=list)
    motions: list[Motion] = field(default_factory=list)


@dataclass
class StopWatch:
    """A stop under way: when it was due, and the ticks that are left until then."""

    due_ns: int
    ticks_left: int
    arm_ticks_left: int
    reason: str


class Witness:
    """What `executor` commands every `period_ns`, from its beginning on.

    Attributes:
        records: everything that was commanded. problems: what must never be.
        ticks, moving_ticks, stops: how much was seen.
    """

    def __init__(self, executor: Executor, period_ns: int) -> None:
        self._executor, self._period_ns = executor, period_ns
        robot = executor.robot
        self._arm_joints = [j for j in range(robot.dof) if j not in robot.gripper_indices]
        self.records: list[Record] = []
        self.problems: list[str] = []
        self.ticks = self.moving_ticks = self.stops = 0
        self._running = self._uneven = False
        self._stop: StopWatch | None = None
        self._accepted = 0
        self._last_ns = 0

    @property
    def commands(self) -> list[Array]:
        """Everything that was commanded, in order."""
        return [position for record in self.records for position in record.positions]

    def note(self, setpoint: Array | None, now_ns: int) -> None:
        """Take what the executor commanded at `now_ns`."""
        executor = self._executor
        self.ticks += 1
        if any(change.event is Event.ARM for change in executor.changes()):
            self._running = False  # armed anew: the first command is where the arm is, wherever that is
        if setpoint is None:
            self._running = False
            if executor.state not in (State.DISARMED, State.UNCONFIGURED, State.ESTOPPED, State.FAULT):
                self.problems.append(f"nothing commanded while {executor.state.value}")
        else:
            if executor.state is State.DISARMED and not self._running:
                self.problems.append("commanded while DISARMED")
            if not self._running:
                self.records.append(Record())
                self._running = True
            self.records[-1].positions.append(setpoint.copy())
            self.records[-1].motions.append(executor.motion)
            self.moving_ticks += not executor.motion.still
        self._watch_stop(now_ns)
        self._last_ns = now_ns

    def _watch_stop(self, now_ns: int) -> None:
        """A stop has to be over when the time has passed that was computed for it as it began."""
        executor = self._executor
        due, accepted = executor.stop_due_ns, executor.counters.chunks_accepted
        even = now_ns - self._last_ns == self._period_ns
        self._uneven = not even or (self._uneven and self._stop is None)
        if due is None or accepted != self._accepted:
            self._stop, self._accepted = None, accepted
            return
        if self._stop is None or due != self._stop.due_ns or not even:
            # The computed time holds if every tick comes; a stop that begins with a gap in time is held to the bound.
            left_ns = LONGEST_STOP_NS if self._uneven else due - now_ns
            ticks = int(np.ceil(left_ns / self._period_ns)) + 1
            if left_ns > LONGEST_STOP_NS:
                self.problems.append(f"a stop ({executor.reason}) is to take {left_ns * 1e-9:.2f} s")
            self._stop = StopWatch(due, ticks, round(LONGEST_ARM_STOP_NS / self._period_ns), executor.reason)
            self.stops += 1
            return
        self._stop.ticks_left -= 1
        self._stop.arm_ticks_left -= 1
        if self._stop.ticks_left < 0:
            self.problems.append(f"a stop ({self._stop.reason}) has not ended in its computed time")
            self._stop.ticks_left = 10**9  # told once
        if self._stop.arm_ticks_left < 0 and executor.motion.velocity[self._arm_joints].any():
            self.problems.append(f"a stop ({self._stop.reason}) still moves an arm after 1.2 s")
            self._stop.arm_ticks_left = 10**9

    def check(self) -> None:
        """Every limit, to 1e-9 of the limit, over everything that was commanded.

        Position, and the differences of the set-points up to the third; then the executor's own velocities and
        accelerations, which are what bounds the motion between two set-points.
        """
        for record in self.records:
            self._check_record(np.array(record.positions), record.motions)
        assert not self.problems, self.problems[:3]

    def _check_record(self, positions: Array, motions: list[Motion]) -> None:
        robot, dt = self._executor.robot, self._period_ns * 1e-9
        limits = robot.limits
        assert np.isfinite(positions).all()
        outside = np.maximum(limits.lower - positions, positions - limits.upper)
        assert outside.max() <= 1e-9, f"{outside.max()} outside the position limits"
        padded = np.concatenate((np.repeat(positions[:1], 3, axis=0), positions))
        for order, limit in ((1, limits.velocity), (2, limits.acceleration), (3, limits.jerk)):
            share = (np.abs(np.diff(padded, n=order, axis=0)) / dt**order / limit).max()
            assert share <= 1.0 + 1e-9, f"difference {order} is {share} of its limit"
        velocities = np.array([m.velocity for m in motions])
        accelerations = np.array([m.acceleration for m in motions])
        assert (np.abs(velocities) <= limits.velocity + 1e-9).all()
        assert (np.abs(accelerations) <= limits.acceleration + 1e-9).all()
        jerks = np.diff(accelerations, axis=0) / dt
        assert jerks.size == 0 or (np.abs(jerks) <= limits.jerk * (1.0 + 1e-9)).all()
        low, high = robot.velocity_bounds(positions)
        excess = np.maximum(velocities - high, low - velocities)
        assert excess.max() <= 1e-9, f"{excess.max()} rad/s beyond what is permitted at its position"
        if len(positions) > 1:
            means = np.diff(positions, axis=0) / dt
            for ends in (slice(None, -1), slice(1, None)):
                excess = np.maximum(means - high[ends], low[ends] - means) / limits.velocity
                assert excess.max() <= 1e-9, f"a step faster than permitted at one of its ends, by {excess.max()}"
