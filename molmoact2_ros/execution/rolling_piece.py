"""Short pieces of trajectory for a controller that throws its old trajectory away when a new one comes.

The JointTrajectoryController of Jazzy does that, does not splice, refuses a trajectory that is already over or ends in
motion, and interpolates from where it is when the first point lies ahead. So every piece begins with the commands of
the last moments, which the controller is executing at that time, and ends with the stop from the newest command: a
piece takes over in the middle of its predecessor without a seam, and when no more pieces come, the arm comes to rest
within its limits. A command is due one period and `lead_s` after its tick: a piece that is under way for no longer than
that comes before its predecessor has begun to stop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.motion import Motion, Stop

Array = NDArray[np.float64]

TAIL = 8
"""Points of the stop at the end."""


class RollingPiece:
    """The present piece for the joints `joints` (n,) of the robot.

    Attributes:
        positions, velocities, accelerations: (points, n), filled anew by `update`.
        times_ns: (points,) after `start_ns`, strictly increasing from 0.
        start_ns: when the first point is due.
    """

    def __init__(self, limits: JointLimits, joints: NDArray[np.int_], period_s: float, lead_s: float) -> None:
        self._joints = joints
        self._acceleration, self._jerk = limits.acceleration[joints], limits.jerk[joints]
        self._period_ns, self._lead_ns = round(period_s * 1e9), round(lead_s * 1e9)
        # The controller is somewhere between the first and the last of these when the piece comes.
        self.history = int(np.ceil(lead_s / period_s - 1e-9)) + 2
        count = self.history + TAIL
        self.positions, self.velocities, self.accelerations = np.zeros((3, count, len(joints)))
        self.times_ns = np.arange(count, dtype=np.int64) * self._period_ns
        self.start_ns = 0
        self._last_ns: int | None = None

    def update(self, motion: Motion, now_ns: int) -> None:
        """Append what was commanded for `now_ns`; after a gap of more than one tick the arm has stood there before."""
        joints, last = self._joints, self.history - 1
        begun = self._last_ns is None or abs(now_ns - self._last_ns - self._period_ns) > self._period_ns // 2
        state = Motion(motion.position[joints], motion.velocity[joints], motion.acceleration[joints])
        for rows, values in (
            (self.positions, state.position),
            (self.velocities, state.velocity),
            (self.accelerations, state.acceleration),
        ):
            if begun:
                rows[: last + 1] = values
            else:
                rows[:last] = rows[1 : last + 1]
                rows[last] = values
        if begun:
            self._step_in()
        self._last_ns = now_ns
        stop = Stop.of(state, self._acceleration, self._jerk)
        # At rest there is nothing to stop, but points of one time are refused.
        duration_s = max(stop.duration, 1e-9 * self._period_ns) * (1.0 + 1e-9)
        elapsed = duration_s * np.arange(1, TAIL + 1)[:, None] / TAIL
        tail = stop.at(np.asarray(elapsed, dtype=np.float64))
        self.positions[last + 1 :] = tail.position
        self.velocities[last + 1 :] = tail.velocity
        self.accelerations[last + 1 :] = tail.acceleration
        self.times_ns[last + 1 :] = last * self._period_ns + np.ceil(elapsed[:, 0] * 1e9).astype(np.int64)
        self.start_ns = now_ns + self._lead_ns - (last - 1) * self._period_ns

    def _step_in(self) -> None:
        """Nothing was commanded before the first command: the points before it rest at it."""
        last = self.history - 1
        self.velocities[:last] = 0.0
        self.accelerations[:last] = 0.0
