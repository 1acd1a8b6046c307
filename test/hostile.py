"""An executor among hostile inputs, in steps of its own time: policies, drivers and people that do their worst.

A story is a list of chapters; a chapter is one way to send chunks, one way to answer as an arm, one thing that a person
or a clock does at its beginning, and a seed for everything random in it. The same story gives the same calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from witness import Witness

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.supervisor import State

Array = NDArray[np.float64]

START_NS = 1_700_000_000_000_000_000
TICKS = 50
"""Ticks a chapter."""
RATES = {"so101": 100.0, "franka": 250.0, "yam": 250.0}
LEADS = {"so101": 0.0, "franka": 0.01, "yam": 0.0}

CHUNKS = (
    "none", "plain", "walk", "edge", "swing", "saw", "teleport", "late", "future", "repeated", "reordered",
    "not finite", "absurd", "misshapen", "flicker", "short", "long", "shaking",
)  # fmt: skip
ARMS = ("follows", "lags", "silent", "frozen", "jumps", "noisy", "not finite", "old", "early", "blocked", "misnamed")
ACTS = (
    "nothing", "nothing", "nothing", "nothing", "e-stop", "release", "disarm", "arm", "task", "reset", "start pose",
    "late tick", "clock forward", "clock back", "same time", "hardware", "stutter",
)  # fmt: skip

chapters = st.tuples(
    st.sampled_from(CHUNKS), st.sampled_from(ARMS), st.sampled_from(ACTS), st.integers(0, 2**20), st.booleans()
)


class Hostile:
    """One executor and what happens to it; `witness` keeps what it commands.

    The arm behind trajectories is commanded ahead of the others, as its configuration has it.
    """

    def __init__(self, robot: Embodiment, config: ExecutorConfig | None = None) -> None:
        self.robot = robot
        rate = RATES[robot.name]
        self.period_ns = round(1e9 / rate)
        self.executor = Executor(robot, config or ExecutorConfig(rate_hz=rate, lead_s=LEADS[robot.name]))
        self.witness = Witness(self.executor, self.period_ns)
        self.now_ns = START_NS
        self.position = robot.rest_position.copy()
        self.frozen = self.position.copy()
        self.commanded = self.position.copy()
        self._sent: list[ChunkMessage] = []
        self.rng = np.random.default_rng(0)
        self._direction = 1.0
        self.executor.configured()
        self._answer("follows")

    # -- a story ----------------------------------------------------------------------------------------------------

    def live(self, story: list[tuple[str, str, str, int, bool]]) -> None:
        """Chapter after chapter; every second one begins with a person who sets things right and arms."""
        for chunks, arm, act, seed, put_right in story:
            self.rng = np.random.default_rng(seed)
            if put_right:
                self.put_right()
            self._act(act)
            gap = int(self.rng.integers(1, 25))
            self._direction = float(self.rng.choice((-1.0, 1.0)))
            for i in range(TICKS):
                if i % gap == 0:
                    self._policy(chunks)
                self.tick(arm, act if act == "stutter" else "")

    def put_right(self) -> None:
        """What a person does who wants the arm to work again."""
        executor = self.executor
        executor.on_e_stop(False, self.now_ns)
        executor.on_hardware("", self.now_ns)
        self._answer("follows")
        if executor.state is State.ESTOPPED:
            executor.reset_e_stop(self.now_ns)
        if executor.state is State.FAULT:
            executor.disarm(self.now_ns)
        if executor.state is State.DISARMED:
            self.settle()
            executor.arm(self.now_ns)

    def settle(self) -> None:
        """The arm stands where it is, and is read, for as long as arming wants it."""
        for _ in range(math.ceil(0.35e9 / self.period_ns)):
            self.tick("follows")

    def tick(self, arm: str = "follows", act: str = "") -> None:
        """One period, the command, and the arm's answer to it."""
        self.now_ns += self.period_ns
        if act == "stutter" and self.rng.random() < 0.2:
            self.now_ns += int(self.rng.integers(-self.period_ns, 30 * self.period_ns))
        setpoint = self.executor.tick(self.now_ns)
        self.witness.note(setpoint, self.now_ns)
        if setpoint is not None:
            self.commanded = setpoint.copy()
        self._answer(arm)

    # -- the policy ---------------------------------------------------------------------------------------------------

    def _send(
        self, rows: Array, stamp_ns: int | None = None, names: tuple[str, ...] = (), shift_s: float = 0.0
    ) -> None:
        rate = self.robot.rate_hz
        times = [(i + 1) / rate + shift_s for i in range(len(rows))]
        stamp_ns = self.now_ns if stamp_ns is None else stamp_ns
        message = ChunkMessage(stamp_ns, names or self.robot.joint_names, rows.tolist(), times)
        self._sent = [*self._sent[-8:], message]
        self.executor.on_chunk(message, self.now_ns)

    def _policy(self, kind: str) -> None:
        if kind != "none":
            getattr(self, f"_chunk_{kind.replace(' ', '_')}")()

    def _arm_rows(self, count: int | None = None) -> Array:
        return np.tile(self.commanded, (count or self.robot.horizon, 1))

    def _steps(self, steps: Array) -> Array:
        """Rows (n, dof) from the command on by `steps`, held to the largest step of the robot and its limits."""
        limits, largest = self.robot.limits, self.robot.max_step * (1.0 - 1e-9)
        rows, row = [], self.commanded
        for step in steps:
            row = np.clip(row + np.clip(step, -largest, largest), limits.lower, limits.upper)
            rows.append(row)
        return np.array(rows)

    def _chunk_plain(self) -> None:
        speed = self.rng.uniform(-0.5, 0.5, self.robot.dof) * self.robot.limits.velocity
        self._send(self._steps(np.tile(speed / self.robot.rate_hz, (self.robot.horizon, 1))))

    def _chunk_walk(self) -> None:
        shape = self.robot.horizon, self.robot.dof
        self._send(self._steps(self.rng.uniform(-1.0, 1.0, shape) * self.robot.max_step))

    def _chunk_shaking(self) -> None:
        rows = self._steps(np.zeros((self.robot.horizon, self.robot.dof)))
        self._send(rows + self.rng.normal(0.0, 0.01, rows.shape) * (self.robot.max_step > 0.1))

    def _chunk_edge(self) -> None:
        """As fast as it may go into the corner of the joint space, and a little beyond."""
        rows = self._steps(np.tile(self._direction * self.robot.max_step, (self.robot.horizon, 1)))
        self._send(rows + self._direction * 0.049 * (rows >= self.robot.limits.upper - 1e-6))

    def _chunk_swing(self) -> None:
        """From one end of every joint to the other, a chunk each."""
        self._direction = -self._direction
        self._chunk_edge()

    def _chunk_saw(self) -> None:
        signs = np.where(np.arange(self.robot.horizon) % 2, -1.0, 1.0)[:, None] * self._direction
        self._send(self._steps(signs * self.robot.max_step))

    def _chunk_teleport(self) -> None:
        limits = self.robot.limits
        self._send(np.tile(self.rng.uniform(limits.lower, limits.upper), (self.robot.horizon, 1)))

    def _chunk_late(self) -> None:
        age = self.rng.uniform(0.0, 1.3) * self.robot.horizon / self.robot.rate_hz
        speed = self.rng.uniform(-0.3, 0.3, self.robot.dof) * self.robot.limits.velocity
        rows = self._steps(np.tile(speed / self.robot.rate_hz, (self.robot.horizon, 1)))
        self._send(rows, self.now_ns - round(age * 1e9))

    def _chunk_future(self) -> None:
        self._send(self._arm_rows(), self.now_ns + int(self.rng.integers(0, 300_000_000)))

    def _chunk_repeated(self) -> None:
        if not self._sent or self.rng.random() < 0.3:
            self._chunk_walk()
        self.executor.on_chunk(self._sent[-1], self.now_ns)

    def _chunk_reordered(self) -> None:
        self._chunk_walk()
        for i in self.rng.permutation(len(self._sent)):
            self.executor.on_chunk(self._sent[int(i)], self.now_ns)

    def _chunk_not_finite(self) -> None:
        rows = self._arm_rows()
        rows[self.rng.integers(len(rows)), self.rng.integers(self.robot.dof)] = self.rng.choice(
            (np.nan, np.inf, -np.inf)
        )
        self._send(rows)

    def _chunk_absurd(self) -> None:
        self._send(self._arm_rows() + self.rng.choice((1e300, -1e6, 10.0, 3.2)))

    def _chunk_misshapen(self) -> None:
        kind = int(self.rng.integers(5))
        rows = self._arm_rows()
        if kind == 0:
            self._send(rows[:, :-1])
        elif kind == 1:
            self._send(rows[:0])
        elif kind == 2:
            self._send(rows, names=("elsewhere", *self.robot.joint_names[1:]))
        elif kind == 3:
            self._send(rows, shift_s=float(self.rng.uniform(-1.0, 1.0)))
        else:
            self._send(np.tile(rows, (20, 1)))

    def _chunk_flicker(self) -> None:
        rows = self._steps(np.zeros((self.robot.horizon, self.robot.dof)))
        for j in self.robot.gripper_indices:
            ends = np.array([self.robot.limits.lower[j], self.robot.limits.upper[j]])
            rows[:, j] = ends[self.rng.integers(0, 2, len(rows))]
        self._send(rows)

    def _chunk_short(self) -> None:
        self._send(self._steps(self.rng.uniform(-1.0, 1.0, (int(self.rng.integers(1, 4)), self.robot.dof)) * 0.1))

    def _chunk_long(self) -> None:
        count = int(self.rng.integers(self.robot.horizon, 5 * self.robot.horizon))
        self._send(self._steps(np.cumsum(self.rng.normal(0.0, 0.02, (count, self.robot.dof)), axis=0)))

    # -- the arm ------------------------------------------------------------------------------------------------------

    def _answer(self, kind: str) -> None:
        rng, position, stamp = self.rng, self.commanded, self.now_ns
        names: tuple[str, ...] = self.robot.joint_names
        if kind == "silent":
            return
        if kind == "lags":
            self.position = self.position + 0.2 * (position - self.position)
        elif kind == "blocked":
            self.position[0] = position[0] if abs(position[0] - self.position[0]) > 1.0 else self.position[0]
            self.position[1:] = position[1:]
        else:
            self.position = position.copy()
        reading = self.position.copy()
        if kind == "frozen":
            reading = self.frozen
        elif kind == "jumps" and rng.random() < 0.1:
            reading += rng.normal(0.0, 1.0, len(reading))
        elif kind == "noisy":
            reading += rng.normal(0.0, 0.003, len(reading))
        elif kind == "not finite":
            reading[rng.integers(len(reading))] = np.nan
        elif kind == "old":
            stamp -= int(rng.integers(0, 600_000_000))
        elif kind == "early":
            stamp += int(rng.integers(0, 300_000_000))
        elif kind == "misnamed":
            names = (*names[1:], "nobody")
        self.frozen = reading
        self.executor.on_joint_state(names, reading.tolist(), stamp, self.now_ns)

    # -- people and clocks --------------------------------------------------------------------------------------------

    def _act(self, act: str) -> None:
        executor, now, rng = self.executor, self.now_ns, self.rng
        calls: dict[str, Callable[[], object]] = {
            "e-stop": lambda: executor.on_e_stop(True, now),
            "release": lambda: executor.on_e_stop(False, now),
            "disarm": lambda: executor.disarm(now),
            "arm": lambda: executor.arm(now),
            "task": lambda: executor.on_task(now),
            "reset": lambda: executor.reset_e_stop(now),
            "start pose": lambda: executor.go_to_start(now),
            "hardware": lambda: executor.on_hardware("motor 3 is hot" if rng.random() < 0.7 else "", now),
        }
        if act in calls:
            calls[act]()
        elif act == "late tick":
            self.now_ns += int(rng.integers(0, 400_000_000))
        elif act == "clock forward":
            self.now_ns += int(rng.integers(0, 100_000_000_000))
        elif act == "clock back":
            self.now_ns -= int(rng.integers(0, 10_000_000_000))
        elif act == "same time":
            self.now_ns -= self.period_ns

    # -- the way out --------------------------------------------------------------------------------------------------

    def find_the_way_out(self) -> None:
        """Whatever happened: released, reset and disarmed with a working arm it gets to DISARMED, and from there on."""
        executor = self.executor
        executor.on_e_stop(False, self.now_ns)
        executor.on_hardware("", self.now_ns)
        bound = round(5.0e9 / self.period_ns)
        for _ in range(bound):
            self.tick("follows")
            if executor.state is State.ESTOPPED:
                executor.reset_e_stop(self.now_ns)
            elif executor.state is not State.DISARMED:
                executor.disarm(self.now_ns)
            else:
                break
        assert executor.state is State.DISARMED, f"no way out of {executor.state.value}: {executor.reason}"
        self.settle()
        armed, why = executor.arm(self.now_ns)
        assert armed, f"cannot arm again: {why}"
        self.tick("follows")
        self._send(self._steps(np.zeros((self.robot.horizon, self.robot.dof))))
        assert executor.state is State.TRACKING, f"no way on from {executor.state.value}: {executor.reason}"
        self.tick("follows")
