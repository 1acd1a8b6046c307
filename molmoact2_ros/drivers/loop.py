"""Keeps one arm running: connects, reads, forwards commands, holds when they cease, and connects again when it is lost.

Invariant: a command that is not plausible never reaches the arm, and a reading that is not fresh never leaves this
room. The clock and the waiting are passed in; `thread.py` runs the loop in real time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, Driver, DriverError, Health, Reading, StaleError
from molmoact2_ros.drivers.gate import Command, Gate, GateConfig
from molmoact2_ros.drivers.parking import ParkPath
from molmoact2_ros.execution.command_timeout import CommandTimeout
from molmoact2_ros.execution.steady_target import SteadyTarget

_PERIODS = 2048
GUIDED = "the arm is guided by hand"
SETTLE_S = 0.3
"""An arm comes in behind its last target."""


@dataclass(frozen=True)
class LoopConfig:
    """What the loop does when; seconds, Hz.

    Attributes:
        rate_hz: readings a second.
        command_timeout_s: the arm holds when commands cease for this long; grippers keep their target.
        lost_s: without a fresh reading for so long the arm counts as lost and is connected anew.
        retry_s: time between attempts to connect.
        health_s: time between two looks at temperatures and voltages.
        gate: see `GateConfig`.
        park_pose: where the arm goes before it is let go, (dof,); None lets it go where it is.
        park_speed: share of the velocity limits on the way there.
    """

    rate_hz: float = 100.0
    command_timeout_s: float = 0.2
    lost_s: float = 0.5
    retry_s: float = 1.0
    health_s: float = 0.5
    gate: GateConfig = field(default_factory=GateConfig)
    park_pose: Array | None = None
    park_speed: float = 0.1


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
    """The work of one arm, one `step` at a time; `command`, `e_stop` and `guide` may be called from any thread.

    Args:
        driver: the arm.
        config: see `LoopConfig`.
        on_reading: called with every fresh reading.
        now_ns: monotonic time, ns; the stamps of readings are the driver's affair.
        wait: waits at a condition, which it holds, for at most so many seconds.
    """

    def __init__(
        self,
        driver: Driver,
        config: LoopConfig,
        on_reading: Callable[[Reading], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self.driver, self.config = driver, config
        self.counters = Counters()
        self.gate = Gate(driver.robot, config.gate)
        self.refusal = ""
        """Why the last command was refused; empty once one was accepted."""
        self._on_reading, self._now_ns, self._wait = on_reading, now_ns, wait
        self._lock = threading.Lock()
        self._fresh = threading.Condition(self._lock)
        self._pending: Array | None = None
        self._estopped = False
        self._guided = False
        self._hold_due = False
        self._stops_grippers = False
        self._hold_target: Array | None = None
        self._told_until_ns = 0
        self._told_reason = ""
        self._command_timeout = CommandTimeout(now_ns, config.command_timeout_s)
        self._steady = SteadyTarget(driver.robot)
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

    def command(self, command: Command, now_ns: int) -> str:
        """Take a set-point at `now_ns` of its stamp's clock; returns why it is refused, or an empty string."""
        with self._lock:
            blocked = self._blocked()
            if blocked:
                self.gate.end(command.arming, blocked)
            refusal = self.gate.check(command, now_ns)
            self.refusal = "" if refusal is None else refusal.reason
            if refusal is not None:
                self.counters.refused += 1
                if refusal.again:
                    self._told_reason = refusal.reason
                    self._told_until_ns = self._now_ns() + round(self.config.command_timeout_s * 1e9)
                return refusal.reason
            self._pending = command.positions
            self._fresh.notify()
            return ""

    def e_stop(self, pressed: bool) -> None:
        """While pressed the arm holds the position measured at that moment; afterwards only a new arming moves it."""
        with self._lock:
            if pressed and not self._estopped:
                self._block("an e-stop stopped the arm", hold=True, grippers=True)
            self._estopped = pressed

    def guide(self, on: bool) -> None:
        """The arm is moved by hand from now on, or no longer and held; either ends what commanded it before."""
        with self._lock:
            self._guided = on
            self._target = None
            self._steady.forget()
            self._block("the arm was guided by hand", hold=not on)

    @property
    def connected(self) -> bool:
        """True while fresh readings come."""
        return self._connected

    def status(self) -> Health:
        """Present state in one line, with counters and the hardware's values."""
        health, counters = self._health, self.counters
        values = {**vars(counters), **self.punctuality(), **health.values, "gate": self.gate.reason or "open"}
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
        """Why the executor must stop commanding: something is wrong with the hardware, until somebody has looked; the
        arm is guided by hand; or it commands what cannot pass, until it lets go. Empty when nothing is wrong."""
        if not self._connected:
            return ""
        if self._health.level is Level.ERROR:
            return self._health.message
        if self._guided:
            return GUIDED
        return self._told_reason if self._now_ns() < self._told_until_ns else ""

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
                self._wait(self._fresh, min(wait, 1.0 / self.config.rate_hz))
        try:
            self._send()
            now = self._now_ns()
            if now >= self._next_ns:
                self._read(now)
                self._watch(now)
        except StaleError as error:
            self.counters.stale += 1
            self._error = str(error)
        now = self._now_ns()
        if (now - self._heard_ns) * 1e-9 > self.config.lost_s:
            self._lose(now)

    def close(self) -> None:
        """Park the arm where that is asked for and can be done, and let go of it. Raises as `Driver.close` does."""
        try:
            if self.config.park_pose is not None and self._connected:
                self._park(self.config.park_pose)
        finally:
            self._connected = False
            self.driver.close()

    def _park(self, pose: Array) -> None:
        """Lead the arm to `pose`; an e-stop, a fault, hand guiding or a silent arm ends this where it is."""
        with self._lock:
            self._block("the driver parks the arm and ends", hold=False)
            if self._last is None:
                return
            start = self._steady.resting_target(self._last.positions)
        path = ParkPath.of(self.driver.robot, start, pose, self.config.park_speed)
        begun = now = self._now_ns()
        while (now - begun) * 1e-9 < path.duration_s + SETTLE_S:
            if self._blocked() or self._wait_for(self._next_ns):
                return
            try:
                self._read(self._now_ns())
                now = self._now_ns()
                self.driver.write(path.at((now - begun) * 1e-9))
                if now >= self._health_due_ns:
                    self._health_due_ns = now + round(self.config.health_s * 1e9)
                    self._health = self.driver.health()
            except StaleError:
                now = self._now_ns()
                if (now - self._heard_ns) * 1e-9 > self.config.lost_s:
                    return

    def _wait_for(self, due_ns: int) -> bool:
        """Wait until `due_ns`; True where something blocks the arm meanwhile."""
        with self._lock:
            while (left := due_ns - self._now_ns()) > 0 and not self._estopped:
                self._wait(self._fresh, left * 1e-9)
            return self._estopped

    def _connect(self, now: int) -> None:
        if now < self._retry_due_ns:
            with self._lock:
                self._wait(self._fresh, min(0.05, self.config.retry_s))
            return
        try:
            self.driver.connect()
        except (DriverError, StaleError) as error:
            self._error = str(error)
            self._retry_due_ns = self._now_ns() + round(self.config.retry_s * 1e9)
            return
        with self._lock:
            self._block("the arm was connected anew", hold=False)
            self._last = self._target = None
            self._steady.forget()
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
            self._block("the arm was lost", hold=False)
            self._last = None
        self.driver.disconnect()

    def _send(self) -> None:
        """Pass on the newest command. What blocks the arm meanwhile finds it taken or not: a hold comes after it."""
        with self._lock:
            positions, self._pending = self._pending, None
            if positions is None:
                return
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
            self.gate.measured(reading.positions)
            if self._target is not None and not self._guided:
                self._steady.update(self._target, reading.positions, self._heard_ns)
        self.counters.readings += 1
        self._on_reading(reading)

    def _watch(self, now: int) -> None:
        if self._command_timeout.expired():
            with self._lock:
                self._block("commands ceased and the arm was held", hold=True, over=False)
        if now >= self._health_due_ns:
            self._health_due_ns = now + round(self.config.health_s * 1e9)
            before = self._health.level is Level.ERROR
            self._health = self.driver.health()
            if self._health.level is Level.ERROR and not before:
                with self._lock:
                    self._block(f"the arm was stopped: {self._health.message}", hold=True)
        if self._hold_due:
            self._hold()

    # -- holding ------------------------------------------------------------------------------------------------------

    def _blocked(self) -> str:
        """Why no command may pass now, whoever sends it; empty when one may."""
        if self._estopped:
            return "e-stop is pressed"
        if self._guided:
            return GUIDED
        return self._health.message if self._health.level is Level.ERROR else ""

    def _block(self, reason: str, *, hold: bool, over: bool = True, grippers: bool = False) -> None:
        """Close the gate; with `hold` the arm is held where it is from the next reading on. Called under the lock.

        Args:
            over: the present stream of commands is over for good.
            grippers: a gripper on its way stops, too; otherwise it goes on to its target.
        """
        self._pending = self._hold_target = None
        self._hold_due, self._stops_grippers = hold, grippers
        self.gate.close(reason, over=over)
        self._command_timeout.forget()
        self._fresh.notify()

    def _hold(self) -> None:
        """Stay where the arm is, or at the target that it rests beside; what a gripper holds stays held.

        Written again until the hardware confirms it: no lost write may leave an arm moving.
        """
        with self._lock:
            assert self._last is not None
            if self._hold_target is None:
                self._hold_target = self._steady.resting_target(self._last.positions)
                if self._target is not None and not self._stops_grippers:
                    grippers = list(self.driver.robot.gripper_indices)
                    self._hold_target[grippers] = self._target[grippers]
                self.counters.holds += 1
            target = self._target = self._hold_target
        self.driver.hold(target)
        if not self.driver.confirms(target):
            return
        with self._lock:
            if self._hold_target is target:  # nothing else has stopped the arm meanwhile
                self._hold_due = False
                self.gate.held(target)
