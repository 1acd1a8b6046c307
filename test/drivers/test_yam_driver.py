"""The real, unmodified i2rt on emulated Damiao motors: units, freshness, a stopped chain, hand guiding.

Pinned here: i2rt goes on returning the last position after its motor chain has stopped; the driver does not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import can
import numpy as np
import pytest

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import DriverError, StaleError
from molmoact2_ros.drivers.yam import YamConfig, YamDriver
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.yam_bimanual import GRIPPER_STROKE
from molmoact2_ros.simulation.emulators.damiao import TIMEOUT_REGISTER, DamiaoBus, Faults
from molmoact2_ros.teleoperation.yam_leader import YamLeader

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
"""i2rt ends its threads by an exception when a chain stops."""

ROBOT = embodiment("yam")
CODE = 1e-3
"""Positions travel as 16 bits over +-12.5 rad, and the gripper's over a stroke that i2rt found by itself."""


class Joints:
    """A plant of seven joints that is where it is put, and goes at once where it is driven."""

    def __init__(self, start: np.ndarray) -> None:
        self.position = np.array(start)

    def joints(self):
        return self.position.copy(), np.zeros(7)

    def drive(self, targets) -> None:
        self.position = np.array(targets)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.joints = [Joints(ROBOT.rest_position[:7]), Joints(ROBOT.rest_position[7:])]
        self.buses = [
            DamiaoBus(joints, folder / name)
            for joints, name in zip(self.joints, ("can_left", "can_right"), strict=True)
        ]
        self.driver = YamDriver(self.config())

    def config(self, **changes) -> YamConfig:
        left, right = (str(bus.link) for bus in self.buses)
        # Known limits of the grippers save the seconds in which i2rt looks for them.
        values = {"gripper_limits": (0.5, -6.07), "can_interface": "molmoact2_link", "cycle_s": 0.3, **changes}
        return YamConfig(left, right, **values)

    @property
    def position(self) -> np.ndarray:
        return np.concatenate([joints.position for joints in self.joints])

    def until(self, condition, what: str, deadline_s: float = 20.0) -> None:
        end = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.01)

    def stale(self) -> str:
        try:
            self.driver.read()
        except StaleError as error:
            return str(error)
        return ""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    with rig.buses[0], rig.buses[1]:
        yield rig
        rig.driver.close()


@pytest.fixture
def connected(rig: Rig) -> Rig:
    rig.driver.connect()
    return rig


def test_positions_are_rad_and_m_in_ros_order_both_ways_and_starting_moves_nothing(connected: Rig):
    assert np.allclose(connected.driver.read().positions, ROBOT.rest_position, atol=CODE)
    assert np.allclose(connected.position, ROBOT.rest_position, atol=CODE)
    target = ROBOT.rest_position.copy()
    target += 0.02 * np.arange(14) / 14
    target[[6, 13]] = 0.01, 0.04
    connected.driver.write(target)
    connected.until(lambda: np.allclose(connected.position, target, atol=CODE), "the joints")
    assert np.allclose(connected.driver.read().positions, target, atol=CODE)


def test_a_reading_is_of_motors_that_were_asked_after_the_call(connected: Rig):
    for i in range(5):
        where = ROBOT.rest_position + 0.01 * i
        where[[6, 13]] = 0.01
        connected.driver.write(where)
        connected.until(lambda where=where: np.allclose(connected.position, where, atol=CODE), "the joints")
        assert np.allclose(connected.driver.read().positions, where, atol=CODE), i


def test_i2rt_returns_its_last_position_after_the_chain_has_stopped_and_the_driver_does_not(connected: Rig):
    robot = connected.driver._arms[0].robot
    connected.buses[0].faults = Faults(silent=frozenset({3}))
    connected.until(lambda: not robot.motor_chain.running, "the chain to stop")
    assert np.allclose(robot.get_joint_pos()[:6], ROBOT.rest_position[:6], atol=CODE)
    assert "left arm: the motor chain" in connected.stale()
    assert "left arm" in connected.stale()


def test_the_other_arm_holds_while_one_is_lost_and_both_run_again(connected: Rig):
    right = connected.driver._arms[1].robot
    connected.buses[0].unplug()
    connected.until(lambda: "has stopped" in connected.stale(), "the chain to stop")
    connected.driver.disconnect()
    with pytest.raises(DriverError, match=r"left arm on .* no emulated bus"):
        connected.driver.connect()
    connected.buses[0].plug()
    connected.until(lambda: connected.buses[0].link.exists(), "the channel")
    connected.driver.connect()
    assert connected.driver._arms[1].robot is right and right.motor_chain.running
    assert np.allclose(connected.driver.read().positions, ROBOT.rest_position, atol=CODE)


def test_motors_let_go_when_nobody_speaks_to_them(connected: Rig):
    connected.driver.close()
    motors = connected.buses[0].motors
    connected.until(lambda: all(motor.state != 1 for motor in motors.values()), "the watchdog")


@pytest.mark.parametrize("ticks", [0, pytest.param(40000, marks=pytest.mark.slow)])
def test_an_arm_whose_watchdog_is_off_or_long_is_not_started(rig: Rig, ticks: int):
    rig.buses[1].motors[5].registers[TIMEOUT_REGISTER] = struct.pack("<I", ticks)
    with pytest.raises(
        DriverError, match=r"motors \[5\] is off or longer than 400 ms.*set_timeout --channel .* --timeout"
    ):
        rig.driver.connect()
    assert all(motor.state == 0 for motor in rig.buses[1].motors.values())


def test_hand_guiding_lets_the_arms_float_and_ends_in_a_hold_where_they_are(connected: Rig):
    connected.driver.hand_guiding(True)
    connected.until(lambda: connected.buses[0].motors[1].target is None, "the gains to go")
    moved = connected.position + 0.05
    moved[[6, 13]] -= 0.05
    connected.driver.write(ROBOT.rest_position)

    def there() -> bool:
        for joints, part in zip(connected.joints, (moved[:7], moved[7:]), strict=True):
            joints.position = part.copy()  # the hand goes on pushing until the motors have let it
        return np.allclose(connected.driver.read().positions, moved, atol=CODE)

    connected.until(there, "the arms by hand")
    assert np.allclose(connected.position, moved, atol=CODE)
    connected.driver.hand_guiding(False)
    connected.until(lambda: connected.buses[0].motors[1].target is not None, "the hold")
    assert np.allclose(connected.position, moved, atol=CODE)


@pytest.mark.slow
def test_i2rt_finds_the_grippers_limits_by_itself(rig: Rig):
    rig.driver = YamDriver(rig.config(gripper_limits=()))
    rig.driver.connect()
    closed, opened = rig.driver._arms[0].limits
    assert abs(abs(closed - opened) - 6.57) < 0.02
    assert rig.driver.read().positions[6] == pytest.approx(GRIPPER_STROKE, abs=CODE)


def test_the_grippers_force_is_the_configs(rig: Rig):
    rig.driver = YamDriver(rig.config(gripper_force=12.0))
    rig.driver.connect()
    robot = rig.driver._arms[0].robot
    assert robot._gripper_force_limiter.max_force == robot._limit_gripper_force == 12.0


def test_health_names_the_hottest_motor(connected: Rig):
    health = connected.driver.health()
    assert health.level is Level.OK and health.values["left_joint4.motor_c"] == 35.0
    connected.buses[1].faults = Faults(hot={4: 83})
    connected.until(lambda: connected.driver.health().level is Level.ERROR, "the fault")
    assert "right_joint4 is at 83 degrees C" in connected.driver.health().message


def test_two_arms_need_two_channels(rig: Rig):
    driver = YamDriver(YamConfig("can0", "can0"))
    with pytest.raises(DriverError, match="each needs its own"):
        driver.connect()


def test_a_lost_frame_costs_a_cycle_and_not_the_chain(connected: Rig):
    connected.buses[0].faults = Faults(lost=0.005)
    assert [connected.stale() for _ in range(20)] == [""] * 20


def test_every_end_on_the_bus_hears_the_others_frames(rig: Rig):
    with can.Bus(interface="molmoact2_link", channel=str(rig.buses[0].link)) as bus:
        bus.send(can.Message(arbitration_id=1, data=[0xFF] * 7 + [0xFC], is_extended_id=False))
        answer = bus.recv(5.0)
        assert answer is not None and (answer.arbitration_id, answer.data[0]) == (17, 0x11)
    with pytest.raises(can.CanInitializationError, match="no emulated bus"):
        can.Bus(interface="molmoact2_link", channel=str(rig.buses[0].link) + "x")


def test_two_arms_as_leaders_float_are_read_follow_and_let_go(rig: Rig):
    leader = rig.driver = YamLeader(rig.config())
    leader.connect()
    where = ROBOT.rest_position + 0.05
    where[[6, 13]] = 0.01

    def held_there() -> bool:
        # As long as a hand does: the motors' last command of before they float may still be on its way.
        for joints, part in zip(rig.joints, (where[:7], where[7:]), strict=True):
            joints.position = part.copy()
        return np.allclose(leader.lead(None, False).positions, where, atol=CODE)

    rig.until(held_there, "the hands' pose")
    goal = where + 0.02
    goal[[6, 13]] = 0.01
    leader.follow(goal)
    rig.until(lambda: np.allclose(rig.position, goal, atol=CODE), "the leaders to follow")
    leader.release()
    assert leader.guided
