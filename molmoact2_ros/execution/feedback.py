"""What the encoders say, in the order in which it was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import Counters

Array = NDArray[np.float64]


class Feedback:
    """The newest encoder reading, held against the clock.

    Args:
        timeout_s: oldest reading that counts as fresh. max_future_s: how far its stamp may lie in the future.
        counters: where readings that come twice or out of order are counted.
    """

    def __init__(self, robot: Embodiment, timeout_s: float, max_future_s: float, counters: Counters) -> None:
        self._robot, self._counters = robot, counters
        self._timeout_s, self._max_future_s = timeout_s, max_future_s
        self._overtaken = 0
        self.position: Array | None = None
        """The newest reading (dof,), rad, ROS order; None before the first."""
        self.stamp_ns = 0

    def take(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int | None = None
    ) -> list[int]:
        """Take a reading; one that is not newer than the last changes nothing.

        Returns the arms whose reading has changed.

        Raises:
            ValueError: joints are missing, sizes differ, a value is not finite, or the stamp lies in the future.
        """
        position = self._robot.reorder(list(names), np.asarray(positions, dtype=np.float64))
        if now_ns is not None and stamp_ns - now_ns > self._max_future_s * 1e9:
            raise ValueError(
                f"it is stamped {(stamp_ns - now_ns) * 1e-9:.2f} s in the future; are the machines' clocks "
                "synchronised?"
            )
        if now_ns is not None and self.stamp_ns - now_ns > self._max_future_s * 1e9:
            self.stamp_ns = stamp_ns - 1  # the clock has gone back: what came before it would hide all that comes now
        if stamp_ns <= self.stamp_ns:
            self._overtaken += 1
            if stamp_ns == self.stamp_ns:
                self._counters.joint_states_repeated += 1
            else:
                self._counters.joint_states_out_of_order += 1
            return []
        self._overtaken = 0
        before, self.position, self.stamp_ns = self.position, position, stamp_ns
        changed = []
        for arm, joints in enumerate(self._robot.arms):
            if before is None or (before[joints] != position[joints]).any():
                changed.append(arm)
        return changed

    def stale(self, now_ns: int) -> str | None:
        """Why there is no fresh reading; None when there is one."""
        if self.position is None:
            return "no joint state has come yet; is the driver running?"
        age = (now_ns - self.stamp_ns) * 1e-9
        if age > self._timeout_s:
            limit = f"(limit {self._timeout_s:.2f} s)"
            if self._overtaken:
                return (
                    f"joint_states not newer than {age:.2f} s {limit}: the last {self._overtaken} came twice or out of "
                    "order; is there a second driver, or did its clock jump?"
                )
            return f"joint_states silent for {age:.2f} s {limit}; is the driver running?"
        if age < -self._max_future_s:
            return f"joint_states stamped {-age:.2f} s in the future; are the machines' clocks synchronised?"
        return None

    def clock_went_back(self, now_ns: int) -> None:
        """Forget stamps of a clock that was ahead: they would hide every reading that comes now."""
        self.stamp_ns = min(self.stamp_ns, now_ns)
