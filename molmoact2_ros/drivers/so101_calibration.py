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

import numpy as np

from molmoact2_ros.drivers.driver import DriverError
from molmoact2_ros.embodiments import Embodiment

LAST_TICK = 4095
DEGREES_A_TICK = 360.0 / LAST_TICK
"""As lerobot has it."""
MORE_DEGREES, LESS_DEGREES = 45.0, 30.0
"""A recorded range may be so much wider or narrower than the URDF's. Arms whose stops are printed or worn otherwise
have up to 36 degrees more and 24 less; half of what an end lacks is what the joint's zero is off."""
_WHOLE_TURN = "wrist_roll"
"""lerobot does not record this joint's range: it gives it the whole turn, with zero where the arm was put at first."""
_FIELDS = {
    "id": (0, 253),
    "drive_mode": (0, 1),
    "homing_offset": (-2047, 2047),
    "range_min": (0, LAST_TICK),
    "range_max": (0, LAST_TICK),
}


def calibration_path(folder: str, name: str) -> Path:
    """Where lerobot keeps the calibration `name`; an empty folder is lerobot's own.

    Raises:
        DriverError: the folder is something else than a folder.
    """
    if folder:
        place = Path(os.path.expanduser(folder))
    else:
        from lerobot.robots.so_follower import SO101Follower
        from lerobot.utils.constants import HF_LEROBOT_CALIBRATION, ROBOTS

        place = Path(HF_LEROBOT_CALIBRATION) / ROBOTS / SO101Follower.name
    if os.path.exists(place) and not os.path.isdir(place):
        raise DriverError(f"calibration_dir {place} is a file, expected the folder that holds {name}.json")
    return place / f"{name}.json"


def check_calibration(path: Path, robot: Embodiment, command: str) -> None:
    """Look at a calibration file.

    Args:
        command: what makes the file anew, for the messages.

    Raises:
        DriverError: it is not there or cannot be read, is not in lerobot's present form, or holds a range that its
            joint cannot have; one line says what was expected, what came and what to do.
    """
    again = f"make it anew with: {command}"
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DriverError(f"no calibration {path}; make it with: {command}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DriverError(f"cannot read the calibration {path}: {reason}; {again}") from error
    wrong = _form(text, robot) or "; ".join(_ranges(json.loads(text), robot))
    if wrong:
        raise DriverError(f"calibration {path}: {wrong}; {again}")


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


def _ranges(content: dict[str, dict[str, int]], robot: Embodiment) -> list[str]:
    """What is wrong with the ranges, one line a joint."""
    travels = np.degrees(robot.limits.upper - robot.limits.lower)
    found = []
    for name, travel in zip(robot.joint_names, travels, strict=True):
        low, high = content[name]["range_min"], content[name]["range_max"]
        width, came = (high - low) * DEGREES_A_TICK, f"range_min {low}, range_max {high}"
        least, most = travel - LESS_DEGREES, travel + MORE_DEGREES
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
