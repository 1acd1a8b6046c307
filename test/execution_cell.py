"""An executor with a pretended arm, in steps of its own time: what the execution tests share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits, embodiment
from molmoact2_ros.execution.chunk import ChunkMessage, Refusal
from molmoact2_ros.execution.executor import Executor, ExecutorConfig

ROBOT = embodiment("so101")
PERIOD_NS = 10_000_000
START_NS = 1_700_000_000_000_000_000
TIMES = tuple((i + 1) / ROBOT.rate_hz for i in range(ROBOT.horizon))


class Cell:
    """An `Executor` whose arm follows its commands with the lag of a servo (`follow` of the difference a tick)."""

    def __init__(self, config: ExecutorConfig | None = None, follow: float = 0.5) -> None:
        self.executor = Executor(ROBOT, config or ExecutorConfig())
        self.now_ns = START_NS
        self.position = ROBOT.rest_position.copy()
        self.follow = follow
        self.encoders_work = True
        self.commands: list[NDArray[np.float64] | None] = []
        self.executor.configured()
        self.read_encoders()

    def read_encoders(self) -> None:
        if self.encoders_work:
            self.executor.on_joint_state(ROBOT.joint_names, self.position, self.now_ns)

    def arm(self) -> None:
        done, message = self.executor.arm(self.now_ns)
        assert done, message

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now_ns += PERIOD_NS
            command = self.executor.tick(self.now_ns)
            self.commands.append(None if command is None else command.copy())
            if command is not None:
                self.position = self.position + self.follow * (command - self.position)
            self.read_encoders()

    def send(
        self,
        rows: NDArray[np.float64],
        stamp_ns: int | None = None,
        names: Sequence[str] = ROBOT.joint_names,
        times: Sequence[float] | None = None,
    ) -> Refusal | None:
        """Offer a chunk, by default of an observation of this moment."""
        stamp_ns = self.now_ns if stamp_ns is None else stamp_ns
        times = [(i + 1) / ROBOT.rate_hz for i in range(len(rows))] if times is None else times
        return self.executor.on_chunk(ChunkMessage(stamp_ns, names, rows.tolist(), times), self.now_ns)

    @property
    def sent(self) -> NDArray[np.float64]:
        """Every command so far (n, dof)."""
        return np.array([command for command in self.commands if command is not None])


def ramp(distance: float, start: NDArray[np.float64] | None = None, rows: int = ROBOT.horizon) -> NDArray[np.float64]:
    """A chunk (rows, dof) that moves the five arm joints by `distance` rad in one horizon."""
    out = np.tile(ROBOT.rest_position if start is None else start, (rows, 1))
    out[:, :5] += distance * (np.arange(rows) + 1)[:, None] / ROBOT.horizon
    return out


def assert_within_limits(commands: np.ndarray, limits: JointLimits, period: float) -> None:
    """Position, and its finite differences up to jerk; `commands` (n, dof) come after a rest at the first."""
    assert np.all(commands >= limits.lower) and np.all(commands <= limits.upper)
    padded = np.concatenate((np.repeat(commands[:1], 3, axis=0), commands))
    for order, limit in ((1, limits.velocity), (2, limits.acceleration), (3, limits.jerk)):
        values = np.abs(np.diff(padded, n=order, axis=0)) / period**order
        # Rounding of a position (1e-16 rad) is 1e-9 rad/s^3 in its third difference at 100 Hz.
        assert np.all(values <= limit * (1 + 1e-6)), (order, (values / limit).max())
