"""A Franka arm without ROS on its side: pylibfranka, for machines that have no franka_ros2.

Two processes talk to the control box (`franka_loop.py`), for the arm at 1 kHz and for the hand; this side exchanges
states and set-points with them. A reading is fresh when its state came after it was asked for; a box that has fallen
silent ends the arm's process, and the arm is connected anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, DriverError, Health, Reading, StaleError, hardware_package
from molmoact2_ros.drivers.franka_loop import JOINTS, MODES, FrankaLink
from molmoact2_ros.embodiments import embodiment

_POLL_S = 0.0005
_TAKES_S = 0.05
"""States come every millisecond; one that takes so long is missing."""


@dataclass(frozen=True)
class FrankaConfig:
    """How the arm is reached.

    Attributes:
        address: IP address of the control box (the shop floor network, not the robot's own page).
        robot: name of the embodiment.
        hand: a Franka Hand is mounted; otherwise the gripper's joint reads 0 and is not moved.
        realtime: insist on a real-time kernel, as libfranka does; False is for emulators.
        start_s: the box must answer within this time.
    """

    address: str
    robot: str = "franka"
    hand: bool = True
    realtime: bool = True
    start_s: float = 10.0


class FrankaDriver:
    """See `drivers.driver.Driver`. `now_ns` must be system time, the clock of the other process."""

    def __init__(self, config: FrankaConfig, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.config, self._now_ns = config, now_ns
        self.robot = embodiment(config.robot)
        self._link: FrankaLink | None = None
        self._arm: subprocess.Popen[str] | None = None
        self._hand: subprocess.Popen[str] | None = None

    # -- Driver -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start the processes; the arm holds where it is as soon as its mode lets it."""
        self.disconnect()
        hardware_package("pylibfranka", "franka", "pylibfranka")
        if not self.config.address:
            raise DriverError("no address of the control box; set robot_ip (and leave out franka_ros2)")
        self._link = link = FrankaLink(f"molmoact2_franka_{os.getpid()}_{time.monotonic_ns()}", create=True)
        self._arm = self._spawn("arm")
        if self.config.hand:
            self._hand = self._spawn("hand")
        deadline = time.monotonic() + self.config.start_s
        while not link.state[1] or (self._hand is not None and not link.hand[1]):
            for process, what in ((self._arm, "arm"), (self._hand, "hand")):
                if process is not None and process.poll() is not None:
                    said = process.stdout.read().strip() if process.stdout is not None else ""
                    self.disconnect()
                    raise DriverError(
                        f"Franka {self.config.address}, {what}: {said or 'libfranka ended'}{_advice(said)}"
                    )
            if time.monotonic() > deadline:
                self.disconnect()
                raise DriverError(f"Franka {self.config.address} gives no state; is FCI activated in Desk?")
            time.sleep(0.005)

    def read(self) -> Reading:
        """See `Driver`."""
        link, asked = self._alive(), self._now_ns()
        deadline = time.monotonic() + _TAKES_S
        while link.stamp_ns <= asked:
            if time.monotonic() > deadline:
                raise StaleError(f"no state of the robot for {(self._now_ns() - link.stamp_ns) * 1e-9:.2f} s")
            self._alive()
            time.sleep(_POLL_S)
        positions = np.append(link.state[4:11], link.hand[0])
        return Reading(link.stamp_ns, positions, np.append(link.state[11:18], 0.0))

    def write(self, positions: Array) -> None:
        """See `Driver`. While the robot is stopped or in reflex, commands are dropped, those of the hand too."""
        link = self._alive()
        if not link.state[3]:
            return
        link.command[1 : 1 + JOINTS] = positions[:JOINTS]
        if self.config.hand:
            link.command[8] = positions[JOINTS]
        link.command[0] += 1.0

    def health(self) -> Health:
        """The robot's mode: a reflex must not be moved out of before somebody has looked."""
        link = self._alive()
        mode, controlling, text = MODES[int(link.state[2])], bool(link.state[3]), link.text
        values: dict[str, object] = {"robot_mode": mode, "controlled": controlling, "states": int(link.state[1])}
        if mode == "Reflex":
            return Health(Level.ERROR, f"reflex: {text or 'see Desk'}; call driver/recover", values)
        if mode == "UserStopped":
            return Health(Level.WARN, "user stop is pressed; release it", values)
        if not controlling:
            return Health(Level.WARN, f"not controlled, mode {mode}{': ' + text if text else ''}", values)
        return Health(Level.OK, f"mode {mode}", values)

    def confirms(self, positions: Array) -> bool:
        """See `Driver`: the arm's process takes set-points from shared memory."""
        return bool(np.array_equal(self._alive().command[1 : 1 + JOINTS], positions[:JOINTS]))

    def disconnect(self) -> None:
        """See `Driver`. The robot brakes when its commands cease."""
        for process in (self._arm, self._hand):
            if process is not None:
                process.send_signal(signal.SIGTERM)
        for process in (self._arm, self._hand):
            if process is None:
                continue
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:  # libfranka waits for a box that is gone
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._arm = self._hand = None
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close(self) -> None:
        """See `Driver`."""
        self.disconnect()

    # -- more ---------------------------------------------------------------------------------------------------------

    @property
    def user_stopped(self) -> bool:
        """True while the user stop (or the enabling switch) holds the robot."""
        link = self._link
        return link is not None and MODES[int(link.state[2])] == "UserStopped"

    def recover(self, timeout_s: float = 5.0) -> str:
        """Ask the box to recover from a reflex; returns why it did not, or an empty string.

        Raises:
            StaleError: the box is not connected.
        """
        link = self._alive()
        link.recover[0] += 1.0
        deadline = time.monotonic() + timeout_s
        while link.recover[1] < link.recover[0]:
            if time.monotonic() > deadline:
                return f"the control box did not answer within {timeout_s:.0f} s"
            time.sleep(0.01)
        return link.text

    def _alive(self) -> FrankaLink:
        if self._link is None or self._arm is None or self._arm.poll() is not None:
            raise StaleError(f"Franka {self.config.address}: the connection is lost; are box and network up?")
        return self._link

    def _spawn(self, part: str) -> subprocess.Popen[str]:
        assert self._link is not None
        command = [sys.executable, "-m", "molmoact2_ros.drivers.franka_loop", part, self.config.address]
        command.append(self._link._memory.name)
        if self.config.realtime:
            command.append("realtime")
        with suppress(OSError):
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        raise DriverError(f"cannot start {command[0]}")


def _advice(said: str) -> str:
    if "realtime" in said.lower() or "real-time" in said.lower() or "scheduling" in said.lower():
        return " (molmoact2 doctor --robot franka)"
    if "refused" in said.lower() or "timeout" in said.lower() or "host" in said.lower():
        return "; is FCI activated in Desk, and this machine in the box's network?"
    return ""
