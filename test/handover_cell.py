"""An executor with a pretended arm, a policy that swings it and a person at a leader: what the tests of handing over
share. All in steps of the cell's own time."""

from __future__ import annotations

import numpy as np
from execution_cell import PERIOD_NS, ROBOT, Cell
from numpy.typing import NDArray

from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.handover import Phase

ARM = ROBOT.arms[0]
TICK_RAD = 2.0 * np.pi / 4096.0
"""One step of a leader's encoder."""
LATE_NS = 3_000_000
"""How old a leader's reading is when it comes."""


class HandoverCell(Cell):
    """The leader is read at every other tick (50 Hz, in whole steps of its encoders), wherever `hand` is; the policy
    sends a chunk every 200 ms that goes on from where the arm is seen. `policy` and `leader` switch both off and on."""

    def __init__(self, config: ExecutorConfig | None = None, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.hand = ROBOT.rest_position.copy()
        self.policy = self.leader = False
        self.direction = 1.0
        self.drove: list[str] = []
        """Who drove, at each tick."""
        super().__init__(config or ExecutorConfig(), follow=0.3)

    @property
    def handover(self):
        return self.executor.handover

    def lead(self, position: NDArray[np.float64] | None = None, stamp_ns: int | None = None, publisher: str = "one"):
        """One reading of the leader; returns why it was refused, if it was."""
        position = np.round((self.hand if position is None else position) / TICK_RAD) * TICK_RAD
        stamp_ns = self.now_ns - LATE_NS if stamp_ns is None else stamp_ns
        return self.handover.on_leader(ROBOT.joint_names, position.tolist(), stamp_ns, self.now_ns, publisher)

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            number = self.now_ns // PERIOD_NS
            if self.leader and number % 2 == 0:
                self.lead()
            if self.policy and number % 20 == 0:
                self.send(self.swing())
            super().tick()
            self.drove.append(self.handover.drives)

    def swing(self) -> NDArray[np.float64]:
        """The policy's chunk: every arm joint goes on at 0.4 rad/s, back and forth about the rest pose."""
        away = float((self.position - ROBOT.rest_position)[ARM].mean())
        if abs(away) > 0.2:
            self.direction = -float(np.sign(away))
        rows = np.tile(self.position, (ROBOT.horizon, 1))
        rows[:, ARM] += self.direction * 0.4 * (np.arange(ROBOT.horizon) + 1)[:, None] / ROBOT.rate_hz
        return np.clip(rows, ROBOT.limits.lower, ROBOT.limits.upper)

    def move_hand(self, speed: float, count: int = 1, goal: NDArray[np.float64] | None = None) -> None:
        """The person moves the leader, each joint at up to `speed` rad/s, for so many ticks: in some direction, or so
        that the arm goes in that of `goal`."""
        step = self.rng.uniform(-speed, speed, ROBOT.dof) * PERIOD_NS * 1e-9
        for _ in range(count):
            if goal is not None:
                step = np.abs(step) * np.sign(goal - self.position)
            self.hand = np.clip(self.hand + step, ROBOT.limits.lower, ROBOT.limits.upper)
            self.tick()

    def until(self, phase: Phase, most: int = 300) -> int:
        """Tick until the handover is in `phase`; returns how many ticks that took."""
        for count in range(most):
            if self.handover.phase is phase:
                return count
            self.tick()
        raise AssertionError(f"{phase} did not come; {self.handover.phase}: {self.executor.reason}")

    def taken_over(self) -> None:
        """Armed, with a leader that drives."""
        self.leader = True
        self.arm()
        self.tick(30)
        done, message = self.handover.take_over(self.now_ns)
        assert done, message
        self.until(Phase.DRIVING)
