"""Chunk streams to replay: what a policy answered, or would answer, to the image of every moment.

A stream holds a chunk for each frame, captured at the rate of the rows. A player asks when its own rules say so and
gets the chunk of the newest frame after the delay of the link, so that every player hears the same policy behind the
same link. The policy does not see what a player makes of its chunks: this is a replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, embodiment

Array = NDArray[np.float64]

RECORDED = Path("benchmarks/data/so101_chunks.npz")
"""Chunks of the cell's checkpoint on the simulated SO-101, made by `molmoact2 bench execution --record`; in the folder
where pages are written too."""
RESOLUTION = 1e-4
"""Step of the recorded rows, rad: a fifteenth of the servo's encoder step."""

ROW_NOISE_RAD = 0.0015
"""Standard deviation of a synthetic row about its chunk's curve; the recorded stream has 1 to 2 mrad."""


@dataclass(frozen=True)
class Stream:
    """One run of a policy.

    Attributes:
        rows: (n, h, dof), rad (m); frame j is captured at j / rate, and row i of its chunk is due (i + 1) / rate later.
    """

    name: str
    robot: Embodiment
    rows: Array

    @property
    def rate_hz(self) -> float:
        """Rate of the rows and of the frames."""
        return self.robot.rate_hz

    @property
    def duration_s(self) -> float:
        """Time of the last frame."""
        return (len(self.rows) - 1) / self.rate_hz

    def sampled(self, frame: int, times_s: Array) -> Array:
        """The chunk of `frame` at `times_s` (n,), straight from row to row, at rest before and after; (n, dof)."""
        due = (frame + np.arange(self.rows.shape[1]) + 1) / self.rate_hz
        return _straight(times_s, due, self.rows[frame])

    def shared(self, times_s: Array) -> Array:
        """The motion that the chunks agree on at `times_s` (n,): the mean of all that have a row due then; (n, dof)."""
        frames, horizon, dof = self.rows.shape
        total, count = np.zeros((frames + horizon, dof)), np.zeros((frames + horizon, 1))
        for row in range(horizon):
            total[row + 1 : row + 1 + frames] += self.rows[:, row]
            count[row + 1 : row + 1 + frames] += 1.0
        due = np.arange(1, frames + horizon) / self.rate_hz
        means = total[1:] / count[1:]
        return _straight(times_s, due, means)


def _straight(times_s: Array, due: Array, rows: Array) -> Array:
    """Straight from row to row (h, dof), due (h,), at rest before and after; (n, dof) at `times_s` (n,)."""
    return np.stack([np.interp(times_s, due, joint) for joint in rows.T], axis=1)


@dataclass(frozen=True)
class Link:
    """What lies between an image and the arrival of its chunk.

    Attributes:
        delay_s: mean time from asking to arrival. jitter_s: the delay is uniform within +- this.
        loss: share of answers that never arrive. workers: answers that may be under way at once; more than one lets a
            later chunk arrive before an earlier one.
    """

    name: str
    delay_s: float
    jitter_s: float = 0.002
    loss: float = 0.0
    workers: int = 1

    def delays(self, count: int, seed: int) -> tuple[Array, NDArray[np.bool_]]:
        """Delay (count,) s of each answer, and whether it is lost (count,)."""
        rng = np.random.default_rng([seed, 77])
        delays = self.delay_s + rng.uniform(-self.jitter_s, self.jitter_s, count)
        return np.maximum(delays, 0.0), rng.random(count) < self.loss


DELAYS = (
    Link("0 ms", 0.0, jitter_s=0.0),
    Link("100 ms", 0.1),
    Link("200 ms", 0.2),
    Link("400 ms", 0.4),
    Link("800 ms", 0.8),
)
TROUBLES = (
    Link("200 +- 150 ms", 0.2, jitter_s=0.15),
    Link("200 ms, 10 % lost", 0.2, loss=0.1),
    Link("250 +- 200 ms, reordered", 0.25, jitter_s=0.2, workers=3),
)
LINKS = (*DELAYS, *TROUBLES)


def recorded(path: Path = RECORDED) -> list[Stream]:
    """The streams of the recording, one an episode.

    Raises:
        FileNotFoundError: there is no recording.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no recorded chunks; make them with `molmoact2 bench execution --record`")
    with np.load(path) as data:
        robot = embodiment(str(data["robot"]))
        rows = data["rows"].astype(np.float64) * RESOLUTION
        starts = [int(start) for start in data["starts"]]
    ends = [*starts[1:], len(rows)]
    return [Stream(f"recorded {i + 1}", robot, rows[a:b]) for i, (a, b) in enumerate(zip(starts, ends, strict=True))]


def save(path: Path, robot: Embodiment, episodes: Sequence[Array]) -> None:
    """Write the chunks of `episodes`, each (n, h, dof) rad, as steps of `RESOLUTION` in 16 bits."""
    starts = np.cumsum([0, *(len(rows) for rows in episodes[:-1])])
    steps = np.round(np.concatenate(list(episodes)) / RESOLUTION)
    if np.abs(steps).max() > np.iinfo(np.int16).max:
        raise ValueError(f"a row is beyond {np.iinfo(np.int16).max * RESOLUTION:.2f} rad, which 16 bits do not hold")
    np.savez_compressed(path, robot=np.array(robot.name), rows=steps.astype(np.int16), starts=starts)


def synthetic(robot: Embodiment, kind: str, seconds: float, seed: int, opinion: float = 1.0) -> Stream:
    """A policy that draws slow curves with every joint and is of another opinion at every call.

    `steady`: chunks differ by some milliradians, growing to 10 mrad along the chunk. `undecided`: to 50 mrad, and
    every two seconds a new aim, as when a policy goes for another object. The curves are as wide as the workspace
    lets them be, up to 0.2 rad about the rest pose. `opinion` scales the differences; the curves, the aims and the
    noise of the rows stay the same.
    """
    for reach in (0.2, 0.17, 0.14, 0.11, 0.08, 0.05):
        rows = _curves(robot, kind, seconds, seed, reach, opinion)
        if _inside_workspaces(robot, rows):
            break
    return Stream(kind, robot, rows)


def _inside_workspaces(robot: Embodiment, rows: Array) -> bool:
    """Tell whether every row keeps every arm's tip in its box, with two millimetres to spare."""
    for (chain, joints), box in zip(robot.chains, robot.workspaces, strict=True):
        tips = chain.tip(rows.reshape(-1, robot.dof)[:, list(joints)])[..., :3, 3]
        if (tips < box.lower + 0.002).any() or (tips > box.upper - 0.002).any():
            return False
    return True


def _curves(robot: Embodiment, kind: str, seconds: float, seed: int, widest: float, opinion: float) -> Array:
    """Rows (n, h, dof) of a synthetic stream whose joints swing by up to `widest` rad."""
    spread = opinion * {"steady": 0.01, "undecided": 0.05}[kind]
    rng = np.random.default_rng([seed, robot.dof, len(kind)])
    rate, horizon, dof = robot.rate_hz, robot.horizon, robot.dof
    frames = round(seconds * rate) + 1
    arm = np.array([j for j in range(dof) if j not in robot.gripper_indices])
    room = np.minimum(robot.rest_position - robot.limits.lower, robot.limits.upper - robot.rest_position)
    times = (np.arange(frames)[:, None] + np.arange(horizon)[None] + 1) / rate
    share = ((np.arange(horizon) + 1) / horizon)[:, None]
    rows = np.tile(robot.rest_position, (frames, horizon, 1))
    for j in arm:
        reach = min(widest, 0.5 * room[j])
        slow, fast = rng.uniform(0.12, 0.18), rng.uniform(0.25, 0.35)
        phases = rng.uniform(0.0, 2.0 * np.pi, 2)
        for hertz, phase, part in ((slow, phases[0], 0.7), (fast, phases[1], 0.3)):
            rows[:, :, j] += part * reach * (np.sin(2.0 * np.pi * hertz * times + phase) - np.sin(phase))
    rows[:, :, arm] += spread * rng.standard_normal((frames, 1, len(arm))) * (0.2 + 0.8 * share)
    rows[:, :, arm] += ROW_NOISE_RAD * rng.standard_normal((frames, horizon, len(arm)))
    if kind == "undecided":
        aims = 0.06 * rng.standard_normal((frames // round(2.0 * rate) + 1, len(arm)))
        rows[:, :, arm] += aims[np.arange(frames) // round(2.0 * rate)][:, None] * share
    for j in robot.gripper_indices:
        ends = robot.limits.lower[j], robot.limits.upper[j]
        rows[:, :, j] = np.where(np.sin(2.0 * np.pi * times / 5.0) > 0.0, ends[0], ends[0] + 0.8 * (ends[1] - ends[0]))
    return np.clip(rows, robot.limits.lower, robot.limits.upper)
