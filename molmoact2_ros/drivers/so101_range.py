"""What an SO-100/101's own calibration lets its joints do, which may be less than the robot's limits.

Beyond the ends of the range that was recorded are the joint's stops: a servo that is sent there pushes until it
overheats. So goals end where the range does, and it is told where they were to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molmoact2_ros.drivers.driver import Array
from molmoact2_ros.drivers.so101_calibration import DEGREES_A_TICK

UNTOLD_DEGREES = 0.3
"""Ends are whole steps of the encoder; a goal that is this much beyond is at the end."""


class OwnRange:
    """The ends of each joint, degrees about mid-range, in the order of `joints`.

    Args:
        calibration: lerobot's, by joint.
        joints: all of them; the last is the gripper, whose 0 and 100 are its recorded ends and which lerobot keeps.

    Attributes:
        held: how many commands had a joint's goal at an end instead of beyond.
    """

    def __init__(self, calibration: Mapping[str, Any], joints: Sequence[str]) -> None:
        self._joints = joints
        ranges = np.array([calibration[name].range_max - calibration[name].range_min for name in joints], np.float64)
        self._reach: Array = ranges / 2.0 * DEGREES_A_TICK
        self._reach[-1] = np.inf
        self._untold = ""
        self.held = 0

    def keep(self, goals: Array) -> Array:
        """The goals (dof,), none of them beyond an end; degrees, the gripper 0..100."""
        return np.clip(goals, -self._reach, self._reach)

    def note(self, goals: Array) -> None:
        """Take note of goals that are about to be kept inside."""
        beyond = np.abs(goals) - self._reach
        j = int(np.argmax(beyond))
        if beyond[j] > UNTOLD_DEGREES:
            self.held += 1
            self._untold = (
                f"{self._joints[j]} was sent to {goals[j]:.1f} degrees and is held at "
                f"{np.sign(goals[j]) * self._reach[j]:.1f}, where its calibrated range ends; if it can go further, "
                "calibrate it anew from stop to stop"
            )

    def told(self) -> str:
        """What was held since this was asked last, of the newest command; empty when nothing was."""
        told, self._untold = self._untold, ""
        return told
