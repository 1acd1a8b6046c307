"""Joint positions as a function of time, from readings or commands that came as they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.joint_names import JointNames

Array = NDArray[np.float64]
Times = NDArray[np.int64]


class Track:
    """Positions (dof,), rad or m, ROS order, and when they hold."""

    def __init__(self, dof: int) -> None:
        self._dof = dof
        self._times: list[int] = []
        self._positions: list[Array] = []

    def add(self, time_ns: int, position: Array) -> None:
        """Take a position; of one time the last one counts."""
        self._times.append(time_ns)
        self._positions.append(position)

    def __len__(self) -> int:
        return len(self._times)

    @property
    def span(self) -> tuple[int, int]:
        """First and last time, ns, of a track that has any."""
        return min(self._times), max(self._times)

    def at(self, times: Times, max_gap_ns: int) -> tuple[Array, NDArray[np.bool_]]:
        """Positions (n, dof) at `times` (n,), between those before and after, and which of them are known.

        Not known is what lies before the first or after the last position, or between two that are further apart than
        `max_gap_ns`.
        """
        if not self._times:
            return np.zeros((len(times), self._dof)), np.zeros(len(times), bool)
        every = np.array(self._times, np.int64)
        order = np.argsort(every, kind="stable")
        every, positions = every[order], np.array(self._positions)[order]
        last = np.append(np.diff(every) > 0, True)
        every, positions = every[last], positions[last]
        after = np.searchsorted(every, times, side="left").clip(0, len(every) - 1)
        before = np.where(every[after] == times, after, np.maximum(after - 1, 0))
        known = (every[before] <= times) & (times <= every[after]) & (every[after] - every[before] <= max_gap_ns)
        width = np.maximum(every[after] - every[before], 1)
        share = np.clip((times - every[before]) / width, 0.0, 1.0)[:, None]
        return (1.0 - share) * positions[before] + share * positions[after], known


def commanded(
    message: Any, robot: Embodiment, names: JointNames, received_ns: int, by_header: bool
) -> tuple[int, Array] | None:
    """When the position in a command holds, and the position (dof,); None where it is not of all joints, or not finite.

    `message` is a JointState, a JointTrajectory (its first point counts) or a Float64MultiArray in ROS joint order.
    """
    time_ns = received_ns
    if hasattr(message, "header") and by_header:
        stamp = int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)
        time_ns = stamp or received_ns
    found = list(robot.joint_names)
    if hasattr(message, "points"):
        if not message.points:
            return None
        point = message.points[0]
        time_ns += int(point.time_from_start.sec) * 10**9 + int(point.time_from_start.nanosec)
        found, values = names.ours(message.joint_names), point.positions
    elif hasattr(message, "position"):
        found, values = names.ours(message.name), message.position
    else:
        values = message.data
    try:
        return time_ns, robot.reorder(found, np.asarray(values, np.float64))
    except ValueError:
        return None
