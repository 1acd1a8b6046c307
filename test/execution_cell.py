"""An executor with a pretended arm, in steps of its own time: what the execution tests share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, JointLimits, embodiment
from molmoact2_ros.execution.chunk import ChunkMessage, Refusal
from molmoact2_ros.execution.executor import Executor, ExecutorConfig

ROBOT = embodiment("so101")
PERIOD_NS = 10_000_000
START_NS = 1_700_000_000_000_000_000
TIMES = tuple((i + 1) / ROBOT.rate_hz for i in range(ROBOT.horizon))


class Cell:
    """An `Executor` whose arm follows its commands with the lag of a servo (`follow` of the difference a tick,
    one number or one a joint).

    Readings carry `noise` rad, from a generator of their own. `wrong_stamp_ns` is added to their stamps.
    """

    def __init__(
        self,
        config: ExecutorConfig | None = None,
        follow: float | NDArray[np.float64] = 0.5,
        robot: Embodiment = ROBOT,
        noise: float = 0.0,
    ) -> None:
        self.robot = robot
        self.executor = Executor(robot, config or ExecutorConfig())
        self.period_ns = round(1e9 / self.executor.config.rate_hz)
        self.now_ns = START_NS
        self.position = robot.rest_position.copy()
        self.follow, self.noise = follow, noise
        self.sag = np.zeros(robot.dof)
        """How far below its command the arm comes to rest."""
        self.encoders_work = True
        self.wrong_stamp_ns = 0
        self.commands: list[NDArray[np.float64] | None] = []
        self._rng = np.random.default_rng(0)
        self.executor.configured()
        self.settle()

    def settle(self) -> None:
        """Readings of an arm that has stood where it is for long enough to be armed, up to this moment."""
        now_ns = self.now_ns
        for i in reversed(range(math.ceil(0.35e9 / self.period_ns))):
            self.now_ns = now_ns - i * self.period_ns
            self.read_encoders()

    def read_encoders(self) -> None:
        if self.encoders_work:
            measured = self.position + self.noise * self._rng.standard_normal(self.robot.dof)
            stamp = self.now_ns + self.wrong_stamp_ns
            self.executor.on_joint_state(self.robot.joint_names, measured, stamp, self.now_ns)

    def arm(self) -> None:
        done, message = self.executor.arm(self.now_ns)
        assert done, message

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_ns += self.period_ns
            command = self.executor.tick(self.now_ns)
            self.commands.append(None if command is None else command.copy())
            if command is not None:
                self.position = self.position + self.follow * (command + self.sag - self.position)
            self.read_encoders()

    def send(
        self,
        rows: NDArray[np.float64],
        stamp_ns: int | None = None,
        names: Sequence[str] | None = None,
        times: Sequence[float] | None = None,
    ) -> Refusal | None:
        """Offer a chunk, by default of an observation of this moment."""
        stamp_ns = self.now_ns if stamp_ns is None else stamp_ns
        names = self.robot.joint_names if names is None else names
        times = [(i + 1) / self.robot.rate_hz for i in range(len(rows))] if times is None else times
        return self.executor.on_chunk(ChunkMessage(stamp_ns, names, rows.tolist(), times), self.now_ns)

    @property
    def sent(self) -> NDArray[np.float64]:
        """Every command so far (n, dof)."""
        return np.array([command for command in self.commands if command is not None])


def ramp(
    distance: float, start: NDArray[np.float64] | None = None, rows: int | None = None, robot: Embodiment = ROBOT
) -> NDArray[np.float64]:
    """A chunk (rows, dof) that moves the arm joints by `distance` rad in one horizon."""
    rows = robot.horizon if rows is None else rows
    out = np.tile(robot.rest_position if start is None else start, (rows, 1))
    moving = [j for j in range(robot.dof) if j not in robot.gripper_indices]
    out[:, moving] += distance * (np.arange(rows) + 1)[:, None] / robot.horizon
    return out


def assert_within_limits(commands: np.ndarray, limits: JointLimits, period: float) -> None:
    """Position, and its finite differences up to jerk; `commands` (n, dof) come after a rest at the first."""
    assert np.all(commands >= limits.lower) and np.all(commands <= limits.upper)
    padded = np.concatenate((np.repeat(commands[:1], 3, axis=0), commands))
    for order, limit in ((1, limits.velocity), (2, limits.acceleration), (3, limits.jerk)):
        values = np.abs(np.diff(padded, n=order, axis=0)) / period**order
        assert np.all(values <= limit * (1 + 1e-9)), (order, (values / limit).max())
