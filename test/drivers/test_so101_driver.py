"""The real, unmodified SO101Follower on emulated servos: units, freshness, faults, and coming back.

Pinned here: Feetech's SDK drops nothing in `clearPort`, so that after corrupt answers it returns old positions; the
guarded port does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from so101_rig import ROBOT, Rig

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import DriverError, StaleError
from molmoact2_ros.drivers.so101 import So101Driver
from molmoact2_ros.drivers.so101_limp import LimpSo101
from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.simulation.emulators.feetech import MULTI_TURN, Faults

TICKS = 2 * 2 * np.pi / 4096
"""Two ticks: the encoder rounds, and lerobot cuts its targets off."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path).running() as rig:
        yield rig


@pytest.fixture
def connected(rig: Rig) -> Rig:
    rig.driver.connect()
    return rig


def test_positions_are_rad_in_ros_order_both_ways(connected: Rig):
    for shift in (0.0, 0.2, -0.15):
        connected.joints.position = ROBOT.rest_position + shift
        assert np.allclose(connected.driver.read().positions, ROBOT.rest_position + shift, atol=TICKS)
    target = ROBOT.rest_position + np.array([0.3, 0.2, -0.2, -0.3, 0.4, 0.5])
    connected.driver.write(target)
    assert np.allclose(connected.driver.read().positions, target, atol=2 * TICKS)
    assert np.allclose(connected.joints.position, target, atol=2 * TICKS)


def test_the_stamp_is_from_before_the_request(rig: Rig):
    times = iter(range(1000, 2000))
    rig.driver = So101Driver(rig.config(), now_ns=lambda: next(times))
    rig.driver.connect()
    before = next(times)
    reading = rig.driver.read()
    assert before < reading.stamp_ns < next(times)


def test_connecting_moves_nothing_and_powers_the_arm_where_it_is(rig: Rig):
    for servo in rig.bus.servos.values():
        servo.registers[42:44] = (0).to_bytes(2, "little")  # the goal of a servo that was just switched on
    rig.driver.connect()
    assert np.allclose(rig.joints.position, ROBOT.rest_position, atol=TICKS)
    assert all(servo.registers[40] == 1 for servo in rig.bus.servos.values())


@pytest.mark.parametrize("turns", [1, -1])
def test_servos_that_count_over_turns_stay_where_they_are(rig: Rig, turns: int):
    """lerobot ends that count while it configures; a goal taken before would be a turn away."""
    rig.joints.position[4] = -1.0
    start = rig.joints.position.copy()
    for servo in rig.bus.servos.values():
        servo.registers[18] |= MULTI_TURN
        servo.turns = turns
    seen: list[np.ndarray] = []
    rig.joints.drive = lambda targets: seen.append(np.array(targets))
    rig.driver.connect()
    assert np.allclose(np.array(seen), start, atol=TICKS)
    assert np.allclose(rig.driver.read().positions, start, atol=TICKS)
    assert all(servo.registers[40] == 1 for servo in rig.bus.servos.values())


def test_servos_that_hold_and_count_over_turns_are_refused(connected: Rig):
    connected.driver.disconnect()
    connected.bus.servos[5].registers[18] |= MULTI_TURN
    with pytest.raises(DriverError, match=r"wrist_roll .* whole turns .* switch its power off and on"):
        connected.driver.connect()


def test_an_arm_that_holds_is_not_let_go_when_the_cable_comes_back(connected: Rig):
    writes: list[int] = []
    connected.bus.unplug()
    assert "cable" in connected.tried(1)[0]
    for servo in connected.bus.servos.values():
        watched = servo.write

        def record(address, data, watched=watched):
            if address == 40:
                writes.append(data[0])
            watched(address, data)

        servo.write = record
    with pytest.raises(DriverError, match=r"no serial port .* is the USB cable in"):
        connected.driver.connect()
    connected.bus.plug()
    connected.driver.connect()
    assert writes == []
    assert isinstance(connected.tried(1)[0], np.ndarray)


def raw_follower(rig: Rig):
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    follower = SO101Follower(
        SO101FollowerConfig(port=str(rig.bus.link), id="so101", calibration_dir=rig.folder, use_degrees=True)
    )
    follower.connect(calibrate=False)
    return follower


def raw_position(follower) -> np.ndarray | None:
    try:
        found = follower.get_observation()
    except ConnectionError:
        return None
    vector = np.array([found[f"{name}.pos"] for name in ROBOT.joint_names])
    return ROBOT.joints_from_model(vector, ModelFrame.ARM)


def moving_errors(rig: Rig, read) -> list[float]:
    """Errors of the readings, rad, after a burst of corrupt answers, while the pan joint moves on by 0.01 a reading."""
    rig.bus.faults = Faults(corrupt=0.3)
    for _ in range(12):
        read()
    rig.bus.faults = Faults()
    errors = []
    for i in range(40):
        rig.joints.position = ROBOT.rest_position + np.array([0.01 * i, 0, 0, 0, 0, 0])
        found = read()
        if found is not None:
            errors.append(abs(found[0] - rig.joints.position[0]))
    return errors


def test_the_sdk_alone_returns_old_positions_after_corrupt_answers(rig: Rig):
    """The fault that the guarded port is there for. If this fails, lerobot or the SDK has been mended."""
    follower = raw_follower(rig)
    errors = moving_errors(rig, lambda: raw_position(follower))
    follower.bus.port_handler.closePort()
    assert max(errors[-10:]) > 0.009, "every reading is the newest"


def test_the_guarded_port_never_returns_an_old_position(connected: Rig):
    def read() -> np.ndarray | None:
        try:
            return connected.driver.read().positions
        except StaleError:
            return None

    errors = moving_errors(connected, read)
    assert len(errors) > 30
    assert max(errors) < TICKS


@pytest.mark.parametrize(
    "faults",
    [Faults(silent=frozenset({3})), Faults(corrupt=1.0), Faults(delay_s=0.05), Faults(delay_s=0.2)],
    ids=("a silent servo", "only corrupt answers", "answers after the time limit", "answers after the next request"),
)
def test_no_reading_is_taken_for_fresh_that_is_not(connected: Rig, faults: Faults):
    connected.bus.faults = faults
    first = ROBOT.rest_position.copy()
    for i in range(6):
        connected.joints.position = first + 0.02 * i
        assert isinstance(connected.tried(1)[0], str)
    connected.bus.faults = Faults()
    last = [found for found in connected.tried(12) if isinstance(found, np.ndarray)]
    assert last, "no reading after the fault was gone"
    assert all(np.allclose(found, connected.joints.position, atol=TICKS) for found in last)


def test_late_answers_within_the_time_limit_are_readings(connected: Rig):
    connected.bus.faults = Faults(delay_s=0.005)
    found = connected.tried(30)  # a busy machine may make some of them later than the limit
    readings = [one for one in found if isinstance(one, np.ndarray)]
    assert readings and all(np.allclose(one, connected.joints.position, atol=TICKS) for one in readings)


def test_answers_in_another_order_than_asked_for_are_no_reading(connected: Rig):
    """Which is how answers to an earlier request are told from those to this one."""
    parse = connected.bus._parse

    def turned() -> None:
        buffer = connected.bus._buffer
        if len(buffer) > 7 and buffer[4] == 0x82:
            buffer[7:13] = bytes(reversed(buffer[7:13]))
            buffer[13] = ~sum(buffer[2:13]) & 0xFF
        parse()

    connected.bus._parse = turned
    assert all(isinstance(found, str) for found in connected.tried(4))


def test_a_line_that_never_falls_silent_does_not_hang_the_driver(connected: Rig):
    port = connected.driver._follower.bus.port_handler
    flood = bytes([0xFF, 0xFF, 0x7F, 0xF0]) * 64
    port.ser.read = lambda count: flood[:count]
    (found,) = connected.tried(1)
    assert "silent" in found or "status packet" in found


def test_health_names_what_is_wrong(connected: Rig):
    health = connected.driver.health()
    assert health.level is Level.OK
    assert health.values["elbow_flex.temperature_c"] == 32 and health.values["gripper.voltage_v"] == 7.4
    connected.bus.faults = Faults(hot={3: 58})
    assert connected.driver.health().level is Level.WARN
    connected.bus.faults = Faults(hot={3: 66})
    health = connected.driver.health()
    assert (health.level, "elbow_flex is at 66" in health.message) == (Level.ERROR, True)
    connected.bus.faults = Faults()
    connected.bus.servos[1].registers[62] = 41
    health = connected.driver.health()
    assert health.level is Level.WARN and "4.1" in health.message
    connected.bus.faults = Faults(limp=frozenset({2}))
    connected.driver.read()
    health = connected.driver.health()
    assert health.level is Level.ERROR and "shoulder_lift lost torque" in health.message


def test_an_arm_that_was_switched_off_and_on_is_connected_anew_where_it_is(connected: Rig):
    connected.bus.power_cycle()
    connected.joints.position = ROBOT.rest_position - 0.1
    with pytest.raises(StaleError, match="switched off and on"):
        connected.driver.health()
    connected.driver.connect()
    assert np.allclose(connected.joints.position, ROBOT.rest_position - 0.1, atol=TICKS)
    assert all(servo.registers[40] == 1 for servo in connected.bus.servos.values())


def test_an_arm_that_is_half_without_torque_is_refused(connected: Rig):
    connected.driver.disconnect()
    connected.bus.servos[2].registers[40] = 0
    with pytest.raises(DriverError, match=r"shoulder_lift of the arm .* no torque while the others hold"):
        connected.driver.connect()


@pytest.mark.parametrize("off", [False, True])
def test_torque_goes_off_at_the_end_only_where_asked_for(rig: Rig, off: bool):
    rig.driver = So101Driver(rig.config(torque_off_on_close=off))
    rig.driver.connect()
    rig.driver.close()
    assert {servo.registers[40] for servo in rig.bus.servos.values()} == {0 if off else 1}


def test_torque_goes_off_servo_by_servo_and_those_that_keep_it_are_named(rig: Rig):
    rig.driver = So101Driver(rig.config(torque_off_on_close=True))
    rig.driver.connect()
    # The first complains and obeys, the third does not hear: neither may keep the torque of those that come after.
    rig.bus.faults = Faults(overloaded=frozenset({1}), silent=frozenset({3}))
    stubborn = rig.bus.servos[5]
    plain = stubborn.write
    stubborn.write = lambda address, data: None if address == 40 else plain(address, data)
    with pytest.raises(DriverError, match=r"^wrist_roll kept torque; elbow_flex did not answer: torque on .* not off"):
        rig.driver.close()
    assert [servo.registers[40] for _, servo in sorted(rig.bus.servos.items())] == [0, 0, 1, 0, 1, 0]
    rig.driver.close()


def test_torque_that_cannot_go_off_without_a_connection_is_told(rig: Rig):
    rig.driver = So101Driver(rig.config(torque_off_on_close=True))
    rig.driver.close()  # nothing had torque
    rig.driver.connect()
    rig.bus.unplug()
    rig.driver.disconnect()
    with pytest.raises(DriverError, match=r"the arm is not connected: torque on .* is not off"):
        rig.driver.close()


def test_an_overload_is_not_taken_for_a_missing_cable(rig: Rig):
    rig.bus.faults = Faults(overloaded=frozenset({6}))
    with pytest.raises(DriverError, match=r"^gripper \(servo 6\) reports overload: see what blocks it") as caught:
        rig.driver.connect()
    assert "cable" not in str(caught.value)
    rig.bus.faults = Faults(overloaded=frozenset({6}), silent=frozenset({2}))
    with pytest.raises(DriverError, match=r"reports overload: .*; shoulder_lift did not answer: .* cable in"):
        rig.driver.connect()
    rig.bus.faults = Faults(hot={4: 71})
    with pytest.raises(DriverError, match=r"wrist_flex \(servo 4\) reports overheating: let it cool down"):
        rig.driver.connect()


def test_what_is_missing_is_named_with_the_command_that_mends_it(rig: Rig, tmp_path: Path):
    with pytest.raises(DriverError, match=r"no calibration .*lerobot-calibrate --robot.type=so101_follower"):
        So101Driver(rig.config(calibration_dir=str(tmp_path / "empty"))).connect()
    rig.bus.servos[4].registers[9] = 1
    with pytest.raises(DriverError, match=r"another calibration .*lerobot-calibrate"):
        rig.driver.connect()
    rig.bus.faults = Faults(silent=frozenset({2, 5}))
    with pytest.raises(DriverError, match=r"- 2 .*- 5 .*is every servo's cable in"):
        rig.driver.connect()
    with pytest.raises(DriverError, match="no serial port '/dev/serial/by-id/none'"):
        So101Driver(rig.config(port="/dev/serial/by-id/none")).connect()


def test_lerobots_own_calibration_runs_on_the_bus_and_its_file_is_accepted(rig: Rig, monkeypatch, tmp_path: Path):
    from lerobot.motors import motors_bus
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    folder = tmp_path / "mine"
    follower = SO101Follower(SO101FollowerConfig(port=str(rig.bus.link), id="mine", calibration_dir=folder))
    rig.joints.position = np.array([0.0, 0.0, 0.0, 0.0, 0.0, (ROBOT.limits.lower[5] + ROBOT.limits.upper[5]) / 2])
    middle = rig.joints.position.copy()
    poses = iter([ROBOT.limits.lower, ROBOT.limits.upper, middle])

    def moved_by_hand() -> bool:
        pose = next(poses, None)
        if pose is not None:
            rig.joints.position = np.array(pose)
        return pose is None

    monkeypatch.setattr("builtins.input", lambda _: "")
    monkeypatch.setattr(motors_bus, "enter_pressed", moved_by_hand)
    follower.bus.connect()
    follower.calibrate()
    follower.bus.disconnect()
    rig.driver = So101Driver(rig.config(calibration_id="mine", calibration_dir=str(folder)))
    rig.driver.connect()
    rig.joints.position = middle + 0.3
    # Ranges that a hand has recorded are a tick or two from the ideal ones.
    assert np.allclose(rig.driver.read().positions, middle + 0.3, atol=3 * TICKS)


def test_a_healthy_line_loses_no_reading(connected: Rig):
    assert all(isinstance(found, np.ndarray) for found in connected.tried(50))
    assert connected.driver.line.late == connected.driver.line.corrupt == connected.driver.line.stray_bytes == 0


def test_an_arm_that_is_moved_by_hand_is_read_and_nothing_is_written(rig: Rig):
    limp = LimpSo101(rig.config())
    before = {number: bytes(servo.registers[40:48]) for number, servo in rig.bus.servos.items()}  # torque and goals
    limp.connect()
    for shift in (0.0, 0.3):
        rig.joints.position = ROBOT.rest_position + shift
        assert np.allclose(limp.read().positions, ROBOT.rest_position + shift, atol=TICKS)
    with pytest.raises(DriverError, match="takes no commands"):
        limp.write(ROBOT.rest_position)
    limp.close()
    assert {number: bytes(servo.registers[40:48]) for number, servo in rig.bus.servos.items()} == before
    rig.driver.connect()  # gives torque
    with pytest.raises(DriverError, match="hold it, and it is to be moved by hand"):
        limp.connect()
    assert all(servo.registers[40] for servo in rig.bus.servos.values()), "an arm that holds was let go"
