"""Keeps one arm running: connects, reads, forwards commands, holds when they cease, and connects again when it is lost.

Invariant: a command that is not plausible never reaches the arm, and a reading that is not fresh never leaves this
room. The clock and the waiting are passed in; `DriverThread` runs the loop in real time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, Driver, DriverError, Health, Reading, StaleError
from molmoact2_ros.execution.command_timeout import CommandTimeout

_PERIODS = 2048


@dataclass(frozen=True)
class LoopConfig:
    """Figures of the loop; seconds, Hz, rad.

    Attributes:
        rate_hz: readings a second.
        command_timeout_s: the arm holds its measured position when commands cease for this long; grippers keep
            their target.
        max_jump: a command so far from the measured position of an arm joint is refused.
        position_margin: of a command before it is refused, see `Embodiment.beyond`.
        lost_s: without a fresh reading for so long the arm counts as lost and is connected anew.
        retry_s: time between attempts to connect.
        health_s: time between two looks at temperatures and voltages.
    """

    rate_hz: float = 100.0
    command_timeout_s: float = 0.2
    max_jump: float = 0.6
    position_margin: float = 0.1
    lost_s: float = 0.5
    retry_s: float = 1.0
    health_s: float = 0.5


@dataclass
class Counters:
    """What happened since the start."""

    readings: int = 0
    stale: int = 0
    commands: int = 0
    refused: int = 0
    holds: int = 0
    connections: int = 0


class DriverLoop:
    """The work of one arm, one `step` at a time; `command` and `e_stop` may be called from any thread.

    Args:
        driver: the arm.
        config: figures.
        on_reading: called with every fresh reading.
        now_ns: monotonic time, ns; the stamps of readings are the driver's affair.
    """

    def __init__(
        self,
        driver: Driver,
        config: LoopConfig,
        on_reading: Callable[[Reading], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.driver, self.config = driver, config
        self.counters = Counters()
        self.refusal = ""
        """Why the last command was refused; empty once one was accepted."""
        self._on_reading, self._now_ns = on_reading, now_ns
        robot = driver.robot
        self._arm_joints = np.array([j for j in range(robot.dof) if j not in robot.gripper_indices])
        self._lock = threading.Lock()
        self._fresh = threading.Condition(self._lock)
        self._pending: Array | None = None
        self._estopped = False
        self._command_timeout = CommandTimeout(now_ns, config.command_timeout_s)
        self._last: Reading | None = None
        self._target: Array | None = None
        self._connected = False
        self._error = "not connected yet"
        self._health = Health()
        self._health_due_ns = self._retry_due_ns = self._heard_ns = 0
        self._next_ns = 0
        self._periods: NDArray[np.float64] = np.zeros(_PERIODS)
        self._count = 0

    # -- any thread ---------------------------------------------------------------------------------------------------

    def command(self, positions: Array) -> str:
        """Take joint targets (dof,); returns why they are refused, or an empty string."""
        with self._lock:
            reason = self._implausible(np.asarray(positions, dtype=np.float64))
            self.refusal = reason
            if reason:
                self.counters.refused += 1
                return reason
            if not self._estopped:
                self._pending = np.array(positions, dtype=np.float64)
                self._fresh.notify()
            return ""

    def e_stop(self, pressed: bool) -> None:
        """While pressed the arm holds the position measured at that moment, and commands are dropped."""
        with self._lock:
            if pressed and not self._estopped:
                self._pending = self._target = None
                self._command_timeout.forget()
                self._fresh.notify()
            self._estopped = pressed

    @property
    def connected(self) -> bool:
        """True while fresh readings come."""
        return self._connected

    def status(self) -> Health:
        """Present state in one line, with counters and the hardware's figures."""
        health, counters = self._health, self.counters
        values = {**vars(counters), **self.punctuality(), **health.values}
        if not self._connected:
            return Health(Level.ERROR, self._error, values)
        if health.level is Level.ERROR:
            return Health(Level.ERROR, health.message, values)
        if self._error:
            return Health(Level.WARN, self._error, values)
        if self.refusal:
            return Health(Level.WARN, f"command refused: {self.refusal}", values)
        return Health(health.level, "e-stop is pressed" if self._estopped else health.message, values)

    @property
    def fault(self) -> str:
        """Why the hardware must not move until somebody has looked; empty when nothing is wrong with it."""
        return self._health.message if self._connected and self._health.level is Level.ERROR else ""

    def punctuality(self) -> dict[str, object]:
        """Times between readings in ms: median, 99th percentile, worst; empty before the second."""
        count = min(self._count, _PERIODS)
        if count < 2:
            return {}
        p50, p99, worst = np.percentile(self._periods[1 if self._count <= _PERIODS else 0 : count], (50, 99, 100))
        return {"period_p50_ms": f"{p50:.3f}", "period_p99_ms": f"{p99:.3f}", "period_worst_ms": f"{worst:.3f}"}

    # -- the loop's thread --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Wait for the next command or the next reading's time, and do what is due."""
        now = self._now_ns()
        if not self._connected:
            self._connect(now)
            return
        wait = (self._next_ns - now) * 1e-9
        with self._lock:
            if self._pending is None and wait > 0.0:
                self._fresh.wait(min(wait, 1.0 / self.config.rate_hz))
            pending, self._pending = self._pending, None
            hold = self._estopped and self._target is None
        try:
            if pending is not None:
                self._send(pending)
            now = self._now_ns()
            if now >= self._next_ns:
                self._read(now)
                self._watch(now, hold)
        except StaleError as error:
            self.counters.stale += 1
            self._error = str(error)
        now = self._now_ns()
        if (now - self._heard_ns) * 1e-9 > self.config.lost_s:
            self._lose(now)

    def close(self) -> None:
        """Let go of the arm."""
        self._connected = False
        self.driver.close()

    def _connect(self, now: int) -> None:
        if now < self._retry_due_ns:
            time.sleep(min(0.05, self.config.retry_s))
            return
        try:
            self.driver.connect()
        except (DriverError, StaleError) as error:
            self._error = str(error)
            self._retry_due_ns = self._now_ns() + round(self.config.retry_s * 1e9)
            return
        with self._lock:
            self._pending = self._target = self._last = None
            self._command_timeout.forget()
        self.counters.connections += 1
        self._error = ""
        self._health = Health()
        self._heard_ns = self._health_due_ns = self._next_ns = self._now_ns()
        self._connected = True

    def _lose(self, now: int) -> None:
        silent = (now - self._heard_ns) * 1e-9
        self._error = f"{self._error or 'no fresh reading'}; silent for {silent:.2f} s, connecting anew"
        self._connected = False
        with self._lock:
            self._last, self._pending = None, None
        self.driver.disconnect()

    def _send(self, positions: Array) -> None:
        if self.fault:
            return  # the hardware protects itself: nothing that heats it further is passed on
        self._target = positions
        self.driver.write(positions)
        self.counters.commands += 1
        self._command_timeout.fed()

    def _read(self, now: int) -> None:
        period = round(1e9 / self.config.rate_hz)
        # A reading that took longer than its period moves the grid: a backlog of readings helps nobody.
        self._next_ns = max(self._next_ns + period, now)
        reading = self.driver.read()
        self._heard_ns = self._now_ns()
        self._error = ""
        if self._last is not None:
            self._periods[self._count % _PERIODS] = (reading.stamp_ns - self._last.stamp_ns) * 1e-6
            self._count += 1
        with self._lock:
            self._last = reading
        self.counters.readings += 1
        self._on_reading(reading)

    def _watch(self, now: int, hold: bool) -> None:
        if hold or self._command_timeout.expired():
            self._hold()
        if now >= self._health_due_ns:
            self._health_due_ns = now + round(self.config.health_s * 1e9)
            before = self.fault
            self._health = self.driver.health()
            if self.fault and not before:
                self._hold()

    def _hold(self) -> None:
        """Stay where the arm is; a gripper keeps its target, so that what it holds stays held."""
        assert self._last is not None
        target = self._last.positions.copy()
        for j in self.driver.robot.gripper_indices:
            if self._target is not None:
                target[j] = self._target[j]
        self._target = target
        self.driver.write(target)
        self.counters.holds += 1

    def _implausible(self, positions: Array) -> str:
        robot, limits = self.driver.robot, self.driver.robot.limits
        if positions.shape != (robot.dof,):
            return f"expected {robot.dof} joint targets ({', '.join(robot.joint_names)}), got shape {positions.shape}"
        if not np.all(np.isfinite(positions)):
            j = int(np.argmin(np.isfinite(positions)))
            return f"{robot.joint_names[j]} is {positions[j]}"
        beyond = robot.beyond(positions, self.config.position_margin)
        j = int(np.argmax(beyond))
        if beyond[j] > 0.0:
            return (
                f"{positions[j]:.3f} for {robot.joint_names[j]} is outside its limits {limits.lower[j]:.3f} to "
                f"{limits.upper[j]:.3f}"
            )
        if self._last is None:
            return "no position has been measured yet"
        distance = np.abs(positions - self._last.positions)[self._arm_joints]
        i = int(np.argmax(distance))
        if distance[i] > self.config.max_jump:
            j = int(self._arm_joints[i])
            return (
                f"{robot.joint_names[j]} would jump by {distance[i]:.2f} rad (limit {self.config.max_jump:g}), from "
                f"{self._last.positions[j]:.3f} measured to {positions[j]:.3f}"
            )
        return ""


class DriverThread:
    """Runs a `DriverLoop` in a thread of its own."""

    def __init__(self, loop: DriverLoop) -> None:
        self.loop = loop
        self.failure: Exception | None = None
        """What ended the thread, if something did: a fault of this program."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.loop.step()
        except Exception as error:  # the owner must learn of it: the thread has nobody to raise to
            self.failure = error
        finally:
            self.loop.close()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the thread and let go of the arm."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
