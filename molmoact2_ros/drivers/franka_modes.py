"""What a Franka's robot mode means to the executor, whichever way the robot is driven."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REFLEX, USER_STOPPED = 4, 5
NAMES = ("other", "idle", "move", "guiding", "reflex", "user stopped", "automatic error recovery")
"""franka_msgs/FrankaRobotState's numbers, which are libfranka's."""


@dataclass(frozen=True)
class Meaning:
    """`fault`: why the executor must be in FAULT, or an empty string. `stopped`: whether the e-stop is pressed."""

    fault: str
    stopped: bool
    name: str


def meaning(mode: int, errors: Iterable[str] = ()) -> Meaning:
    """Return what `mode` means; `errors` are the names of the robot's present errors.

    A reflex is a fault until it has been recovered from; the user stop (and the enabling switch) is an e-stop. A robot
    that is guided by hand, or in a mode that is not known, must not be commanded either.
    """
    name = NAMES[mode] if 0 <= mode < len(NAMES) else f"unknown ({mode})"
    listed = ", ".join(errors)
    if mode == REFLEX:
        return Meaning(f"reflex{': ' + listed if listed else ''}; call driver/recover", False, name)
    if mode == USER_STOPPED:
        return Meaning("", True, name)
    if name in ("guiding", "other") or name.startswith("unknown"):
        return Meaning(f"the robot is in mode {name}; it takes no commands", False, name)
    return Meaning("", False, name)


def silent(before: Meaning, topic: str, timeout_s: float) -> Meaning:
    """Return what it means that the mode, which was `before`, is not told any more. A pressed stop stays pressed."""
    return Meaning(f"{topic} silent for {timeout_s:g} s; is franka_ros2 running?", before.stopped, "unknown (silent)")
