"""What Franka's control box allows a joint position motion to be, and what it does about a packet that is missing.

Sources: the documentation of libfranka (overview, "Under the hood" and "Errors due to noncompliant commanded values")
and its rate limiter. Velocity, acceleration and jerk are backward differences over a millisecond; each has its error.
For a missing packet the box goes on with the last acceleration; the 20th in a row stops the robot. Two figures are not
documented and chosen here: how far the first command may be from where the robot stands before that is an error of
its own (`START_RAD`; a discontinuity is noticed at a two-hundredth of it), and that velocity limits which depend on
the position are looked up at the commanded one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.franka_droid import ArmModel

Array = NDArray[np.float64]

STEP_S = 0.001
MISSED_IN_A_ROW = 20
START_RAD = 1e-3
ROUNDING = 1e-6
"""Relative; differences of doubles over a microsecond squared and cubed are this exact."""

START, POSITION, VELOCITY, ACCELERATION, JERK, MISSING = (
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "communication_constraints_violation",
)


class MotionRules:
    """Takes one motion's commands, or their absence, a millisecond at a time. Arrays are (7,), rad, s.

    Attributes:
        position, velocity, acceleration: desired by the last command, or by what stands in for a missing one.
        fastest, bent, jerked: largest share of the velocity limit, acceleration and jerk of all commands so far.
        missed, in_a_row, longest: missing packets: all, up to now in a row, and most in a row.
    """

    def __init__(self, arm: ArmModel, position: Array) -> None:
        self._arm = arm
        self.fastest = self.bent = self.jerked = 0.0
        self.commands = self.missed = self.in_a_row = self.longest = 0
        self.start(position)

    def start(self, position: Array) -> None:
        """A motion begins at rest at `position`."""
        self.position = np.array(position, dtype=np.float64)
        self.velocity, self.acceleration = np.zeros_like(self.position), np.zeros_like(self.position)
        self.in_a_row, self._begun = 0, False

    def take(self, wanted: Array) -> str:
        """One command. Returns the name of the error that it is, or an empty string."""
        self.commands += 1
        self.in_a_row = 0
        velocity = (wanted - self.position) / STEP_S
        acceleration = (velocity - self.velocity) / STEP_S
        jerk = (acceleration - self.acceleration) / STEP_S
        error = self._error(wanted, velocity, acceleration, jerk)
        self._begun = True
        self.position, self.velocity, self.acceleration = wanted, velocity, acceleration
        if not error:
            self.fastest = max(self.fastest, float(np.max(np.abs(velocity) / self._arm.velocity)))
            self.bent = max(self.bent, float(np.max(np.abs(acceleration))))
            self.jerked = max(self.jerked, float(np.max(np.abs(jerk))))
        return error

    def miss(self) -> str:
        """No command has come for this millisecond. Returns the name of the error that it is, or an empty string."""
        self.missed += 1
        self.in_a_row += 1
        self.longest = max(self.longest, self.in_a_row)
        self.velocity = self.velocity + self.acceleration * STEP_S
        self.position = self.position + self.velocity * STEP_S
        return MISSING if self.in_a_row >= MISSED_IN_A_ROW else ""

    def brake(self) -> None:
        """One millisecond of the box's own stop, after a motion was aborted."""
        change = self._arm.acceleration * STEP_S
        self.acceleration = np.zeros_like(self.position)
        self.velocity = np.sign(self.velocity) * np.maximum(np.abs(self.velocity) - change, 0.0)
        self.position = self.position + self.velocity * STEP_S

    @property
    def rests(self) -> bool:
        """True when nothing moves."""
        return not self.velocity.any()

    def _error(self, wanted: Array, velocity: Array, acceleration: Array, jerk: Array) -> str:
        arm, room = self._arm, 1.0 + ROUNDING
        if not np.all(np.isfinite(wanted)):
            return POSITION
        if not self._begun and np.any(np.abs(wanted - self.position) > START_RAD):
            return START
        if np.any(wanted < arm.lower) or np.any(wanted > arm.upper):
            return POSITION
        low, high = velocity_limits(arm, wanted)
        if np.any(velocity > high * room + 1e-9) or np.any(velocity < low * room - 1e-9):
            return VELOCITY
        if np.any(np.abs(acceleration) > arm.acceleration * room):
            return ACCELERATION
        return JERK if np.any(np.abs(jerk) > arm.jerk * room) else ""


def velocity_limits(arm: ArmModel, position: Array) -> tuple[Array, Array]:
    """Lowest and highest velocity (7,) at `position` (7,): slower towards the end of a joint, as the FR3 has it."""
    if arm.offset is None or arm.deceleration is None:
        return -arm.velocity, arm.velocity
    low, high = (
        np.clip(np.sqrt(2.0 * arm.deceleration * np.maximum(room, 0.0)) - arm.offset, 0.0, arm.velocity)
        for room in (position - arm.lower, arm.upper - position)
    )
    return -low, high
