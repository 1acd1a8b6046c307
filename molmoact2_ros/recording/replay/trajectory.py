"""An episode as joint positions at an even rate, in ROS order, out of a LeRobotDataset v3 or a bag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.export.source import Source, topics_of
from molmoact2_ros.recording.export.tracks import Track, commanded

Array = NDArray[np.float64]
LIMIT_MARGIN = 0.05
"""How far an arm joint may lie outside its limits, rad: such a target is held at the limit, see the executor."""


class ReplayError(ValueError):
    """Why an episode cannot be played; the message says what can be done."""


@dataclass(frozen=True)
class Trajectory:
    """Row i of `rows` (n, dof), rad or m, ROS order, is due i / rate_hz after the beginning.

    Attributes:
        source: where it is from, in words. notes: what was inferred, one line each.
    """

    rows: Array
    rate_hz: float
    source: str
    task: str = ""
    notes: tuple[str, ...] = ()

    @property
    def length_s(self) -> float:
        """From the first row to the last."""
        return (len(self.rows) - 1) / self.rate_hz

    def checked(self, robot: Embodiment, speed: float = 1.0) -> Trajectory:
        """Itself, if the robot can be told all of it at `speed` times its rate.

        Raises:
            ReplayError: it is empty, not finite, outside the limits, or leaps.
        """
        rows = self.rows
        if len(rows) < 2 or not np.isfinite(rows).all():
            raise ReplayError(f"{self.source}: expected two finite rows at least, got {len(rows)} rows")
        beyond = robot.beyond(rows, LIMIT_MARGIN)
        i, j = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
        if beyond[i, j] > 0.0:
            raise ReplayError(
                f"{self.source}: row {i} asks {rows[i, j]:.4g} {robot.unit(int(j))} of {robot.joint_names[j]}, whose "
                f"limits are {robot.limits.lower[j]:.3f} to {robot.limits.upper[j]:.3f}; is it of another robot, or in "
                "another joint frame (--frame)?"
            )
        steps = np.abs(np.diff(rows, axis=0)) * speed * self.rate_hz / robot.rate_hz
        over = steps - robot.max_step
        i, j = np.unravel_index(int(np.argmax(over)), over.shape)
        if over[i, j] > 0.0:
            raise ReplayError(
                f"{self.source}: {robot.joint_names[j]} leaps by {steps[i, j]:.3f} {robot.unit(int(j))} after row {i}, "
                f"at most {robot.max_step[j]:g} in a period are executed; play it slower (--speed)"
            )
        return self


def from_bag(path: Path, options: ExportOptions) -> Trajectory:
    """The commands, or what was measured, of the bag `path`.

    Raises:
        ExportError: the bag cannot be read, or has gaps.
        ReplayError: it has no such positions.
    """
    robot, by_header = options.embodiment, options.stamps == "header"
    names, track = JointNames(robot, options.joint_map), Track(robot.dof)
    with Source(path) as source:
        topics = topics_of(source, options)
        chosen = (topics.commands,) if options.action == "commanded" else topics.joints
        for topic, received_ns, data in source.messages(name for name in chosen if name):
            found = commanded(source.decoded(topic, data), robot, names, received_ns, by_header)
            if found is not None:
                track.add(*found)
        task = options.task or source.about.get("task", "")
    if len(track) < 2:
        raise ReplayError(f"{path}: no {options.action} positions of all joints; try the other one of --action")
    rate = options.rate
    first_ns, last_ns = track.span
    times = first_ns + np.round(np.arange(int((last_ns - first_ns) * 1e-9 * rate) + 1) * 1e9 / rate).astype(np.int64)
    rows, known = track.at(times, round(options.max_gap_s * 1e9))
    if not known.all():
        at_s = float(times[np.argmin(known)] - first_ns) * 1e-9
        raise ExportError(
            f"{path}: no {options.action} positions for more than {options.max_gap_s:g} s at {at_s:.2f} s"
        )
    return Trajectory(rows, rate, f"{path.name}, {options.action}", task)
