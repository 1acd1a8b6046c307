"""What a person drives the robot with, to this package: fresh set-points in the robot's joints."""

from __future__ import annotations

from typing import Protocol

from molmoact2_ros.drivers.driver import Array, Reading


class Teleoperator(Protocol):
    """A leader. All methods are called from one thread; errors are those of `drivers.driver`."""

    def connect(self) -> None:
        """Open it, without torque where it has motors.

        Raises:
            DriverError: it cannot be used; the message says what to do.
        """

    def lead(self, arm: Array | None, drives: bool) -> Reading:
        """Where it wants the arm to be: joints (dof,), rad or m, ROS order, read after this call began.

        Args:
            arm: where the arm is (dof,); None while that is not known.
            drives: whether the arm follows it now.

        Raises:
            StaleError: there is no reading that can be proven fresh.
        """

    def follow(self, positions: Array) -> None:
        """With motors: hold, and be at `positions` (dof,). Without: do nothing. Raises StaleError as `lead` does."""

    def release(self) -> None:
        """Let the person move it. Raises StaleError as `lead` does."""

    def disconnect(self) -> None:
        """Drop the connection, to connect anew. Safe when nothing answers."""

    def close(self) -> None:
        """Let go of it for good, without torque.

        Raises:
            DriverError: it keeps torque, or may.
        """
