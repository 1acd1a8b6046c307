"""What stands between commands and an arm: nothing passes that the arm did not ask for by where it is.

The gate closes when a driver connects, holds, is guided by hand, finds a fault, hears an e-stop or loses its arm. It
opens for a command that agrees with where the arm is or is held, for every joint. After all but a mere silence of
commands the stream that moved the arm before is over, too: whatever still comes of it is an old pose, however near it
may be, and only a new `executor/arm` begins another.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

KEPT = 64
"""So many armings are remembered to be over."""


@dataclass(frozen=True)
class GateConfig:
    """Figures of the gate.

    Attributes:
        rejoin_rad: how far from where an arm joint is, or is held, the first command may be, rad.
        rejoin_share: the same of a gripper, as a share of its stroke.
        max_age_s: a command that was stamped longer ago is dropped; 0 takes any.
        position_margin: of a command before it is refused, see `Embodiment.beyond`.
        step_factor, step_slack_s: between two commands a joint may move `step_factor` times what its velocity limit
            allows for the time between their stamps and `step_slack_s` more: ticks are not punctual to the millisecond.
        speed_scale: as the executor's, see `Embodiment.scaled_limits`.
    """

    rejoin_rad: float = 0.05
    rejoin_share: float = 0.1
    max_age_s: float = 0.25
    position_margin: float = 0.1
    step_factor: float = 1.2
    step_slack_s: float = 0.05
    speed_scale: float = 1.0


@dataclass(frozen=True)
class Command:
    """One set-point.

    Attributes:
        positions: shape (dof,), rad or m, ROS order.
        stamp_ns: when the executor commanded it, on the clock of the gate's `now_ns`.
        arming: names the arming that it belongs to.
    """

    positions: Array
    stamp_ns: int
    arming: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a command did not pass. `again`: nothing of its stream will, only arming again helps."""

    reason: str
    again: bool = False


class Gate:
    """See the module. Thread-safe.

    Invariants: what passes differs from the last that passed by no more than the velocity limits allow, and after the
    gate was closed from a reading taken since, or from what the arm is held at, by no more than `rejoin_rad`.
    """

    def __init__(self, robot: Embodiment, config: GateConfig | None = None) -> None:
        self.robot, self.config = robot, config or GateConfig()
        self._velocity = robot.scaled_limits(self.config.speed_scale).velocity
        self._lock = threading.Lock()
        self._open = False
        self._reason = "not connected"
        self._arming: str | None = None
        self._over: dict[str, str] = {}
        """Why an arming is over; the newest ones."""
        self._passed: Command | None = None
        self._newest_ns = -1
        self._measured: Array | None = None
        self._held: Array | None = None
        spread = robot.limits.upper - robot.limits.lower
        self._rejoin = np.full(robot.dof, self.config.rejoin_rad)
        grippers = list(robot.gripper_indices)
        self._rejoin[grippers] = self.config.rejoin_share * spread[grippers]

    @property
    def open(self) -> bool:
        """True while commands pass."""
        return self._open

    @property
    def reason(self) -> str:
        """Why it is closed; empty while it is open."""
        return "" if self._open else self._reason

    def close(self, reason: str, *, over: bool) -> None:
        """Let nothing pass until a command agrees with a reading that is taken from now on. `over`: the present stream
        of commands is over for good."""
        with self._lock:
            self._open, self._reason = False, reason
            self._passed = self._measured = self._held = None
            if over and self._arming is not None:
                self._end(self._arming, reason)

    def end(self, arming: str, reason: str) -> None:
        """The stream of commands of this arming is over for good."""
        with self._lock:
            self._end(arming, reason)

    def _end(self, arming: str, reason: str) -> None:
        self._over.setdefault(arming, reason)
        while len(self._over) > KEPT:
            del self._over[next(iter(self._over))]

    def measured(self, positions: Array) -> None:
        """A fresh reading (dof,)."""
        with self._lock:
            self._measured = positions

    def held(self, positions: Array) -> None:
        """The driver holds the arm at this target (dof,)."""
        with self._lock:
            self._held = np.array(positions)

    def check(self, command: Command, now_ns: int) -> Refusal | None:
        """Take note of a command; None when it may go to the arm."""
        with self._lock:
            refusal = self._malformed(command)
            if refusal is not None:
                return refusal
            if self._arming != command.arming:
                self._arming, self._newest_ns = command.arming, -1
            if command.arming in self._over:
                return Refusal(f"{self._over[command.arming]}; arm again", again=True)
            refusal = self._untimely(command, now_ns) or self._jump(command)
            if refusal is None:
                self._newest_ns = command.stamp_ns
                self._open, self._passed = True, command
            return refusal

    # -- what speaks against a command --------------------------------------------------------------------------------

    def _malformed(self, command: Command) -> Refusal | None:
        robot, limits, positions = self.robot, self.robot.limits, command.positions
        if positions.shape != (robot.dof,):
            names = ", ".join(robot.joint_names)
            return Refusal(f"expected {robot.dof} joint targets ({names}), got shape {positions.shape}")
        if not np.all(np.isfinite(positions)):
            j = int(np.argmin(np.isfinite(positions)))
            return Refusal(f"{robot.joint_names[j]} is {positions[j]}")
        beyond = robot.beyond(positions, self.config.position_margin)
        j = int(np.argmax(beyond))
        if beyond[j] > 0.0:
            return Refusal(
                f"{positions[j]:.3f} for {robot.joint_names[j]} is outside its limits {limits.lower[j]:.3f} to "
                f"{limits.upper[j]:.3f}"
            )
        return None

    def _untimely(self, command: Command, now_ns: int) -> Refusal | None:
        age = (now_ns - command.stamp_ns) * 1e-9
        if self.config.max_age_s > 0.0 and not -self.config.max_age_s <= age <= self.config.max_age_s:
            when = f"{age:.2f} s old" if age > 0.0 else f"stamped {-age:.2f} s in the future"
            return Refusal(f"it is {when} (limit {self.config.max_age_s:g} s); are the machines' clocks synchronised?")
        if command.stamp_ns <= self._newest_ns:
            return Refusal("it is not newer than the one before; is there a second executor?")
        return None

    def _jump(self, command: Command) -> Refusal | None:
        if self._open and self._passed is not None:
            seconds = (command.stamp_ns - self._passed.stamp_ns) * 1e-9
            seconds = self.config.step_factor * seconds + self.config.step_slack_s
            allowed = self._velocity * seconds
            distance = np.abs(command.positions - self._passed.positions)
            excess = distance - allowed
            j = int(np.argmax(excess))
            if excess[j] > 0.0:
                return Refusal(
                    f"{self.robot.joint_names[j]} would jump by {distance[j]:.3f} {self.robot.unit(j)} in "
                    f"{1e3 * seconds:.0f} ms (limit {allowed[j]:.3f})"
                )
            return None
        if self._measured is None:
            return Refusal(f"{self._reason}; no position has been measured since")
        distance = np.abs(command.positions - self._measured)
        if self._held is not None:
            distance = np.minimum(distance, np.abs(command.positions - self._held))
        excess = distance - self._rejoin
        j = int(np.argmax(excess))
        if excess[j] > 0.0:
            return Refusal(
                f"{self._reason}; {self.robot.joint_names[j]} is commanded to {command.positions[j]:.3f}, "
                f"{distance[j]:.3f} {self.robot.unit(j)} from where it is (limit {self._rejoin[j]:.3g}); arm again",
                again=True,
            )
        return None
