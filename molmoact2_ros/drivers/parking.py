"""The last slow move of an arm before its driver lets go: to a pose from which it does not fall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

PEAK = 1.875
"""Largest pace of the smooth step that the path follows, over its mean."""
LEAST_S = 0.5


@dataclass(frozen=True)
class ParkPath:
    """From `start` to `pose`, both (dof,), in `duration_s`: at rest at both ends, grippers stay.

    The path takes longer the further it is: no joint exceeds its share of its velocity limit.
    """

    start: Array
    pose: Array
    duration_s: float

    @classmethod
    def of(cls, robot: Embodiment, start: Array, pose: Array, speed: float) -> ParkPath:
        """The path at a share `speed` of the velocity limits."""
        end = np.array(pose, dtype=np.float64)
        grippers = list(robot.gripper_indices)
        end[grippers] = start[grippers]
        seconds = PEAK * np.abs(end - start) / (speed * robot.limits.velocity)
        return cls(np.array(start), end, max(LEAST_S, float(seconds.max())))

    def at(self, elapsed_s: float) -> Array:
        """The target (dof,) after `elapsed_s`."""
        x = min(max(elapsed_s / self.duration_s, 0.0), 1.0)
        return self.start + x**3 * (10.0 + x * (-15.0 + 6.0 * x)) * (self.pose - self.start)


def checked_pose(robot: Embodiment, pose: list[float]) -> Array | None:
    """The parking pose of a parameter, or None where none is set ([0.0]).

    Raises:
        ValueError: it has another number of joints, or lies outside the limits.
    """
    if len(pose) <= 1:
        return None
    if len(pose) != robot.dof:
        raise ValueError(f"park_pose must have {robot.dof} positions ({', '.join(robot.joint_names)}), got {len(pose)}")
    values = np.array(pose, dtype=np.float64)
    beyond = robot.beyond(values, 0.0)
    j = int(np.argmax(beyond))
    if not np.isfinite(values).all() or beyond[j] > 0.0:
        limits = robot.limits
        raise ValueError(
            f"park_pose has {values[j]:g} for {robot.joint_names[j]}, its limits are {limits.lower[j]:.3f} to "
            f"{limits.upper[j]:.3f}"
        )
    return values
