"""The real pylibfranka's Gripper at an emulated Franka Hand: stops at once, keeps what it holds, says what is wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from franka_rig import ROBOT, Rig, until

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.franka_hand import TRIES, HandLoop
from molmoact2_ros.drivers.franka_link import FrankaLink
from molmoact2_ros.simulation.emulators.fci_link import Fault

OPEN, CLOSED = 0.04, 0.0
HOMINGS, GRASPS, MOVES, STOPS = range(4)


@pytest.fixture(scope="module")
def box() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def rig(box: Rig) -> Iterator[Rig]:
    box.fault(Fault.NONE)
    box.link.object_m = 0.0
    box.link.targets[7] = OPEN
    box.link.drive()
    box.link.hand[:] = 0.0
    until(lambda: box.link.positions[7] == OPEN, "open fingers")
    yield box
    box.fault(Fault.NONE)
    box.driver.disconnect()


def command(rig: Rig, half_width: float) -> None:
    """Tell the hand a half width."""
    positions = rig.driver.read().positions
    positions[7] = half_width
    rig.driver.write(positions)


def told(rig: Rig) -> list[int]:
    return [int(n) for n in rig.link.hand]


def until_closed_to(rig: Rig, half_width: float) -> None:
    until(lambda: rig.link.positions[7] <= half_width, f"fingers at {half_width}")


def test_a_hold_stops_closing_fingers_at_once_and_nothing_opens_them_again(rig: Rig):
    """It was 13 mm, and back: from 0.05 m/s, with a motion that blocks its process for 0.8 s."""
    rig.controlled()
    command(rig, CLOSED)
    until_closed_to(rig, 0.025)
    rig.driver.hold(rig.driver.read().positions)
    told_s, there = time.monotonic(), float(rig.link.positions[7])
    until(lambda: rig.link.hand[STOPS] > 0 and not rig.driver._link.busy_since_ns, "the stop")
    for _ in range(50):
        rig.driver.read()
    stopped = float(rig.link.positions[7])
    assert 0.0 <= there - stopped < 0.004
    widths = [width for at, width in rig.fingers if at > told_s]
    assert min(widths) == stopped and widths[-1] == stopped, "it went on, or back"
    assert told(rig)[MOVES] == 0 and told(rig)[GRASPS] == 1
    assert rig.health().level is Level.OK
    command(rig, CLOSED)  # what is commanded after the hold counts
    until_closed_to(rig, 0.001)


def test_what_is_held_stays_held_through_holds_and_is_let_go_when_that_is_commanded(rig: Rig):
    rig.link.object_m = 0.02
    rig.controlled()
    command(rig, CLOSED)
    until(lambda: rig.link.hand[GRASPS] == 1 and not rig.driver._link.busy_since_ns, "the grasp")
    until(lambda: abs(rig.driver.read().positions[7] - 0.02) < 1e-6, "a reading after the grasp")
    for _ in range(3):
        rig.driver.hold(rig.driver.read().positions)
        command(rig, float(rig.driver.read().positions[7]))  # as an executor that begins where it measured
        command(rig, CLOSED)
        for _ in range(30):
            rig.driver.read()
    assert told(rig) == [0, 1, 0, 0] and rig.link.positions[7] == 0.02
    assert rig.health().level is Level.OK
    command(rig, OPEN)
    until(lambda: rig.link.positions[7] > 0.039, "open fingers")
    assert told(rig) == [0, 1, 1, 0]


def test_small_steps_close_the_hand_in_a_few_motions_and_reach_the_width(rig: Rig):
    rig.controlled()
    for half_width in np.linspace(OPEN, 0.01, 60):
        command(rig, float(half_width))
    until(lambda: abs(rig.link.positions[7] - 0.01) < 5e-4, "the width")
    assert told(rig)[GRASPS] < 10


def test_a_hand_that_was_never_homed_refuses_arming_with_that_cause(rig: Rig):
    rig.fault(Fault.HAND_UNHOMED)
    rig.driver.connect()
    until(lambda: "homing was never done" in rig.health().message, "the cause")
    assert rig.driver.health().level is Level.ERROR
    command(rig, 0.02)
    until(lambda: "failed 3 times" in rig.driver._link.hand_text, "the last try")
    assert "Command failed" in rig.driver._link.hand_text and "homing was never done" in rig.driver._link.hand_text
    rig.fault(Fault.NONE)
    until(lambda: rig.health().level is not Level.ERROR, "the homing")


def test_a_refused_motion_is_tried_again_and_then_told(rig: Rig):
    rig.controlled()
    rig.fault(Fault.HAND_REFUSED)
    command(rig, 0.02)
    until(lambda: rig.link.hand[GRASPS] == TRIES, "the tries")
    until(lambda: f"grasp(0.040 m) failed {TRIES} times: libfranka" in rig.health().message, "the message")
    assert rig.driver.health().level is Level.WARN
    for _ in range(100):
        rig.driver.read()
    assert rig.link.hand[GRASPS] == TRIES
    rig.fault(Fault.NONE)
    command(rig, 0.03)
    until(lambda: abs(rig.link.positions[7] - 0.03) < 1e-3, "the next width")
    until(lambda: rig.health().level is Level.OK, "health")


@pytest.mark.parametrize("fault", [Fault.HAND_SILENT, Fault.HAND_GONE])
def test_a_hand_that_gives_no_reading_is_an_error_and_comes_back_by_itself(rig: Rig, fault: Fault):
    rig.controlled()
    arm = rig.driver._arm.pid
    rig.fault(fault)
    until(lambda: rig.health().level is Level.ERROR, "the error")
    assert "Franka Hand: no reading" in rig.driver.health().message
    assert not rig.stale()
    rig.fault(Fault.NONE)
    until(lambda: rig.health().level is Level.OK, "the hand")
    assert rig.driver._arm.pid == arm, "the arm held meanwhile"
    command(rig, 0.03)
    until(lambda: abs(rig.link.positions[7] - 0.03) < 1e-3, "the width")


def test_dead_processes_of_the_hand_are_started_again(rig: Rig):
    rig.controlled()
    for which in ("_hand", "_stopper"):
        process = getattr(rig.driver, which)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda which=which, old=process: rig.health() and getattr(rig.driver, which) is not old, "a new process")
        until(lambda: rig.health().level is Level.OK, "the hand")
    command(rig, CLOSED)
    until_closed_to(rig, 0.03)
    rig.driver.hold(rig.driver.read().positions)
    until(lambda: rig.link.hand[STOPS] > 0 and not rig.driver._link.busy_since_ns, "the stop")


class RefusedError(RuntimeError):
    pass


class PretendGripper:
    """A hand without time: `answers` are what its motions return or raise, in turn."""

    def __init__(self) -> None:
        self.width, self.max_width = 0.08, 0.08
        self.told: list[tuple[str, float]] = []
        self.answers: list = []
        self.during = lambda: None

    def read_once(self):
        return SimpleNamespace(width=self.width, max_width=self.max_width, is_grasped=False)

    def _do(self, what: str, width: float) -> bool:
        self.told.append((what, width))
        self.during()
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        self.width = width if answer is True else answer
        return True

    def grasp(self, width, *_):
        return self._do("grasp", width)

    def move(self, width, *_):
        return self._do("move", width)


@pytest.fixture
def pretend():
    link = FrankaLink(f"test_hand_{os.getpid()}", create=True)
    gripper, clock = PretendGripper(), SimpleNamespace(now=0.0)
    loop = HandLoop(gripper, RefusedError, link, lambda: clock.now)

    def steps(count: int = 10) -> None:
        for _ in range(count):
            clock.now += 0.1
            loop.step()

    def want(half_width: float) -> None:
        link.send(np.append(ROBOT.rest_position[:7], half_width), 0)

    yield SimpleNamespace(link=link, gripper=gripper, steps=steps, want=want)
    link.close()


def test_nothing_is_wanted_before_the_first_command(pretend):
    pretend.steps()
    assert pretend.gripper.told == []


def test_a_hold_during_a_motion_ends_it_for_good_whatever_it_says(pretend):
    pretend.gripper.answers = [RefusedError("Command aborted!")]
    pretend.gripper.during = pretend.link.hold
    pretend.want(0.0)
    pretend.steps()
    assert pretend.gripper.told == [("grasp", 0.0)] and pretend.link.hand_text == ""


def test_a_hold_that_comes_before_a_motion_has_begun_forbids_it(pretend):
    pretend.want(0.0)
    pretend.link.hold()
    pretend.steps()
    assert pretend.gripper.told == []
    pretend.want(0.0)
    pretend.steps()
    assert pretend.gripper.told == [("grasp", 0.0)]


def test_an_aborted_motion_is_tried_again_until_it_comes_about(pretend):
    pretend.gripper.answers = [RefusedError("Command aborted!"), RefusedError("Command failed!"), True]
    pretend.want(0.01)
    pretend.steps(30)
    assert pretend.gripper.told == [("grasp", 0.02)] * 3 and pretend.link.hand_text == ""


def test_something_held_is_not_grasped_twice_nor_let_go_for_its_own_width(pretend):
    pretend.gripper.answers = [0.05]
    pretend.want(0.01)
    pretend.steps()
    for half_width in (0.0, 0.02, 0.025, 0.026):
        pretend.want(half_width)
        pretend.steps()
    assert pretend.gripper.told == [("grasp", 0.02)]
    pretend.want(0.035)
    pretend.steps()
    assert pretend.gripper.told == [("grasp", 0.02), ("move", 0.07)]
