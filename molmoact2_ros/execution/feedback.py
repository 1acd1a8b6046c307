"""What the encoders say: is it fresh, and does the arm do what it was told?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]


class Feedback:
    """The newest encoder reading, held against the clock and against the recent commands.

    Args:
        timeout_s: oldest reading that counts as fresh. max_future_s: how far its stamp may lie in the future.
        window: so many commands back are compared with a reading, which covers the lag of the servos.
    """

    def __init__(self, robot: Embodiment, timeout_s: float, max_future_s: float, window: int) -> None:
        self._robot = robot
        self._timeout_s, self._max_future_s = timeout_s, max_future_s
        self._arm_joints = np.array([j for j in range(robot.dof) if j not in robot.gripper_indices])
        self._commands = np.zeros((max(1, window), robot.dof))
        self._next = 0
        self.position: Array | None = None
        """The newest reading (dof,), rad, ROS order; None before the first."""
        self.stamp_ns = 0

    def take(self, names: Sequence[str], positions: Sequence[float], stamp_ns: int) -> None:
        """Take a reading; one that is not newer than the last changes nothing.

        Raises:
            ValueError: joints are missing, sizes differ or a value is not finite.
        """
        position = self._robot.reorder(list(names), np.asarray(positions, dtype=np.float64))
        if stamp_ns > self.stamp_ns:
            self.position, self.stamp_ns = position, stamp_ns

    def stale(self, now_ns: int) -> str | None:
        """Why there is no fresh reading; None when there is one."""
        if self.position is None:
            return "no joint state has come yet; is the driver running?"
        age = (now_ns - self.stamp_ns) * 1e-9
        if age > self._timeout_s:
            return f"joint_states silent for {age:.2f} s (limit {self._timeout_s:.2f} s); is the driver running?"
        if age < -self._max_future_s:
            return f"joint_states stamped {-age:.2f} s in the future; are the machines' clocks synchronised?"
        return None

    def clock_went_back(self, now_ns: int) -> None:
        """Forget stamps of a clock that was ahead: they would hide every reading that comes now."""
        self.stamp_ns = min(self.stamp_ns, now_ns)

    def begin(self, position: Array) -> None:
        """From now on `position` (dof,) is what the arm was told."""
        self._commands[:] = position

    def commanded(self, position: Array) -> None:
        """Remember a command (dof,)."""
        self._commands[self._next] = position
        self._next = (self._next + 1) % len(self._commands)

    def tracking_error(self) -> tuple[float, int]:
        """Distance, rad, of the worst arm joint from all its recent commands, and which joint it is.

        Grippers do not count: one that holds an object never reaches its command.
        """
        if self.position is None:
            return 0.0, 0
        low, high = self._commands.min(axis=0), self._commands.max(axis=0)
        errors = np.maximum(np.maximum(low - self.position, self.position - high), 0.0)[self._arm_joints]
        worst = int(np.argmax(errors))
        return float(errors[worst]), int(self._arm_joints[worst])
