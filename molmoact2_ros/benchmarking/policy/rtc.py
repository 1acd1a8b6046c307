"""`molmoact2 bench rtc`: seams between chunks with and without real-time chunking, on the simulated SO-101 cell.

The policy's latency is simulated time, so the machine's speed has no part in it. Chunks are played as they come (no
splice, only a velocity limit): what the executor has to fade out is what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import Observation, RTCOptions, open_policy
from molmoact2_ros.policy.rtc import SCHEDULES

TASK = "pick up the red cube"
HORIZON = 20
"""Rows that guidance may reach to: two thirds of a chunk, well beyond every latency measured here."""


@dataclass(frozen=True)
class Seams:
    """What came of some episodes: differences between a new chunk and the one before it at the moment of the change,
    arm joints only, the largest of them each: positions in rad and velocities in rad/s (n,)."""

    name: str
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    successes: int
    episodes: int


def settings() -> dict[str, RTCOptions]:
    """What is compared: no guidance, and every schedule."""
    found = {"off": RTCOptions()}
    found |= {name: RTCOptions(enabled=True, schedule=name, horizon=HORIZON) for name in SCHEDULES}
    return found


def bench_rtc(episodes: int, latency_s: float, seed: int, page: Path, limit_s: float = 15.0) -> Path:
    """Run the episodes with every setting and write `page`."""
    rows = [run(name, rtc, episodes, latency_s, seed, limit_s) for name, rtc in settings().items()]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(rows, latency_s))
    return page


def run(name: str, rtc: RTCOptions, episodes: int, latency_s: float, seed: int, limit_s: float) -> Seams:
    """`episodes` of the cell's own checkpoint, each chunk arriving `latency_s` after its images."""
    from molmoact2_ros.simulation.cell import So101Cell

    robot = embodiment("so101")
    clock = _Clock()
    policy = open_policy("so101_cell", robot, robot.norm_tag, backend="torch", device="cpu", rtc=rtc, now_ns=clock)
    cell = So101Cell(seed=seed)
    arm = [index for index in range(robot.dof) if index not in robot.gripper_indices]
    step, rows_late = 1.0 / robot.rate_hz, round(latency_s * robot.rate_hz)
    positions: list[float] = []
    velocities: list[float] = []
    successes = 0
    try:
        for number in range(episodes):
            cell.reset(number)
            policy.reset()
            playing: tuple[Any, int] | None = None
            coming: tuple[Any, int] | None = None
            command, tick = cell.joints()[0], 0
            while cell.episode.elapsed_s < limit_s and not cell.episode.success:
                if coming is None:
                    stamp = clock.at(tick * step)
                    images = {camera: cell.render(camera) for camera in policy.checkpoint.cameras}
                    seen = Observation(images, dict.fromkeys(images, stamp), cell.joints()[0], stamp, TASK)
                    clock.now = clock.at(tick * step + latency_s)
                    coming = policy.infer(seen).chunk_joints, tick
                if tick - coming[1] >= rows_late:
                    if playing is not None:
                        there = _at(coming[0], tick - coming[1])
                        here = _at(playing[0], tick - playing[1])
                        if there is not None and here is not None:
                            positions.append(float(np.abs(there[0] - here[0])[arm].max()))
                            velocities.append(float(np.abs(there[1] - here[1])[arm].max()) / step)
                    playing, coming = coming, None
                if playing is not None:
                    row = min(tick - playing[1], len(playing[0]) - 1)
                    most = robot.limits.velocity * step
                    command = command + np.clip(playing[0][row] - command, -most, most)
                    cell.command(command)
                cell.advance(step)
                tick += 1
            successes += int(cell.episode.success)
            clock.start = clock.now
    finally:
        cell.close()
    return Seams(name, np.array(positions), np.array(velocities), successes, episodes)


def _at(chunk: NDArray[np.float64], row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """A chunk's target at `row` and its change a row there; None beyond its end."""
    if not 1 <= row < len(chunk):
        return None
    return chunk[row], chunk[row] - chunk[row - 1]


class _Clock:
    """Simulated time, ns, which the policy measures its latency with."""

    def __init__(self) -> None:
        self.start = self.now = 10**9

    def at(self, seconds: float) -> int:
        """So long after the episode's start."""
        return self.start + round(seconds * 1e9)

    def __call__(self) -> int:
        return self.now


def render(rows: Sequence[Seams], latency_s: float) -> str:
    """The page."""
    lines = [
        "# Seams between chunks, with and without real-time chunking",
        "",
        f"Written by `molmoact2 bench rtc` on {date.today().isoformat()}. The cell's own checkpoint on the simulated",
        f"SO-101, every chunk arriving {latency_s * 1e3:.0f} ms after its images (simulated time); guidance with a",
        f"horizon of {HORIZON} rows.",
        "A seam is the difference between the new chunk and the one before at the moment of the change, the largest of",
        "the arm's joints, before the executor fades it out.",
        "",
        *(f"- {key}: {value}" for key, value in machine().items()),
        "",
        "| guidance | seams | position p50, mrad | p90 | max | velocity p50, rad/s | p90 | max | picked |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shown = []
        for values, scale, digits in ((row.positions, 1e3, 1), (row.velocities, 1.0, 2)):
            numbers = [np.percentile(values, share) * scale for share in (50, 90, 100)] if values.size else [np.nan] * 3
            shown += [f"{number:.{digits}f}" for number in numbers]
        lines.append(f"| {row.name} | {row.positions.size} | {' | '.join(shown)} | {row.successes} of {row.episodes} |")
    return "\n".join(lines) + "\n"
