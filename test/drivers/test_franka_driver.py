"""The real pylibfranka on an emulated control box in a process of its own: units, modes, recovery, a lost box."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from molmoact2_ros.bringup.processes import node_environment
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import DriverError, StaleError
from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver
from molmoact2_ros.drivers.franka_loop import Smoother
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.fci import FASTEST
from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink

ROBOT = embodiment("franka")
_NUMBERS = itertools.count(1)


class Rig:
    """A box, and joints that go at once where it drives them."""

    def __init__(self) -> None:
        name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        self.link = FciLink(name, create=True)
        self.link.positions[:] = self.link.targets[:] = ROBOT.rest_position
        address = f"127.{130 + os.getpid() % 100}.{os.getpid() // 100 % 250}.{next(_NUMBERS)}"
        command = [sys.executable, "-m", "molmoact2_ros.simulation.emulators.fci", address, name]
        self.box = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=node_environment())
        assert "ready" in self.box.stdout.readline()
        self._ended = threading.Event()
        self._mover = threading.Thread(target=self._move, daemon=True)
        self._mover.start()
        self.driver = FrankaDriver(FrankaConfig(address, realtime=False))

    def _move(self) -> None:
        while not self._ended.wait(0.001):
            if self.link.driven:
                self.link.positions[:] = self.link.targets

    def fault(self, fault: Fault, figure: float = 0.0) -> None:
        self.link.fault = fault, figure

    def close(self) -> None:
        self.driver.close()
        self._ended.set()
        self._mover.join(5.0)
        self.box.terminate()
        self.box.wait(5.0)
        self.box.stdout.close()
        self.link.close()

    def until(self, condition, what: str, deadline_s: float = 20.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.01)

    def controlled(self) -> None:
        self.driver.connect()
        self.until(lambda: self.driver.health().level is Level.OK, "control of the arm")

    def go(self, goal: np.ndarray, seconds: float = 0.6) -> None:
        """Send set-points at about 100 Hz from here to `goal`, as the executor does."""
        start = self.driver.read().positions
        begun = time.monotonic()
        while (share := (time.monotonic() - begun) / seconds) < 1.0:
            self.driver.write(start + (goal - start) * (10 * share**3 - 15 * share**4 + 6 * share**5))
            time.sleep(0.01)
        self.driver.write(goal)


@pytest.fixture(scope="module")
def box() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def rig(box: Rig) -> Iterator[Rig]:
    box.fault(Fault.NONE)
    yield box
    box.fault(Fault.NONE)
    box.driver.disconnect()


def test_connecting_moves_nothing_and_set_points_reach_joints_and_hand(rig: Rig):
    rig.controlled()
    start = rig.link.positions.copy()
    assert np.allclose(rig.driver.read().positions, start, atol=1e-5)
    goal = start.copy()
    goal[:7] += 0.1
    goal[7] = 0.01
    rig.go(goal)
    rig.until(lambda: np.allclose(rig.link.positions, goal, atol=1e-4), "the goal")
    rig.until(lambda: np.allclose(rig.driver.read().positions, goal, atol=1e-3), "the readings")
    assert rig.driver.health().level is Level.OK


def test_a_reading_is_of_a_state_that_came_after_the_call(rig: Rig):
    rig.controlled()
    for _ in range(5):
        asked = time.time_ns()
        assert rig.driver.read().stamp_ns > asked
    rig.fault(Fault.SILENT)
    rig.until(lambda: _stale(rig.driver), "silence")


def _stale(driver: FrankaDriver) -> str:
    try:
        driver.read()
    except StaleError as error:
        return str(error)
    return ""


def test_a_silent_box_ends_the_connection_and_the_next_one_recovers_from_the_silence(rig: Rig):
    rig.controlled()
    rig.fault(Fault.SILENT)
    rig.until(lambda: "connection is lost" in _stale(rig.driver), "the loss")
    rig.driver.disconnect()
    rig.fault(Fault.NONE)
    rig.controlled()
    assert rig.driver.health().values["robot_mode"] == "Move"


def test_a_reflex_is_an_error_until_it_is_recovered_from_and_readings_go_on(rig: Rig):
    rig.controlled()
    rig.fault(Fault.REFLEX)
    rig.until(lambda: rig.driver.health().level is Level.ERROR, "the reflex")
    assert "joint_reflex" in rig.driver.health().message and "driver/recover" in rig.driver.health().message
    assert not _stale(rig.driver)
    assert "aborted" in rig.driver.recover() or rig.driver.health().level is Level.ERROR
    rig.fault(Fault.NONE)
    assert rig.driver.recover() == ""
    rig.until(lambda: rig.driver.health().level is Level.OK, "control of the arm")


def test_the_user_stop_is_told_and_control_comes_back_with_its_release(rig: Rig):
    rig.controlled()
    before = rig.link.positions.copy()
    rig.fault(Fault.USER_STOP)
    rig.until(lambda: rig.driver.user_stopped, "the user stop")
    rig.driver.write(before + 0.2)
    assert not _stale(rig.driver)
    rig.fault(Fault.NONE)
    rig.until(lambda: rig.driver.health().level is Level.OK, "control of the arm")
    assert np.allclose(rig.link.positions, before, atol=1e-3), "a command of the time of the stop was executed"


def test_what_is_missing_is_named(rig: Rig):
    with pytest.raises(DriverError, match="no address of the control box"):
        FrankaDriver(FrankaConfig("")).connect()
    with pytest.raises(DriverError, match=r"127.255.1.1, (arm|hand): .*FCI"):
        FrankaDriver(FrankaConfig("127.255.1.1", realtime=False)).connect()


def test_set_points_at_100_hz_become_a_curve_whose_acceleration_is_continuous():
    """A swing of 0.3 rad and back within the executor's limits, and then rest."""
    start = ROBOT.rest_position[:7]
    smoother = Smoother(start)
    out, target = [], start
    for tick in range(4000):
        phase = min(max(0.0, 2.0 * (tick - 100) / 1000.0), 2.0 * np.pi)
        if tick % 10 == 0:
            target = start + 0.15 * (1.0 - np.cos(phase)) * np.ones(7)
        out.append(smoother.step(target))
    path = np.array(out)
    speed = np.diff(path, axis=0) * 1e3
    bend = np.diff(speed, axis=0) * 1e3
    assert 0.28 < np.ptp(path[:, 0]) < 0.31
    assert np.all(np.abs(speed) < FASTEST)
    assert np.abs(bend).max() < 10.0  # FR3's limit, rad/s^2
    assert np.abs(np.diff(bend, axis=0)).max() * 1e3 < 5000.0  # FR3's limit, rad/s^3
    assert np.allclose(path[-1], start, atol=1e-9), "rounding adds up"
    assert np.allclose(path[0], start, atol=1e-12)
