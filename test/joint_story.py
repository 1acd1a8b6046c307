"""Executor and driver in one story, on a pretended arm that moves, in a time of its own.

The policy sends what it likes, people press, reset, guide and arm, the bus goes silent, the arm is unplugged and moved,
clocks jump. What reaches the bus is held against the readings, the set-points before it and the arm's limits, with
nothing of the gate's own arithmetic.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.drivers.driver import DriverError, Health, Level, Reading, StaleError
from molmoact2_ros.drivers.gate import Command
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.supervisor import State

Array = NDArray[np.float64]
MS = 1_000_000
REJOIN_RAD, REJOIN_SHARE = 0.05, 0.1
LAG_S = 0.08
UNASKED_RAD = 0.02
"""What an arm may move after it came to rest, before it is armed again: the sag of a hold that begins."""
ACTS = (
    *("nothing", "nothing", "e-stop", "e-stop and release", "release", "guide", "guided by hand", "unplug", "silence"),
    *("hot", "clock forward", "clock back", "late ticks", "disarm", "task", "lost commands", "repeated commands"),
)
CHUNKS = ("smooth", "smooth", "fast", "jump", "teleport", "not finite", "none", "late")


@dataclass
class MovingArm:
    """Servos that follow their goals with a lag, and sag a little; see `drivers.driver.Driver`."""

    robot: Embodiment
    now_ns: int = 0
    there: bool = True
    answers: bool = True
    guided: bool = False
    present: Health = field(default_factory=Health)
    writes: list[tuple[int, Array, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = self.robot.rest_position.copy()
        self.goal = self.position.copy()
        self.sag = np.zeros(self.robot.dof)
        self.sag[1] = -0.01

    def pass_time(self, seconds: float) -> None:
        if self.guided:
            return
        self.position = self.position + (self.goal + self.sag - self.position) * (1.0 - np.exp(-seconds / LAG_S))

    def connect(self) -> None:
        if not self.there:
            raise DriverError("no arm")
        self.goal = self.position.copy()

    def read(self) -> Reading:
        if not (self.there and self.answers):
            raise StaleError("no answer")
        return Reading(self.now_ns, self.position.copy())

    def write(self, positions: Array) -> None:
        if not (self.there and self.answers):
            raise StaleError("no answer")
        self.writes.append((self.now_ns, np.array(positions), self.position.copy()))
        if not self.guided:
            self.goal = np.array(positions)

    def hold(self, positions: Array) -> None:
        self.write(positions)

    def confirms(self, positions: Array) -> bool:
        return bool(np.array_equal(self.goal, positions))

    def health(self) -> Health:
        return self.present

    def disconnect(self) -> None: ...

    def close(self) -> None: ...


class Story:
    """One executor and one driver with their arm, tick by tick.

    Attributes:
        problems: what must never be. ticks, moving_ticks, armings: how much was seen.
    """

    PERIOD_NS = 10 * MS

    def __init__(self, robot: Embodiment, seed: int) -> None:
        self.robot, self.rng = robot, np.random.default_rng(seed)
        self.arm = MovingArm(robot)
        self.now_ns = 1_700_000_000_000_000_000
        self.steady_ns = 0
        config = ExecutorConfig(max_tracking_error=0.5, joint_state_timeout_s=0.25)
        self.executor = Executor(robot, config)
        self.executor.configured()
        self.loop = DriverLoop(self.arm, LoopConfig(retry_s=0.05), self._on_reading, self._steady, self._wait)
        self.readings: list[Array] = []
        self.problems: list[str] = []
        self.ticks = self.moving_ticks = self.armings = 0
        self.silent_ticks = 0
        self._ended = False
        self._rest: Array | None = None
        self._rest_ticks = 0
        self._offset_ns = 0
        self._seen = 0
        self._last: tuple[int, Array] | None = None
        self._joints = [j for j in range(robot.dof) if j not in robot.gripper_indices]
        spread = robot.limits.upper - robot.limits.lower
        self._rejoin = np.where(np.isin(np.arange(robot.dof), self._joints), REJOIN_RAD, REJOIN_SHARE * spread)
        for _ in range(5):
            self.tick("none")

    # -- time ---------------------------------------------------------------------------------------------------------

    def _steady(self) -> int:
        return self.steady_ns

    def _wait(self, condition: threading.Condition, seconds: float) -> None:
        self._pass(max(MS, round(seconds * 1e9)))

    def _pass(self, span_ns: int) -> None:
        self.steady_ns += span_ns
        self.now_ns += span_ns
        self.arm.now_ns = self.now_ns
        self.arm.pass_time(span_ns * 1e-9)

    def _on_reading(self, reading: Reading) -> None:
        self.readings.append(reading.positions)
        if not self.silent_ticks:
            self.executor.on_joint_state(self.robot.joint_names, reading.positions, reading.stamp_ns, self.now_ns)

    # -- one tick -----------------------------------------------------------------------------------------------------

    def tick(self, chunks: str, act: str = "") -> None:
        """One period of everybody."""
        self.ticks += 1
        due = self.steady_ns + self.PERIOD_NS
        if self.ticks % 10 == 0:
            self._send_chunk(chunks)
        setpoint = self.executor.tick(self.now_ns)
        self.executor.on_hardware(self.loop.fault, self.now_ns)
        if setpoint is not None and not (act == "lost commands" and self.rng.random() < 0.5):
            command = Command(setpoint.copy(), self.now_ns, self.executor.arming)
            for _ in range(2 if act == "repeated commands" else 1):
                self.loop.command(command, self.now_ns)
            self.moving_ticks += not self.executor.motion.still
        while self.steady_ns < due:
            self.loop.step()
            if self.steady_ns < due:
                self._pass(min(2 * MS, due - self.steady_ns))
        self._hold_against_the_rules()

    def _hold_against_the_rules(self) -> None:
        """Every write is a step from the last one that the limits allow, or agrees with where the arm is or is held."""
        limits = self.robot.limits
        for at_ns, target, measured in self.arm.writes[self._seen :]:
            if not np.isfinite(target).all():
                self.problems.append("a write that is not finite")
            near = np.abs(target - measured) <= self._rejoin + 1e-9
            if self._last is not None:
                seconds = max(0.0, (at_ns - self._last[0]) * 1e-9)
                # Set-points are ticks of 10 ms that arrive unevenly: up to two late ones and a little more count.
                steps = np.abs(target - self._last[1])
                near |= steps <= limits.velocity * (1.2 * seconds + 0.06) + 1e-9
                near |= steps <= self._rejoin + 1e-9
            if not near.all():
                j = int(np.argmin(near))
                self.problems.append(f"{self.robot.joint_names[j]} written {abs(target[j] - measured[j]):.3f} away")
            self._last = at_ns, target
        self._seen = len(self.arm.writes)
        self._watch_unasked()

    def _watch_unasked(self) -> None:
        """After what ends an arming, an arm at rest stays where it is until somebody arms."""
        if not self._ended or self.arm.guided:
            self._rest, self._rest_ticks = None, 0
            return
        position = self.arm.position[self._joints].copy()
        if self._rest is None or self._rest_ticks < 60:
            still = self._rest is not None and np.abs(position - self._rest).max() < 1e-4
            self._rest_ticks = self._rest_ticks + 1 if still else 0
            self._rest = position
        elif np.abs(position - self._rest).max() > UNASKED_RAD:
            self.problems.append(f"moved unasked by {np.abs(position - self._rest).max():.3f} rad")
            self._rest, self._rest_ticks = None, 0

    # -- the policy, people, and the machine --------------------------------------------------------------------------

    def _send_chunk(self, kind: str) -> None:
        robot, rng = self.robot, self.rng
        if kind == "none":
            return
        speed = {"smooth": 0.3, "fast": 1.5}.get(kind, 0.5)
        pace = rng.uniform(-speed, speed, robot.dof) * robot.limits.velocity / robot.rate_hz
        steps = np.tile(pace, (robot.horizon, 1))
        steps = np.clip(steps, -0.9 * robot.max_step, 0.9 * robot.max_step)
        rows = np.clip(self.executor.motion.position + np.cumsum(steps, axis=0), robot.limits.lower, robot.limits.upper)
        stamp = self.now_ns
        if kind == "jump":
            rows[5:] += 0.3
        elif kind == "teleport":
            rows = np.tile(rng.uniform(robot.limits.lower, robot.limits.upper), (robot.horizon, 1))
        elif kind == "not finite":
            rows[3, 1] = np.nan
        elif kind == "late":
            stamp -= int(rng.integers(0, 1_200)) * MS
        times = [(i + 1) / robot.rate_hz for i in range(len(rows))]
        self.executor.on_chunk(ChunkMessage(stamp, robot.joint_names, rows.tolist(), times), self.now_ns)

    def put_right_and_arm(self) -> None:
        """What a person does who wants the arm to work."""
        self.arm.there = self.arm.answers = True
        self.arm.present = Health()
        if self.arm.guided:
            self.loop.guide(False)
            self.arm.guided = False
            self.arm.goal = self.arm.position.copy()
        self.loop.e_stop(False)
        self.executor.on_e_stop(False, self.now_ns)
        for _ in range(100):
            self.tick("none")
            if self.executor.state is State.ESTOPPED:
                self.executor.reset_e_stop(self.now_ns)
            elif self.executor.state not in (State.DISARMED,):
                self.executor.disarm(self.now_ns)
        self._ended = False
        armed, why = self.executor.arm(self.now_ns)
        if not armed and self.executor.state is not State.HOLDING:
            self.problems.append(f"cannot arm again: {why}")
        self.armings += armed

    def _moved_by_hand(self, distance: Array) -> None:
        limits, arm = self.robot.limits, self.arm
        arm.position = np.clip(arm.position + distance, limits.lower, limits.upper)
        arm.goal = arm.position.copy()
        self._rest = None

    def _rests(self) -> None:
        """The arm rests where it is now; from here on it may not move unasked."""
        self._rest, self._rest_ticks = self.arm.position[self._joints].copy(), 60

    def act(self, act: str) -> None:
        """Something happens."""
        rng = self.rng
        if act in ("e-stop", "e-stop and release"):
            self.executor.on_e_stop(True, self.now_ns)
            self.loop.e_stop(True)
            self._ended = True
            if act == "e-stop and release":
                for _ in range(int(rng.choice((3, 30, 200)))):
                    self.tick("smooth")
                self.act("release")
        elif act == "release":
            self.executor.on_e_stop(False, self.now_ns)
            self.loop.e_stop(False)
        elif act in ("guide", "guided by hand"):
            self.loop.guide(True)
            self.arm.guided = self._ended = True
            away = 0.01 * rng.choice((-1.0, 1.0), self.robot.dof)
            for _ in range(40):
                self.tick("smooth")
                if act == "guided by hand":
                    self._moved_by_hand(away)
            self.arm.guided = False
            self.arm.goal = self.arm.position.copy()
            self.loop.guide(False)
            self._rests()
        elif act == "unplug":
            self.arm.there, self._ended = False, True
            for _ in range(int(rng.integers(60, 120))):
                self.tick("smooth")
            self._moved_by_hand(rng.uniform(-0.3, 0.3, self.robot.dof))
            self.arm.there = True
            self._rests()
        elif act == "silence":
            self.arm.answers = False
            for _ in range(int(rng.integers(5, 45))):
                self.tick("smooth")
            self.arm.answers = True
        elif act == "hot":
            self.arm.present, self._ended = Health(Level.ERROR, "motor 3 is hot"), True
            for _ in range(70):
                self.tick("smooth")
            self.arm.present = Health()
        elif act == "clock forward":
            self.now_ns += int(rng.integers(0, 20_000)) * MS
        elif act == "clock back":
            self.now_ns -= int(rng.integers(0, 5_000)) * MS
        elif act == "late ticks":
            for _ in range(10):
                self._pass(int(rng.integers(0, 300)) * MS)
                self.tick("smooth")
        elif act == "disarm":
            self.executor.disarm(self.now_ns)
        elif act == "task":
            self.executor.on_task(self.now_ns)

    def live(self, chapters: list[tuple[str, str]], ticks: int = 150) -> None:
        """Chapter after chapter: a person arms, the policy moves the arm, something happens, and it is watched."""
        for chunks, act in chapters:
            self.put_right_and_arm()
            for _ in range(int(self.rng.integers(20, 60))):
                self.tick(chunks)
            self.act(act)
            for _ in range(ticks):
                self.tick(chunks, act)
