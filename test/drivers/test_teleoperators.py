"""Leaders on emulated buses, through lerobot's own classes: what they read, how they follow, let go and complain."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from molmoact2_ros.drivers.driver import DriverError, MissingPackageError, StaleError
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.leader import CALIBRATION, PORT, LeaderRig
from molmoact2_ros.teleoperation.opening import TeleoperatorConfig, open_teleoperator, parts_of
from molmoact2_ros.teleoperation.rates import GAMEPAD_AXES, KEYBOARD_AXES, RateLeader
from molmoact2_ros.teleoperation.so_leader import SoLeader

ROBOT = embodiment("so101")
ARM = ROBOT.arms[0]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LeaderRig]:
    with LeaderRig(tmp_path) as rig:
        yield rig


@pytest.fixture
def leader(rig: LeaderRig, tmp_path: Path) -> Iterator[SoLeader]:
    config = TeleoperatorConfig("so101_leader", (str(tmp_path / PORT),), CALIBRATION, str(tmp_path))
    found = open_teleoperator(config, ROBOT, time.time_ns)
    assert isinstance(found, SoLeader)
    found.connect()
    yield found
    found.close()


def brought(rig: LeaderRig, leader: SoLeader, position: np.ndarray) -> np.ndarray:
    """Have the hand bring the leader there, and read it."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        rig.hand(position)
        try:
            read = leader.lead(None, False).positions
        except StaleError:  # a machine that was away
            continue
        if np.abs(read - position).max() < 5e-3:
            return read
    raise AssertionError(f"the leader is at {read}, wanted {position}")


def test_lerobots_leader_is_read_in_the_robots_joints(rig: LeaderRig, leader: SoLeader) -> None:
    position = ROBOT.rest_position + np.array([0.3, -0.2, 0.1, -0.2, 0.4, 0.6])
    brought(rig, leader, position)
    assert not rig.holds


def test_a_leader_follows_and_lets_go(rig: LeaderRig, leader: SoLeader) -> None:
    start = leader.lead(None, False).positions
    leader.follow(start)
    assert rig.holds
    goal = start.copy()
    for _ in range(60):
        goal[ARM] += 0.005
        leader.follow(goal)
        rig.hand(ROBOT.rest_position)
    end = time.monotonic() + 5.0
    while np.abs(leader.lead(None, False).positions - goal).max() > 0.01 and time.monotonic() < end:
        pass
    assert np.abs(leader.lead(None, False).positions - goal).max() < 0.01
    leader.release()
    assert not rig.holds


def test_a_leader_that_is_unplugged_is_stale_and_comes_back(rig: LeaderRig, leader: SoLeader) -> None:
    rig.bus.unplug()
    with pytest.raises(StaleError):
        leader.lead(None, False)
    with pytest.raises(DriverError, match="is the USB cable in"):
        leader.connect()
    rig.bus.plug()
    leader.connect()
    assert leader.lead(None, True).positions.shape == (6,)


def test_without_a_calibration_the_leaders_own_command_is_named(rig: LeaderRig, tmp_path: Path) -> None:
    config = TeleoperatorConfig("so101_leader", (str(tmp_path / PORT),), "nobody", str(tmp_path))
    with pytest.raises(DriverError, match=r"lerobot-calibrate --teleop.type=so101_leader .*--teleop.id=nobody"):
        open_teleoperator(config, ROBOT, time.time_ns).connect()


def test_a_leaders_handle_may_go_less_far_than_a_jaw(tmp_path: Path) -> None:
    rig = LeaderRig(tmp_path)
    registers = rig.bus.servos[6].registers
    registers[9:13] = (1900).to_bytes(2, "little") + (2500).to_bytes(2, "little")
    path = rig.calibration
    text = path.read_text()
    entries = json.loads(text)
    entries["gripper"] |= {"range_min": 1900, "range_max": 2500}
    path.write_text(json.dumps(entries))
    with rig:
        config = TeleoperatorConfig("so101_leader", (str(tmp_path / PORT),), CALIBRATION, str(tmp_path))
        leader = open_teleoperator(config, ROBOT, time.time_ns)
        leader.connect()
        leader.close()


# -- gamepad and keyboard ------------------------------------------------------------------------------------------


class Clock:
    now_ns = 10**18

    def __call__(self) -> int:
        self.now_ns += 20_000_000
        return self.now_ns


def pad(axes: np.ndarray = GAMEPAD_AXES):
    """lerobot's gamepad, its controller in the hands of the test."""
    from lerobot.teleoperators.gamepad import GamepadTeleop, GamepadTeleopConfig
    from lerobot.teleoperators.gamepad.gamepad_utils import InputController

    class Hand(InputController):
        deltas = (0.0, 0.0, 0.0)

        def get_deltas(self) -> tuple[float, float, float]:
            return self.deltas

    class Gamepad(GamepadTeleop):
        def connect(self) -> None:
            self.gamepad = hand

    hand = Hand()
    leader = RateLeader(ROBOT, lambda: Gamepad(GamepadTeleopConfig()), axes, 0.1, 1.0, Clock())
    leader.connect()
    return leader, hand


def tip(position: np.ndarray) -> np.ndarray:
    chain, joints = ROBOT.chains[0]
    return chain.tip(position[list(joints)])[:3, 3]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_gamepad_moves_the_tip_along_the_bases_axes(axis: int) -> None:
    leader, hand = pad()
    start = leader.lead(ROBOT.rest_position, False).positions
    hand.deltas = tuple(np.eye(3)[axis])
    for _ in range(25):  # half a second
        position = leader.lead(None, True).positions
    moved = tip(position) - tip(start)
    assert moved[axis] == pytest.approx(0.05, abs=0.015)
    assert np.abs(np.delete(moved, axis)).max() < 0.015
    hand.deltas = (0.0, 0.0, 0.0)
    assert np.array_equal(leader.lead(None, True).positions, position), "it moves by itself"


def test_a_gamepad_is_where_the_arm_is_while_it_does_not_drive() -> None:
    leader, hand = pad()
    hand.deltas = (1.0, 1.0, 0.0)
    elsewhere = ROBOT.rest_position + 0.1
    for arm in (ROBOT.rest_position, elsewhere):
        assert np.allclose(leader.lead(arm, False).positions, arm)
    with pytest.raises(StaleError, match="not known yet"):
        leader.lead(None, False)


def test_the_buttons_close_and_open_the_gripper() -> None:
    leader, hand = pad()
    start = leader.lead(ROBOT.rest_position, False).positions[5]
    hand.open_gripper_command = True
    for _ in range(10):
        opened = leader.lead(None, True).positions[5]
    hand.open_gripper_command, hand.close_gripper_command = False, True
    for _ in range(5):
        closed = leader.lead(None, True).positions[5]
    assert start < closed < opened


def test_a_gamepad_that_was_unplugged_gives_no_readings() -> None:
    leader, hand = pad()
    hand.get_deltas = None
    with pytest.raises(StaleError, match="gamepad"):
        leader.lead(ROBOT.rest_position, True)


def test_the_arrows_of_lerobots_keyboard_are_forward_and_left() -> None:
    up, left = np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0])  # as KeyboardEndEffectorTeleop counts them
    assert np.array_equal(KEYBOARD_AXES @ up, [1.0, 0.0, 0.0])
    assert np.array_equal(KEYBOARD_AXES @ left, [0.0, 1.0, 0.0])


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("so101_leader:/dev/ttyACM1", ("so101_leader", "", ("/dev/ttyACM1",))),
        ("so101_leader:blue@/dev/serial/by-path/a:0:1.0", ("so101_leader", "blue", ("/dev/serial/by-path/a:0:1.0",))),
        ("yam_leader:can2, can3", ("yam_leader", "", ("can2", "can3"))),
        ("gamepad", ("gamepad", "", ())),
    ],
)
def test_a_teleoperators_name_is_read(text: str, parts: tuple[str, str, tuple[str, ...]]) -> None:
    assert parts_of(text) == parts


@pytest.mark.parametrize(
    ("config", "robot", "words"),
    [
        (TeleoperatorConfig("joystick"), "so101", "expected one of so101_leader"),
        (TeleoperatorConfig("so101_leader", ("/dev/a",)), "yam", "of its own kind"),
        (TeleoperatorConfig("so101_leader"), "so101", "needs its serial port"),
        (TeleoperatorConfig("yam_leader", ("can0",)), "yam", "CAN channels"),
        (TeleoperatorConfig("gamepad"), "yam", "drives one arm"),
    ],
)
def test_what_does_not_fit_is_refused(config: TeleoperatorConfig, robot: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_teleoperator(config, embodiment(robot), time.time_ns)


def test_a_package_that_is_missing_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    leader = open_teleoperator(TeleoperatorConfig("gamepad"), ROBOT, time.time_ns)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[teleop\]'"):
        leader.connect()
