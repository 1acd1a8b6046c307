"""Calibration files that are not what they should be: refused in one line before torque, tried again when mended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from so101_rig import ROBOT, Rig

from molmoact2_ros.drivers.driver import DriverError
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig
from molmoact2_ros.drivers.so101 import So101Driver
from molmoact2_ros.drivers.so101_calibration import check_calibration
from molmoact2_ros.simulation.emulators.feetech import write_calibration


class Arm(Rig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.good = self.path.read_text()

    def change(self, joint: str, **values: object) -> None:
        """Write the file with other values for a joint, and the servo's registers after it."""
        entries = json.loads(self.good)
        entries[joint] |= values
        self.path.write_text(json.dumps(entries))
        data = self.bus.servos[entries[joint]["id"]].registers
        for address, field in ((9, "range_min"), (11, "range_max")):
            data[address : address + 2] = entries[joint][field].to_bytes(2, "little")

    def recalibrate(self) -> None:
        """Somebody has calibrated the arm anew, under another id: a servo's zero is elsewhere."""
        self.bus.servos[2].registers[31:33] = (77).to_bytes(2, "little")

    def refusal(self) -> str:
        with pytest.raises(DriverError) as caught:
            self.driver.connect()
        assert all(servo.registers[40] == 0 for servo in self.bus.servos.values())
        text = str(caught.value)
        assert "\n" not in text
        return text


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Arm]:
    with Arm(tmp_path).running() as arm:
        yield arm


@pytest.mark.parametrize(
    ("joint", "low", "high", "says"),
    [
        ("shoulder_lift", 0, 4095, "goes over 360 degrees .* expected 245 at most: .* 4095 to 0"),
        ("gripper", 3, 4090, "goes over 359 degrees .* expected 155 at most"),
        ("elbow_flex", 1500, 2500, "goes over 88 degrees .* expected 164 at least: move it from stop to stop"),
        ("wrist_roll", 1000, 3000, "goes over 176 degrees .* expected 290 at least"),
        ("wrist_flex", 2047, 2047, "has equal ends .range_min 2047, range_max 2047"),
        ("shoulder_pan", 3300, 800, "has exchanged ends .range_min 3300, range_max 800"),
    ],
)
def test_ranges_that_a_joint_cannot_have_are_refused_before_torque(arm: Arm, joint: str, low: int, high: int, says):
    arm.change(joint, range_min=low, range_max=high)
    text = arm.refusal()
    assert re.search(f"{joint} {says}", text), text
    assert "so101.json" in text and "lerobot-calibrate" in text and f"--robot.calibration_dir={arm.path.parent}" in text
    assert text.count("goes over") + text.count("has e") == 1


@pytest.mark.parametrize(
    "ranges",
    [
        {"wrist_flex": (652, 3222), "shoulder_lift": (775, 3266), "gripper": (1925, 3343)},
        {"shoulder_pan": (774, 3308), "shoulder_lift": (946, 2954), "gripper": (1590, 2626)},
        {"wrist_roll": (0, 4095)},
    ],
)
def test_ranges_of_real_arms_are_accepted(arm: Arm, ranges: dict[str, tuple[int, int]]):
    entries = json.loads(arm.good)
    for joint, (low, high) in ranges.items():
        entries[joint] |= {"range_min": low, "range_max": high}
    arm.path.write_text(json.dumps(entries))
    check_calibration(arm.path, ROBOT, "lerobot-calibrate")


OLD_FORM = json.dumps({"homing_offset": [1, 2], "drive_mode": [0, 0], "motor_names": ["shoulder_pan", "gripper"]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OLD_FORM, "old form of lists"),
        ("", "the file is empty"),
        ("null", "got null"),
        ("[1, 2]", r"got [1, 2]"),
        ("{}", "got none"),
        ('{"shoulder_pan": {"id": 1', "no whole JSON"),
        ("[" * 100_000, "no whole JSON"),
        ("\x00\xff", "no whole JSON"),
    ],
    ids=("old form", "empty", "null", "list", "no entries", "cut off", "endless", "garbage"),
)
def test_files_that_do_not_parse_are_refused_in_one_line(arm: Arm, text: str, says: str):
    arm.path.write_text(text)
    refusal = arm.refusal()
    assert says in refusal and "lerobot-calibrate" in refusal


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"homing_offset": 12.5}, "elbow_flex has homing_offset 12.5, expected a whole number from -2047 to 2047"),
        ({"homing_offset": 2048}, "has homing_offset 2048"),
        ({"drive_mode": True}, "has drive_mode True"),
        ({"range_max": 4096}, "has range_max 4096, expected a whole number from 0 to 4095"),
        ({"id": 4}, "has id 4, expected 3"),
        ({"drive_mode": None}, "has drive_mode None"),
    ],
)
def test_values_that_are_none_are_refused(arm: Arm, change: dict[str, object], says: str):
    entries = json.loads(arm.good)
    entries["elbow_flex"] |= change
    arm.path.write_text(json.dumps(entries))
    assert says in arm.refusal()


def test_a_missing_field_is_named_with_what_is_expected(arm: Arm):
    entries = json.loads(arm.good)
    del entries["gripper"]["drive_mode"]
    arm.path.write_text(json.dumps(entries))
    assert (
        "gripper must have id, drive_mode, homing_offset, range_min, range_max, got id, homing_offset" in arm.refusal()
    )


def test_a_file_in_the_place_of_a_folder_is_named(arm: Arm):
    arm.driver = So101Driver(arm.config(calibration_dir=str(arm.path)))
    assert f"calibration_dir {arm.path} is a file, expected the folder" in arm.refusal()
    arm.path.unlink()
    arm.path.mkdir()
    arm.driver = So101Driver(arm.config())
    assert "cannot read the calibration" in arm.refusal()


def test_a_file_that_is_mended_is_taken_at_the_next_try(arm: Arm):
    """Through the driver's loop, which outlives the broken file."""
    now = [0]
    loop = DriverLoop(arm.driver, LoopConfig(), lambda _: None, lambda: now[0], lambda *_: None)
    arm.path.write_text(OLD_FORM)
    loop.step()
    assert not loop.connected and "old form of lists" in loop.status().message
    arm.path.write_text(arm.good)
    now[0] += 2 * 10**9
    loop.step()
    assert loop.connected


def test_servos_with_other_values_are_named_with_the_files_that_there_are(arm: Arm, tmp_path: Path):
    arm.recalibrate()
    (tmp_path / "broken.json").write_text(OLD_FORM)
    text = arm.refusal()
    assert "shoulder_lift: offset 77, range 819 to 3276 ticks, in the file offset -150" in text
    assert "write_calibration" in text and "lerobot-calibrate" in text and "elbow_flex" not in text
    assert f"other calibrations: {tmp_path}/broken.json" in text
    write_calibration(arm.bus.servos, tmp_path, "mine")
    assert f"they hold what {tmp_path}/mine.json says: set calibration_id to mine" in arm.refusal()


def test_a_missing_file_is_told_with_those_under_other_names(arm: Arm):
    arm.path.rename(arm.path.with_name("mine.json"))
    text = arm.refusal()
    assert "no calibration" in text and f"other calibrations: {arm.path.parent}/mine.json" in text


def test_the_files_values_are_written_to_the_servos_only_where_asked_for(arm: Arm):
    before = {number: bytes(servo.registers[:40]) for number, servo in arm.bus.servos.items()}
    arm.recalibrate()
    recalibrated = bytes(arm.bus.servos[2].registers[:40])
    arm.refusal()
    assert bytes(arm.bus.servos[2].registers[:40]) == recalibrated
    arm.driver = So101Driver(arm.config(write_calibration=True))
    arm.driver.connect()
    for number, servo in arm.bus.servos.items():
        assert servo.registers[9:13] + servo.registers[31:33] == before[number][9:13] + before[number][31:33]


def test_nothing_is_written_to_servos_that_hold(arm: Arm):
    """With another offset a servo that has torque would move."""
    arm.driver = So101Driver(arm.config(write_calibration=True))
    arm.driver.connect()
    arm.driver.disconnect()
    arm.recalibrate()
    with pytest.raises(DriverError, match=r"have torque, .* switch its power off and on again"):
        arm.driver.connect()
    assert arm.bus.servos[2].registers[31] == 77
