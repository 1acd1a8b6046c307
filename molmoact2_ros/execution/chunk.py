"""Checks of an incoming action chunk. What cannot be executed safely is refused with one sentence, never repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

MAX_HORIZONS = 10
"""A chunk may be so many times longer than the robot's horizon; more is taken for a broken message."""


@dataclass(frozen=True)
class Chunk:
    """Joint targets as a function of absolute time: row i of `rows` (h, dof), rad, is due at origin + (i + 1) / rate.

    Attributes:
        stamp_ns: capture time of the oldest observation that the chunk was predicted from.
        delay_ns: how much later than its observation it begins; above 0 for an arm that has waited for it at rest.
    """

    stamp_ns: int
    rate_hz: float
    rows: Array
    delay_ns: int = 0

    @property
    def origin_ns(self) -> int:
        """The moment that its rows count from."""
        return self.stamp_ns + self.delay_ns

    @property
    def end_ns(self) -> int:
        """When the last row is due."""
        return self.origin_ns + round(len(self.rows) * 1e9 / self.rate_hz)

    def begun_at(self, now_ns: int) -> Chunk:
        """The same rows in the same order, from the first one on: for an arm that rested where it was observed."""
        return replace(self, delay_ns=max(0, now_ns - self.stamp_ns))

    def late_rows(self, now_ns: int) -> int:
        """Number of rows whose time has passed; they are never executed."""
        return int(np.clip((now_ns - self.origin_ns) * 1e-9 * self.rate_hz + 1e-6, 0, len(self.rows)))


@dataclass(frozen=True)
class Refusal:
    """Why a chunk is not executed. `kind` stays the same while the cause does; `reason` carries the figures."""

    kind: str
    reason: str


@dataclass(frozen=True)
class ChunkMessage:
    """A chunk as it came in, unchecked: `positions` one sequence a row, `times_s` the rows' times after the stamp."""

    stamp_ns: int
    joint_names: Sequence[str]
    positions: Sequence[Sequence[float]]
    times_s: Sequence[float]


def most_rows(robot: Embodiment) -> int:
    """How many rows a chunk may have."""
    return MAX_HORIZONS * robot.horizon


def chunk_from_message(robot: Embodiment, message: ChunkMessage, position_margin: float) -> Chunk | Refusal:
    """Check everything about a chunk that does not depend on the robot's present state, and put it in ROS joint order.

    `position_margin`: see `Embodiment.beyond`; targets outside the limits by less are held at the limit.
    """
    names = list(message.joint_names)
    if sorted(names) != sorted(robot.joint_names):
        return Refusal("joints", f"action chunk names joints {names}, expected {list(robot.joint_names)} in any order")
    count = len(message.positions)
    if not 1 <= count <= most_rows(robot):
        return Refusal("rows", f"action chunk has {count} rows, expected 1 to {most_rows(robot)}")
    for i, row in enumerate(message.positions):
        if len(row) != robot.dof:
            return Refusal("size", f"row {i} of the action chunk has {len(row)} positions, expected {robot.dof}")
    order = [names.index(name) for name in robot.joint_names]
    rows = np.asarray(message.positions, dtype=np.float64)[:, order]
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        i, j = bad[0]
        return Refusal("finite", f"row {i} of the action chunk has {rows[i, j]} for {robot.joint_names[j]}")
    expected = (np.arange(count) + 1) / robot.rate_hz
    if len(message.times_s) != count or not np.allclose(message.times_s, expected, rtol=0.0, atol=1e-3):
        got = f"{message.times_s[0]:.4f} s to {message.times_s[-1]:.4f} s" if len(message.times_s) else "none"
        return Refusal(
            "times",
            f"rows of the action chunk are timed {got}, expected row i at (i + 1) / {robot.rate_hz:g} s, "
            f"{expected[0]:.4f} s to {expected[-1]:.4f} s; do the policy and the executor serve the same robot?",
        )
    beyond = robot.beyond(rows, position_margin)
    i, j = _worst(beyond)
    if beyond[i, j] > 0.0:
        return Refusal(
            "position",
            f"row {i} of the action chunk asks {rows[i, j]:.4g} {robot.unit(j)} of {robot.joint_names[j]}, its limits "
            f"are {robot.limits.lower[j]:.3f} to {robot.limits.upper[j]:.3f}, and it is {beyond[i, j]:.3g} beyond what "
            "is held at them",
        )
    steps = np.abs(np.diff(rows, axis=0))
    over = steps - robot.max_step
    if over.size and over.max() > 0.0:
        i, j = _worst(over)
        return Refusal(
            "step",
            f"the action chunk jumps by {steps[i, j]:.3f} {robot.unit(j)} at {robot.joint_names[j]} between rows {i} "
            f"and {i + 1}, more than {robot.max_step[j]:g}",
        )
    return Chunk(message.stamp_ns, robot.rate_hz, rows)


def _worst(values: Array) -> tuple[int, int]:
    """Row and column of the largest value."""
    i, j = np.unravel_index(int(np.argmax(values)), values.shape)
    return int(i), int(j)


def check_time(chunk: Chunk, now_ns: int, max_future_s: float) -> Refusal | None:
    """Refuse a chunk from the future, and one of which no row is left."""
    age = (now_ns - chunk.stamp_ns) * 1e-9
    if age < -max_future_s:
        return Refusal(
            "future", f"the action chunk is stamped {-age:.3f} s in the future; are the machines' clocks synchronised?"
        )
    if now_ns >= chunk.end_ns:
        horizon = len(chunk.rows) / chunk.rate_hz
        return Refusal("late", f"the action chunk is {age:.3f} s old, no row of its {horizon:.3f} s horizon is left")
    return None


def check_start(robot: Embodiment, chunk: Chunk, now_ns: int, measured: Array) -> Refusal | None:
    """Refuse a chunk whose first row still to be executed is implausibly far from the `measured` position (dof,)."""
    first = chunk.rows[min(chunk.late_rows(now_ns), len(chunk.rows) - 1)]
    distance = np.abs(first - measured)
    over = distance - robot.max_first_step
    j = int(np.argmax(over))
    if over[j] > 0.0:
        return Refusal(
            "first step",
            f"the action chunk starts {distance[j]:.3f} {robot.unit(j)} from the measured {robot.joint_names[j]} "
            f"({first[j]:.3f} against {measured[j]:.3f}), more than {robot.max_first_step[j]:g}",
        )
    return None
