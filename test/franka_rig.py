"""A Franka whose control box is emulated in a process of its own, with joints that go at once where it drives them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np

from molmoact2_ros.bringup.processes import node_environment
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import StaleError
from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink
from molmoact2_ros.simulation.emulators.fci_wire import ERRORS

ROBOT = embodiment("franka")
_NUMBERS = itertools.count(1)


class Box:
    """The emulated box and what it drives. `fingers` records the half width of the hand's fingers, with its time."""

    def __init__(self) -> None:
        name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        self.link = FciLink(name, create=True)
        self.link.positions[:] = self.link.targets[:] = ROBOT.rest_position
        self.address = f"127.{130 + os.getpid() % 100}.{os.getpid() // 100 % 250}.{next(_NUMBERS)}"
        command = [sys.executable, "-m", "molmoact2_ros.simulation.emulators.fci", self.address, name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=node_environment())
        assert "ready" in self.process.stdout.readline()
        self.fingers: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._mover = threading.Thread(target=self._move, daemon=True)
        self._mover.start()

    def _move(self) -> None:
        while not self._ended.wait(0.001):
            if self.link.driven:
                self.link.positions[:] = self.link.targets
            self.fingers.append((time.monotonic(), float(self.link.positions[7])))

    def fault(self, fault: Fault, figure: float = 0.0) -> None:
        """Switch a fault on, and the one before off."""
        self.link.fault = fault, figure

    @property
    def reflexes(self) -> dict[str, int]:
        """How often each error has stopped the robot."""
        return {name: int(self.link.reflexes[bit]) for name, bit in ERRORS.items() if self.link.reflexes[bit]}

    def close(self) -> None:
        """End the box."""
        self._ended.set()
        self._mover.join(5.0)
        self.process.terminate()
        self.process.wait(5.0)
        self.process.stdout.close()
        self.link.close()


def until(condition, what: str, deadline_s: float = 20.0) -> None:
    """Wait for `condition`."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.005)


class Rig(Box):
    """A box with the driver at it."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = FrankaDriver(FrankaConfig(self.address, realtime=False))

    def close(self) -> None:
        self.driver.close()
        super().close()

    def controlled(self) -> None:
        """Connect, and wait until the arm is in the driver's hands."""
        self.driver.connect()
        until(lambda: self.health().level is Level.OK, "control of the arm")

    def health(self):
        """The driver's health, read as its loop does: a reading first."""
        self.stale()
        return self.driver.health()

    def stale(self) -> str:
        """Why there is no fresh reading, or an empty string."""
        try:
            self.driver.read()
        except StaleError as error:
            return str(error)
        return ""

    def recover(self) -> str:
        """Recover and wait; returns why it did not."""
        asked = self.driver.begin_recovery()
        until(lambda: self.driver.recovery(asked) is not None, "recovery")
        return self.driver.recovery(asked) or ""

    def go(self, goal: np.ndarray, seconds: float = 0.6, until_share: float = 1.0) -> None:
        """Send set-points at about 100 Hz from here to `goal`, as the executor does, or a part of them."""
        start = self.driver.read().positions
        begun = time.monotonic()
        while (share := (time.monotonic() - begun) / seconds) < until_share:
            self.driver.write(start + (goal - start) * (10 * share**3 - 15 * share**4 + 6 * share**5))
            time.sleep(0.01)
        if until_share >= 1.0:
            self.driver.write(goal)
