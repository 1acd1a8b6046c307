"""lerobot's calibration file of an SO-100/101: read and looked at before any servo has torque.

lerobot takes any numbers and makes angles of them: mid-range is zero. So a range that the joint cannot have is an arm
whose every angle is wrong. Most often the 4095/0 seam of the encoder lay inside the travel while the range was
recorded, which then is the whole turn.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from molmoact2_ros.drivers.driver import DriverError
from molmoact2_ros.drivers.so101_servos import registers
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.so101 import TRAVEL

LAST_TICK = 4095
DEGREES_A_TICK = 360.0 / LAST_TICK
"""As lerobot has it."""
MORE_DEGREES, LESS_DEGREES = 45.0, 30.0
"""A recorded range may be so much wider or narrower than the URDF's. Arms whose stops are printed or worn otherwise
have up to 36 degrees more and 24 less; half of what an end lacks is what the joint's zero is off."""
HANDLE_DEGREES = 15.0
"""The handle of a leader goes at least so far."""
_WHOLE_TURN = "wrist_roll"
"""lerobot does not record this joint's range: it gives it the whole turn, with zero where the arm was put at first."""
_NAMED = 5
"""So many other files are named at most."""
_FIELDS = {
    "id": (0, 253),
    "drive_mode": (0, 1),
    "homing_offset": (-2047, 2047),
    "range_min": (0, LAST_TICK),
    "range_max": (0, LAST_TICK),
}


def calibration_path(folder: str, name: str, leader: bool = False) -> Path:
    """Where lerobot keeps the calibration `name` of a follower, or of a `leader`; an empty folder is lerobot's own.

    Raises:
        DriverError: the folder is something else than a folder.
    """
    if folder:
        place = Path(os.path.expanduser(folder))
    else:
        from lerobot.robots.so_follower import SO101Follower
        from lerobot.teleoperators.so_leader import SO101Leader
        from lerobot.utils.constants import TELEOPERATORS

        robots = _lerobots_own()
        place = robots.parent / TELEOPERATORS / SO101Leader.name if leader else robots / SO101Follower.name
    if os.path.exists(place) and not os.path.isdir(place):
        raise DriverError(f"calibration_dir {place} is a file, expected the folder that holds {name}.json")
    return place / f"{name}.json"


def check_calibration(path: Path, robot: Embodiment, command: str, leader: bool = False) -> None:
    """Look at a calibration file.

    Args:
        command: what makes the file anew, for the messages.
        leader: it is of a leader arm, whose handle goes less far than a jaw.

    Raises:
        DriverError: it is not there or cannot be read, is not in lerobot's present form, or holds a range that its
            joint cannot have; one line says what was expected, what came and what to do.
    """
    again = f"make it anew with: {command}"
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DriverError(f"no calibration {path}{_others(path)}; make it with: {command}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DriverError(f"cannot read the calibration {path}: {reason}; {again}") from error
    wrong = _form(text, robot) or "; ".join(_ranges(json.loads(text), robot, leader))
    if wrong:
        raise DriverError(f"calibration {path}: {wrong}; {again}")


def check_servos(follower: Any, path: Path, command: str, write: bool) -> None:
    """Compare what the servos hold with lerobot's calibration, read from `path`.

    Args:
        follower: lerobot's follower, connected.
        command: see `check_calibration`.
        write: write the file's values to servos that hold others, as lerobot offers it. Without torque only: a servo
            with torque would move by the difference.

    Raises:
        DriverError: they differ and were not written; the message names the differences and other files.
    """
    if follower.is_calibrated:
        return
    bus, wanted = follower.bus, follower.calibration
    held = bus.read_calibration()
    if write:
        if any(registers("Torque_Enable", bus).values()):
            raise DriverError(
                f"the servos hold another calibration than {path} and have torque, with which nothing is written; "
                "support the arm, switch its power off and on again"
            )
        bus.disable_torque()  # they have none; this lets the servos keep what is written
        bus.write_calibration(wanted)
        if follower.is_calibrated:
            return
        raise DriverError(f"the servos did not keep the values of {path}; switch the arm's power off and on again")
    different = "; ".join(
        f"{name}: {_told(held[name])}, in the file {_told(wanted[name])}"
        for name in wanted
        if _values(held[name]) != _values(wanted[name])
    )
    raise DriverError(
        f"the servos hold another calibration than {path} ({different}){_others(path, held)}; is it another arm? if it "
        f"is not, write_calibration writes the file's values to the servos; or make it anew with: {command}"
    )


def _values(one: Any) -> tuple[int, int, int]:
    return one.homing_offset, one.range_min, one.range_max


def _told(one: Any) -> str:
    return f"offset {one.homing_offset}, range {one.range_min} to {one.range_max} ticks"


def _lerobots_own() -> Path:
    from lerobot.utils.constants import HF_LEROBOT_CALIBRATION, ROBOTS

    return Path(HF_LEROBOT_CALIBRATION) / ROBOTS


def _others(path: Path, held: dict[str, Any] | None = None) -> str:
    """Other files than `path`, in its folder and in lerobot's own, as a part of a message; the one that says what the
    servos hold, if one does. Empty where there are none."""
    places = sorted(path.parent.glob("*.json")), sorted(_lerobots_own().glob("so*/*.json"))
    found = [one for one in dict.fromkeys(places[0] + places[1]) if one != path]
    if held is not None:
        values = {name: _values(one) for name, one in held.items()}
        for other in found:
            if _values_of(other) == values:
                folder = "" if other.parent == path.parent else f" and calibration_dir to {other.parent}"
                return f"; they hold what {other} says: set calibration_id to {other.stem}{folder}"
    return f"; other calibrations: {', '.join(map(str, found[:_NAMED]))}" if found else ""


def _values_of(path: Path) -> dict[str, tuple[int, int, int]] | None:
    """What a file holds of each joint; None where it is none that can be read."""
    try:
        content = json.loads(path.read_text())
        return {
            name: (entry["homing_offset"], entry["range_min"], entry["range_max"]) for name, entry in content.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _form(text: str, robot: Embodiment) -> str:
    """What is wrong with the form of the file; empty when nothing is."""
    if not text.strip():
        return "the file is empty"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is no whole JSON ({error})"
    names = robot.joint_names
    if isinstance(content, dict) and "motor_names" in content:
        return "it has lerobot's old form of lists (motor_names, homing_offset, ...), expected one entry a joint"
    if not isinstance(content, dict) or set(content) != set(names):
        came = ", ".join(map(str, content)) or "none" if isinstance(content, dict) else json.dumps(content)[:60]
        return f"expected entries for {', '.join(names)}, got {came}"
    for number, name in enumerate(names, start=1):
        wrong = _entry(content[name], number)
        if wrong:
            return f"{name} {wrong}"
    return ""


def _entry(entry: Any, number: int) -> str:
    if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
        came = ", ".join(map(str, entry)) if isinstance(entry, dict) else json.dumps(entry)[:60]
        return f"must have {', '.join(_FIELDS)}, got {came}"
    for field, (low, high) in _FIELDS.items():
        value = entry[field]
        if type(value) is not int or not low <= value <= high:
            return f"has {field} {value!r}, expected a whole number from {low} to {high}"
    return f"has id {entry['id']}, expected {number}" if entry["id"] != number else ""


def _ranges(content: dict[str, dict[str, int]], robot: Embodiment, leader: bool) -> list[str]:
    """What is wrong with the ranges, one line a joint."""
    found = []
    for name, travel in zip(robot.joint_names, TRAVEL, strict=True):
        low, high = content[name]["range_min"], content[name]["range_max"]
        width, came = (high - low) * DEGREES_A_TICK, f"range_min {low}, range_max {high}"
        least, most = travel - LESS_DEGREES, travel + MORE_DEGREES
        if leader and name == "gripper":
            least = HANDLE_DEGREES
        if low == high:
            wrong = f"has equal ends ({came}): it was not moved while ranges were recorded"
        elif low > high:
            wrong = f"has exchanged ends ({came})"
        elif width < least:
            wrong = f"goes over {width:.0f} degrees ({came}), expected {least:.0f} at least: move it from stop to stop"
        elif width > most and name != _WHOLE_TURN:
            wrong = (
                f"goes over {width:.0f} degrees ({came}), expected {most:.0f} at most: put the arm in the middle of "
                "all its ranges first, or the encoder's step from 4095 to 0 lies inside the travel"
            )
        else:
            continue
        found.append(f"{name} {wrong}")
    return found
