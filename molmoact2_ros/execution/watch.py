"""Watches what the executor depends on: its clock, the encoders, the driver, and whether the arm does as it is told.

Each watch says what is wrong in one sentence and what follows: a halt, which a fresh chunk ends, where an input is
missing; a fault, which a person ends, where the arm does not do what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.supervisor import Event

Array = NDArray[np.float64]

BACK = "joint_states are back; waiting for a fresh action chunk"


@dataclass(frozen=True)
class Finding:
    """What a watch found: `event` is HALT or FAULT."""

    event: Event
    reason: str


class Watch:
    """All watches of one robot. `begin` at arming, `commanded` every tick, `clock` and `inputs` before it."""

    def __init__(self, robot: Embodiment, config: ExecutorConfig, feedback: Feedback) -> None:
        self._robot, self._config, self._feedback = robot, config, feedback
        self._arms = [np.arange(robot.dof)[arm] for arm in robot.arms]
        self._arm_joints = np.concatenate(self._arms)
        self._commands = np.zeros((max(1, round(config.tracking_window_s * config.rate_hz)), robot.dof))
        self._next = 0
        self._command = np.zeros(robot.dof)
        self._unchanged_at = [np.zeros(len(joints)) for joints in self._arms]
        self._told_since_ns: list[int | None] = [None] * len(self._arms)
        self._blind = False
        self._error_since_ns: int | None = None
        self._acknowledged_ns = 0
        self.tracking_error = 0.0
        """Distance, rad, of the worst arm joint from all its recent commands."""

    def begin(self, position: Array, now_ns: int) -> None:
        """Armed at `position` (dof,): that is what the arm was told so far."""
        self._commands[:] = self._command[:] = position
        for arm in range(len(self._arms)):
            self._anchor(arm)
        self._blind = False
        self._error_since_ns = None
        self._acknowledged_ns = now_ns
        self._feedback.forget_jump()

    def end(self) -> None:
        """Disarmed."""
        self.tracking_error = 0.0

    def commanded(self, position: Array) -> None:
        """Remember a command (dof,)."""
        self._command[:] = self._commands[self._next] = position
        self._next = (self._next + 1) % len(self._commands)

    def measured(self, changed: list[int]) -> None:
        """A reading has come in which the arms `changed` differ from the one before."""
        for arm in changed:
            self._anchor(arm)

    def acknowledged(self, stamp_ns: int) -> None:
        """The driver has passed on a command at `stamp_ns`."""
        self._acknowledged_ns = max(self._acknowledged_ns, stamp_ns)

    # -- what is wrong ------------------------------------------------------------------------------------------------

    def clock(self, now_ns: int, last_ns: int | None) -> Finding | None:
        """A gap between ticks, or a step back in time."""
        if last_ns is None:
            return None
        gap = (now_ns - last_ns) * 1e-9
        if 0.0 < gap <= self._config.max_tick_gap_s:
            return None
        if gap <= 0.0:
            self._feedback.clock_went_back(now_ns)
            self._acknowledged_ns = min(self._acknowledged_ns, now_ns)
        return Finding(Event.HALT, f"the command loop stood still or its clock jumped, by {gap:.3f} s")

    def inputs(self, now_ns: int, holding: bool) -> Finding | None:
        """Silence of the encoders, once; else a fault of the arm or its driver. `holding`: nothing moves.

        After a jump nobody knows which reading is true, and the next chunk begins where the false one is.
        """
        if self._feedback.jump:
            return Finding(Event.FAULT, f"joint state: {self._feedback.jump} Disarm and arm again")
        stale = self._feedback.stale(now_ns)
        if stale is not None:
            self._error_since_ns = None
            known, self._blind = self._blind, True
            return None if known else Finding(Event.HALT, stale)
        if self._blind:
            self._blind = False
            if holding:
                return Finding(Event.HALT, BACK)
        reason = self._unacknowledged(now_ns) or self._frozen(now_ns) or self._off_course(now_ns)
        return Finding(Event.FAULT, reason) if reason else None

    def _unacknowledged(self, now_ns: int) -> str:
        limit = self._config.acknowledgement_timeout_s
        silence = (now_ns - self._acknowledged_ns) * 1e-9
        if limit <= 0.0 or silence <= limit:
            return ""
        return (
            f"driver has acknowledged no command for {silence:.2f} s (limit {limit:.2f} s); is it running, and did it "
            "hold by itself? Disarm and arm again"
        )

    def _frozen(self, now_ns: int) -> str:
        """The same reading to the last bit, since long after the arm was told to move: a bus that repeats itself."""
        for arm, joints in enumerate(self._arms):
            told = np.abs(self._command[joints] - self._unchanged_at[arm])
            j = int(np.argmax(told))
            since_ns = self._told_since_ns[arm]
            if since_ns is None:
                if told[j] > 0.1 * self._config.frozen_travel:
                    self._told_since_ns[arm] = now_ns
                continue
            still_s = (self._feedback.stamp_ns - since_ns) * 1e-9  # by readings: without any it is silence
            if still_s >= self._config.frozen_s and told[j] >= self._config.frozen_travel:
                name = self._robot.joint_names[int(joints[j])]
                return (
                    f"feedback frozen: the joint states of {name}'s arm have been the same to the last bit for "
                    f"{still_s:.2f} s, while {name} was told to move {told[j]:.3f} rad; does the driver repeat old "
                    "readings, or is the arm blocked? Disarm and arm again"
                )
        return ""

    def _off_course(self, now_ns: int) -> str:
        """A measured arm joint that is far from every recent command. A gripper that holds something never arrives."""
        assert self._feedback.position is not None
        low, high = self._commands.min(axis=0), self._commands.max(axis=0)
        measured = self._feedback.position
        errors = np.maximum(np.maximum(low - measured, measured - high), 0.0)[self._arm_joints]
        worst = int(np.argmax(errors))
        self.tracking_error = float(errors[worst])
        limit = self._config.max_tracking_error
        if self.tracking_error <= limit:
            self._error_since_ns = None
            return ""
        if self._error_since_ns is None:
            self._error_since_ns = now_ns
        if (now_ns - self._error_since_ns) * 1e-9 < self._config.tracking_error_s:
            return ""
        name = self._robot.joint_names[int(self._arm_joints[worst])]
        return (
            f"tracking error: {name} is {self.tracking_error:.3f} rad from its command (limit {limit:g}); is it "
            "blocked, or was the arm moved? Disarm and arm again"
        )

    def _anchor(self, arm: int) -> None:
        """Count the way that this arm is told to go, and the time that it takes, from its present command on."""
        self._unchanged_at[arm][:] = self._command[self._arms[arm]]
        self._told_since_ns[arm] = None
