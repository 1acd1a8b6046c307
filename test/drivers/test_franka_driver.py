"""The real pylibfranka on an emulated control box in a process of its own, which is as strict as Franka's: units,
limits, modes, recovery, holds, a lost box."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from franka_rig import Rig, until

from molmoact2_ros.bringup.processes import node_environment
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import DriverError, StaleError
from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver
from molmoact2_ros.drivers.gate import Command
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig
from molmoact2_ros.simulation.emulators.fci_link import Fault


@pytest.fixture
def rig() -> Iterator[Rig]:
    one = Rig()
    yield one
    one.close()


def ahead(rig: Rig, way: float = 0.1) -> np.ndarray:
    """A goal `way` rad from here, towards the middle of the joints."""
    goal = rig.driver.read().positions
    goal[:7] += way * np.where(goal[:7] > rig.driver.robot.rest_position[:7] + 0.05, -1.0, 1.0)
    return goal


def test_connecting_moves_nothing_and_set_points_reach_joints_and_hand(rig: Rig):
    rig.controlled()
    start = rig.link.positions.copy()
    assert np.allclose(rig.driver.read().positions, start, atol=1e-5)
    goal = ahead(rig)
    goal[7] = 0.01
    rig.go(goal)
    until(lambda: np.allclose(rig.link.positions, goal, atol=1e-4), "the goal")
    until(lambda: np.allclose(rig.driver.read().positions, goal, atol=1e-3), "the readings")
    assert rig.health().level is Level.OK
    assert rig.reflexes == {}


def test_motion_holds_jumps_and_lost_packets_make_no_reflex(rig: Rig):
    """The box counts what it was sent: limits that are nearly used, and never broken."""
    rig.controlled()
    rig.go(ahead(rig, 0.5), 0.5)
    rig.driver.write(ahead(rig, 0.5))  # a jump of half a radian, as far as a driver lets one through
    rig.driver.hold(rig.link.positions)
    rig.fault(Fault.LOST, 0.05)
    rig.go(ahead(rig, 0.3), 0.5)
    rig.driver.hold(rig.link.positions)
    rig.fault(Fault.NONE)
    rig.go(ahead(rig, 0.2))
    assert rig.health().level is Level.OK
    share, bend, jerk, commands, missed, _, _ = rig.link.seen
    assert rig.reflexes == {} and commands > 1000 and missed > 10
    assert share < 1.0 and 8.0 < bend <= 10.0 and jerk <= 5000.0


def test_a_hold_in_motion_stops_on_the_way_and_stays(rig: Rig):
    rig.controlled()
    goal = ahead(rig, 0.4)
    rig.go(goal, 0.8, until_share=0.5)
    before = rig.link.positions[:7].copy()
    rig.driver.hold(rig.link.positions)
    until(lambda: not np.any(rig.link.targets[:7].copy() - _later(rig)), "rest")
    stopped, way = rig.link.positions[:7].copy(), np.sign(goal[:7] - before)
    assert np.all((stopped - before) * way > 0.0) and np.all((goal[:7] - stopped) * way > 0.0), "not on the way"
    rig.driver.hold(rig.driver.read().positions)
    assert rig.driver.confirms(rig.driver.read().positions)
    assert not np.any(_later(rig) - stopped)
    assert rig.reflexes == {}


def _later(rig: Rig) -> np.ndarray:
    """Where the joints are after 30 more readings."""
    for _ in range(30):
        rig.driver.read()
    return rig.link.targets[:7].copy()


def loop_at(rig: Rig) -> tuple[DriverLoop, Callable[[int], None]]:
    """The driver's loop, connected, and what takes so many steps of it."""
    loop = DriverLoop(rig.driver, LoopConfig(health_s=0.05), lambda _: None)

    def steps(count: int) -> None:
        for _ in range(count):
            loop.step()

    until(lambda: steps(1) or (loop.counters.readings and loop.status().level is Level.OK), "the loop")
    return loop, steps


def commanded(loop: DriverLoop, rig: Rig, goal: np.ndarray, seconds: float, share: float, steps) -> None:
    """Commands of one arming through the gate, on the way from here to `goal`."""
    start, begun = rig.driver.read().positions, time.monotonic()
    while (s := (time.monotonic() - begun) / seconds) < share:
        positions = start + (goal - start) * (10 * s**3 - 15 * s**4 + 6 * s**5)
        refusal = loop.command(Command(positions, time.monotonic_ns(), "first"), time.monotonic_ns())
        assert refusal == ""
        steps(1)


def test_an_e_stop_in_motion_holds_arm_and_hand_through_the_loop(rig: Rig):
    """The loop tells a driver where the arm was read last, which lies behind: this one stops on the way instead."""
    loop, steps = loop_at(rig)
    goal = ahead(rig, 0.4)
    goal[7] = 0.0 if rig.link.positions[7] > 0.02 else 0.04
    commanded(loop, rig, goal, 0.8, 0.5, steps)
    way, finger = np.sign(goal[:7] - rig.link.positions[:7]), np.sign(goal[7] - rig.link.positions[7])
    loop.e_stop(True)
    positions = [rig.link.targets.copy()]
    for _ in range(60):
        steps(1)
        positions.append(rig.link.targets.copy())
    path = np.array(positions)
    assert np.all(np.diff(path[:, :7], axis=0) * way > -1e-6), "it went back"
    assert np.all(np.diff(path[:, 7]) * finger >= 0.0), "the fingers went back"
    assert not np.any(path[-1] - path[-20]) and rig.reflexes == {}
    assert np.all((goal - path[-1])[:7] * way > 0.0), "it went to the goal"
    assert loop.counters.holds == 1
    loop.e_stop(False)
    steps(50)
    assert not np.any(rig.link.targets - path[-1])


def test_a_hold_from_before_a_guiding_moves_nothing_after_it(rig: Rig):
    """A hold that could not be written must not be written later, when the arm is somewhere else."""
    loop, steps = loop_at(rig)
    commanded(loop, rig, ahead(rig, 0.1), 0.4, 1.0, steps)
    rig.fault(Fault.GUIDING)
    loop.e_stop(True)
    until(lambda: steps(1) or "guiding" in loop.fault, "the guiding")
    rig.link.targets[:7] += 0.2 * np.where(rig.link.targets[:7] > rig.driver.robot.rest_position[:7], -1.0, 1.0)
    steps(30)
    there = rig.link.positions[:7].copy()
    loop.e_stop(False)
    rig.fault(Fault.NONE)
    until(lambda: steps(1) or loop.status().level is Level.OK, "control of the arm")
    steps(50)
    assert np.allclose(rig.link.targets[:7], there, atol=1e-5) and rig.reflexes == {}


def test_a_reading_is_of_a_state_that_came_after_the_call(rig: Rig):
    rig.controlled()
    for _ in range(5):
        asked = time.time_ns()
        assert rig.driver.read().stamp_ns > asked
    rig.fault(Fault.SILENT)
    until(lambda: rig.stale(), "silence")


def test_a_silent_box_ends_the_connection_and_the_next_one_recovers_from_the_silence(rig: Rig):
    rig.controlled()
    rig.fault(Fault.SILENT)
    until(lambda: "connection is lost" in rig.stale(), "the loss")
    assert rig.reflexes == {"communication_constraints_violation": 1}
    rig.driver.disconnect()
    rig.fault(Fault.NONE)
    rig.controlled()
    assert rig.health().values["robot_mode"] == "Move"


def test_a_reflex_is_an_error_until_it_is_recovered_from_and_readings_go_on(rig: Rig):
    rig.controlled()
    rig.fault(Fault.REFLEX)
    until(lambda: rig.health().level is Level.ERROR, "the reflex")
    assert "joint_reflex" in rig.health().message and "driver/recover" in rig.health().message
    assert not rig.stale()
    with pytest.raises(StaleError, match=r"takes no commands.*Reflex"):
        rig.driver.write(ahead(rig))
    assert "aborted" in rig.recover() or rig.health().level is Level.ERROR
    rig.fault(Fault.NONE)
    assert rig.recover() == ""
    until(lambda: rig.health().level is Level.OK, "control of the arm")


def test_recovery_that_takes_its_time_blocks_nobody_and_outlives_a_lost_link(rig: Rig):
    rig.controlled()
    rig.fault(Fault.REFLEX)
    until(lambda: rig.health().level is Level.ERROR, "the reflex")
    rig.fault(Fault.SLOW_RECOVERY)
    asked = rig.driver.begin_recovery()
    assert rig.driver.recovery(asked) is None  # it lasts 1.5 s
    assert "recovering" in rig.driver.health().message and rig.driver.health().level is Level.ERROR
    rig.driver.read()  # waits for the box, and so keeps the connection
    until(lambda: rig.driver.recovery(asked) == "", "recovery")
    until(lambda: rig.health().level is Level.OK, "control of the arm")
    rig.fault(Fault.REFLEX)
    until(lambda: rig.health().level is Level.ERROR, "the reflex")
    rig.fault(Fault.SLOW_RECOVERY)
    asked = rig.driver.begin_recovery()
    others = threading.Thread(target=lambda: [rig.driver.recovery(asked) for _ in range(100_000)])
    others.start()
    rig.driver.disconnect()
    others.join()
    assert "lost meanwhile" in rig.driver.recovery(asked)
    with pytest.raises(StaleError, match="not connected"):
        rig.driver.begin_recovery()
    rig.fault(Fault.NONE)
    rig.driver.connect()
    assert rig.recover() == ""


def test_the_user_stop_is_told_and_control_comes_back_with_its_release(rig: Rig):
    rig.controlled()
    before = rig.link.positions.copy()
    rig.fault(Fault.USER_STOP)
    until(lambda: rig.driver.user_stopped, "the user stop")
    with pytest.raises(StaleError, match=r"takes no commands.*UserStopped"):
        rig.driver.write(before + 0.2)
    rig.driver.hold(rig.link.positions)  # it has stopped by itself
    assert not rig.stale() and rig.health().level is Level.WARN
    rig.fault(Fault.NONE)
    until(lambda: rig.health().level is Level.OK, "control of the arm")
    assert np.allclose(rig.link.positions, before, atol=1e-3), "a command of the time of the stop was executed"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(Fault.GUIDING, "mode guiding; it takes no commands"), (Fault.REFUSED, "not controlled, mode Idle: .*rejected")],
)
def test_a_robot_that_takes_no_commands_is_an_error_with_its_cause(rig: Rig, fault: Fault, cause: str):
    rig.fault(fault)
    rig.driver.connect()
    until(lambda: rig.health().level is Level.ERROR, "the error")
    assert re.search(cause, rig.health().message), rig.health().message
    with pytest.raises(StaleError, match=r"takes no commands"):
        rig.driver.write(rig.link.positions + 0.05)
    assert not rig.stale()
    rig.fault(Fault.NONE)
    until(lambda: rig.health().level is Level.OK, "control of the arm")


def test_an_arm_that_is_guided_while_it_is_controlled_stays_where_it_was_put(rig: Rig):
    rig.controlled()
    rig.fault(Fault.GUIDING)
    until(lambda: rig.health().level is Level.ERROR, "the guiding")
    rig.link.targets[:7] += 0.2
    until(lambda: np.allclose(rig.driver.read().positions[:7], rig.link.targets[:7], atol=1e-5), "the readings")
    there = rig.link.positions[:7].copy()
    rig.fault(Fault.NONE)
    until(lambda: rig.health().level is Level.OK, "control of the arm")
    assert np.allclose(_later(rig), there, atol=1e-5) and rig.reflexes == {}


def test_the_arm_s_process_ends_with_the_driver_and_brings_the_arm_to_rest(rig: Rig):
    rig.controlled()
    rig.go(ahead(rig, 0.4), 0.8, until_share=0.5)
    before = rig.link.targets[:7].copy()
    rig.driver.disconnect()
    assert 0.0 < np.abs(rig.link.targets[:7] - before).max() < 0.1
    assert rig.reflexes == {}
    rig.controlled()


def test_what_is_missing_is_named():
    with pytest.raises(DriverError, match="no address of the control box"):
        FrankaDriver(FrankaConfig("")).connect()
    with pytest.raises(DriverError, match=r"127.255.1.1, (arm|hand): .*FCI"):
        FrankaDriver(FrankaConfig("127.255.1.1", realtime=False)).connect()


def test_a_killed_arm_process_is_a_lost_connection(rig: Rig):
    rig.controlled()
    os.kill(rig.driver._arm.pid, signal.SIGKILL)
    until(lambda: "connection is lost" in rig.stale(), "the loss")
    with pytest.raises(StaleError):
        rig.driver.hold(rig.link.positions)
    rig.controlled()


def test_a_killed_driver_leaves_no_process_behind_that_holds_the_box(rig: Rig):
    code = (
        "import sys, time\n"
        "from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver\n"
        "driver = FrankaDriver(FrankaConfig(sys.argv[1], realtime=False))\n"
        "driver.connect()\n"
        "print(driver._arm.pid, driver._hand.pid, driver._stopper.pid, flush=True)\n"
        "time.sleep(100.0)\n"
    )
    command = [sys.executable, "-c", code, rig.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=node_environment()) as other:
        assert other.stdout is not None
        children = [int(pid) for pid in other.stdout.readline().split()]
        assert len(children) == 3
        other.kill()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), "the end of its processes")
    assert rig.reflexes == {}
    rig.controlled()
