"""What is measured on a replay.

Velocity, acceleration and jerk are first, second and third differences of the set-points at the command rate, divided
by the powers of its period: what a servo loop that takes every set-point literally is asked for. The same differences
of the set-points at the rate of the rows leave out how a player gets from row to row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.execution.follower import follow
from molmoact2_ros.benchmarking.execution.players import Replay

Array = NDArray[np.float64]

SEAM_WINDOW_S = 0.25
"""So long after the first set-point of a new chunk counts as its seam: our shortest fade and a little more."""
LARGEST_LEAD_S, LARGEST_LAG_S = 0.2, 1.2
LAG_STEP_S = 0.0025
SLOW_RAD_S = 0.1
"""A chunk slower than this does not count as moving."""
ROUNDING = 1e-9
"""Share of a limit that a difference may exceed it by: rounding of positions, up to 3e-8 rad/s^3 at 250 Hz."""


@dataclass(frozen=True)
class Measures:
    """Figures of one replay; rad and s. Seams leave out grippers and the first chunk, which begins from rest.

    Attributes:
        stall_share: share of the time, from the first chunk on, in which the player has nothing to play and repeats its
            last set-point. stalls_covered: such ticks while a chunk that it has taken covers the present moment.
        refused: chunks that it refused.
        seams: how many. step, velocity, acceleration, jerk: largest within `SEAM_WINDOW_S` of a seam, any arm joint.
        row_jerk: the same of the set-points at the rate of the rows.
        jerk_anywhere: largest jerk of the whole replay.
        standing: share of the ticks covered by a chunk that moves in which the set-points move at less than a twentieth
            of its speed, whatever the player says of itself.
        lag_s: the shift in time with which the set-points fit best to the newest chunk that it has taken; positive is
            behind it. Only the motion that the stream's chunks share is shifted: each chunk's own opinion grows along
            its rows, so that whoever evens opinions out would seem to be behind. distance: the root mean square
            distance of the set-points from that chunk at the present moment, rad.
        arm_lag_s, arm_distance: the same of an arm that keeps its limits and is sent these set-points, see `follow`.
        violations: set-points outside the position, velocity, acceleration or jerk limits, grippers included.
    """

    stall_share: float
    stalls_covered: int
    refused: int
    seams: int
    step: float
    velocity: float
    acceleration: float
    jerk: float
    row_jerk: float
    jerk_anywhere: float
    standing: float
    lag_s: float
    distance: float
    arm_lag_s: float
    arm_distance: float
    violations: int

    @staticmethod
    def worst(parts: list[Measures]) -> Measures:
        """One line for several replays: sums of counts, means of shares, lags and distances, largest of the rest."""
        sums, means = (
            ("stalls_covered", "refused", "seams", "violations"),
            ("stall_share", "standing", "lag_s", "distance", "arm_lag_s", "arm_distance"),
        )
        out: dict[str, Any] = {}
        for f in fields(Measures):
            values = [getattr(part, f.name) for part in parts]
            out[f.name] = sum(values) if f.name in sums else float(np.mean(values)) if f.name in means else max(values)
        return Measures(**out)


def differences(positions: Array, rate_hz: float) -> tuple[Array, Array, Array]:
    """First to third differences of `positions` (n, dof) over the powers of the period, from a rest at the first."""
    padded = np.concatenate((np.repeat(positions[:1], 3, axis=0), positions))
    return tuple(np.diff(padded, n=n, axis=0)[-len(positions) :] * rate_hz**n for n in (1, 2, 3))  # type: ignore[return-value]


def violations(replay: Replay) -> int:
    """Number of ticks whose set-point is outside a limit of its joint; see `Measures`."""
    robot, points = replay.stream.robot, replay.setpoints
    limits = robot.limits
    velocity, acceleration, jerk = differences(points, replay.rate_hz)
    outside = (points < limits.lower - ROUNDING) | (points > limits.upper + ROUNDING)
    for values, limit in ((velocity, limits.velocity), (acceleration, limits.acceleration), (jerk, limits.jerk)):
        outside |= np.abs(values) > limit * (1.0 + ROUNDING)
    for tick in range(1, len(points)):
        # The mean velocity over a tick is between its ends' velocities, so it keeps to the wider of their bounds.
        bounds = [robot.velocity_bounds(np.clip(points[k], limits.lower, limits.upper)) for k in (tick - 1, tick)]
        low, high = np.minimum(bounds[0][0], bounds[1][0]), np.maximum(bounds[0][1], bounds[1][1])
        slack = ROUNDING * limits.velocity
        outside[tick] |= (velocity[tick] < low - slack) | (velocity[tick] > high + slack)
    return int(outside.any(axis=1).sum())


def measures_of(replay: Replay) -> Measures:
    """All figures of one replay."""
    robot = replay.stream.robot
    arm = [j for j in range(robot.dof) if j not in robot.gripper_indices]
    points = replay.setpoints[:, arm]
    steps = np.abs(np.diff(np.concatenate((points[:1], points)), axis=0)).max(axis=1)
    speeds, bends, jerks = (np.abs(d).max(axis=1) for d in differences(points, replay.rate_hz))
    multiple = round(replay.rate_hz / replay.stream.rate_hz)
    row_jerks = np.repeat(np.abs(differences(points[::multiple], replay.stream.rate_hz)[2]).max(axis=1), multiple)[
        : len(points)
    ]
    starts = np.flatnonzero(replay.began)[1:]
    at_seams = np.zeros(len(points), dtype=bool)
    for start in starts:
        at_seams[start : start + round(SEAM_WINDOW_S * replay.rate_hz) + 1] = True
    moving = replay.moving
    lag, distance, standing = _against_chunks(replay, points, arm)
    arm_at = follow(robot, replay.setpoints, replay.rate_hz, multiple)[:, arm]
    arm_lag, arm_distance, _ = _against_chunks(replay, arm_at, arm)
    return Measures(
        stall_share=float((replay.stalled & moving).sum() / max(1, moving.sum())),
        stalls_covered=int((replay.stalled & replay.covered).sum()),
        refused=replay.refused,
        seams=len(starts),
        step=_largest(steps, at_seams),
        velocity=_largest(speeds, at_seams),
        acceleration=_largest(bends, at_seams),
        jerk=_largest(jerks, at_seams),
        row_jerk=_largest(row_jerks, at_seams),
        jerk_anywhere=float(jerks.max()),
        standing=standing,
        lag_s=lag,
        distance=distance,
        arm_lag_s=arm_lag,
        arm_distance=arm_distance,
        violations=violations(replay),
    )


def _largest(values: Array, where: NDArray[np.bool_]) -> float:
    return float(values[where].max()) if where.any() else 0.0


def _against_chunks(replay: Replay, points: Array, arm: list[int]) -> tuple[float, float, float]:
    """Lag, distance and share of standing, see `Measures`; the first half second of motion is left out."""
    stream, robot = replay.stream, replay.stream.robot
    ticks = np.flatnonzero(replay.moving)[round(0.5 * replay.rate_hz) :]
    if not len(ticks):
        return 0.0, 0.0, 0.0
    frames, which = np.unique(replay.frames[ticks], return_inverse=True)
    ages = np.arange(0.0, robot.horizon / stream.rate_hz + LAG_STEP_S, LAG_STEP_S)
    chunks = np.stack([stream.sampled(int(frame), frame / stream.rate_hz + ages)[:, arm] for frame in frames])
    places = np.round((replay.times_s[ticks] - frames[which] / stream.rate_hz) / LAG_STEP_S).astype(int)
    given, asked = points[ticks], chunks[which, np.clip(places, 0, len(ages) - 1)]
    earliest, latest = -round(LARGEST_LEAD_S / LAG_STEP_S), round(LARGEST_LAG_S / LAG_STEP_S)
    row = round(1.0 / stream.rate_hz / LAG_STEP_S)
    moments = np.round(replay.times_s[ticks] / LAG_STEP_S).astype(int) + latest
    shared = stream.shared((np.arange(moments[-1] - earliest + row + 1) - latest) * LAG_STEP_S)[:, arm]
    # The first row is due one row after the frame: what the chunk asks for earlier is as much less far.
    early = np.clip(row - places, 0, row)
    start = asked - shared[moments + early]

    def error(offset: int) -> float:
        return float(np.mean((given - start - shared[moments - offset]) ** 2))

    lag = min(range(earliest, latest), key=error) * LAG_STEP_S
    # Speeds over one row: a player that holds each row stands within it without stalling.
    span = round(replay.rate_hz / stream.rate_hz)
    inside = replay.covered[ticks] & (ticks >= span)
    back = np.clip(places - row, 0, len(ages) - 1)
    chunk_moves = np.abs(asked - chunks[which, back]).max(axis=1)
    given_moves = np.abs(given - points[np.maximum(ticks - span, 0)]).max(axis=1)
    relevant = inside & (chunk_moves * stream.rate_hz > SLOW_RAD_S)
    standing = float((given_moves[relevant] < 0.05 * chunk_moves[relevant]).mean()) if relevant.any() else 0.0
    return lag, float(np.sqrt(error(0))), standing
