"""`molmoact2 bench cells`: how much faster than real time each simulated cell runs, and how its expert fares.

Without ROS: the cell as one thread, as `sim_node` runs it, with the scripted expert's chunks played by time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.simulation.cell import Cell
from molmoact2_ros.simulation.cells import make_cell
from molmoact2_ros.simulation.experts import Expert, expert_of

ROBOTS = ("so101", "franka", "yam")
LATE_S = 0.1
"""A chunk is played so long after its observation, as one that a policy computed."""
LIMIT_S = 20.0


@dataclass(frozen=True)
class CellFigures:
    """What was measured on one robot's cell.

    Attributes:
        robot, cameras, camera_hz, width, height, step_ms: what was run.
        physics, together: simulated seconds a second, with physics alone and with all cameras drawn at their rate.
        frame_ms: one image. chunk_ms: one chunk of the expert; medians.
        episodes, successes: of the expert. duration_s: median of the successful ones, simulated seconds.
    """

    robot: str
    cameras: int
    camera_hz: float
    width: int
    height: int
    step_ms: float
    physics: float
    together: float
    frame_ms: float
    chunk_ms: float
    episodes: int
    successes: int
    duration_s: float


def bench_cells(episodes: int, seed: int, page: Path, robots: tuple[str, ...] = ROBOTS, seconds: float = 6.0) -> Path:
    """Measure the cells of `robots`, write `page` (Markdown) and return its path.

    Args:
        episodes: of the expert, a robot. seed: of the placements. seconds: simulated time a speed is measured over.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render([_figures(robot, episodes, seed, seconds) for robot in robots], seed))
    return page


def _figures(robot: str, episodes: int, seed: int, seconds: float) -> CellFigures:
    cell, expert = make_cell(robot, seed), expert_of(robot)
    try:
        camera_hz = min(30.0, cell.robot.rate_hz)
        first = cell.render(cell.cameras[0])
        physics = median(_speed(cell, expert, seconds, 0.0) for _ in range(3))
        frames: list[float] = []
        together = median(_speed(cell, expert, seconds, camera_hz, frames) for _ in range(3))
        chunks: list[float] = []
        durations = []
        for number in range(episodes):
            cell.reset(number)
            _play(cell, expert, LIMIT_S, chunks)
            if cell.episode.success:
                durations.append(cell.episode.elapsed_s)
        return CellFigures(
            robot=robot,
            cameras=len(cell.cameras),
            camera_hz=camera_hz,
            width=first.shape[1],
            height=first.shape[0],
            step_ms=1e3 * cell.model.opt.timestep,
            physics=physics,
            together=together,
            frame_ms=1e3 * median(frames),
            chunk_ms=1e3 * median(chunks),
            episodes=episodes,
            successes=len(durations),
            duration_s=median(durations) if durations else float("nan"),
        )
    finally:
        cell.close()


def _speed(cell: Cell, expert: Expert, seconds: float, camera_hz: float, frames: list[float] | None = None) -> float:
    """Simulated seconds a second while the arm works, not counting what the expert computes."""
    cell.reset(0)
    rate = cell.robot.rate_hz
    chunk, spent, drawn = np.empty((0, cell.robot.dof)), 0.0, 0
    for tick in range(round(seconds * rate)):
        if tick % cell.robot.horizon == 0:
            chunk = _ask(cell, expert)
        begun = time.perf_counter()
        cell.command(chunk[tick % cell.robot.horizon])
        cell.advance(1.0 / rate)
        while camera_hz > 0.0 and drawn < (tick + 1) * camera_hz / rate:
            for camera in cell.cameras:
                one = time.perf_counter()
                cell.render(camera)
                if frames is not None:
                    frames.append(time.perf_counter() - one)
            drawn += 1
        spent += time.perf_counter() - begun
    return seconds / spent


def _play(cell: Cell, expert: Expert, seconds: float, spent: list[float]) -> None:
    rate = cell.robot.rate_hz
    every, late = max(1, round(rate / 5.0)), round(LATE_S * rate)
    chunk, age = np.empty((0, cell.robot.dof)), 0
    for tick in range(round(seconds * rate)):
        if tick % every == 0:
            begun = time.perf_counter()
            chunk, age = _ask(cell, expert), late
            spent.append(time.perf_counter() - begun)
        cell.command(chunk[min(age, len(chunk) - 1)])
        age += 1
        cell.advance(1.0 / rate)
        if cell.episode.success:
            return


def _ask(cell: Cell, expert: Expert) -> np.ndarray:
    place, (w, x, y, z) = cell.object_pose()
    yaw = float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))
    return expert(cell.joints()[0], place, yaw)


def render(figures: list[CellFigures], seed: int) -> str:
    """Return the page."""
    lines = [
        "# The simulated cells",
        "",
        f"Written by `molmoact2 bench cells` on {date.today().isoformat()}; placements of seed {seed}.",
        "One thread; speeds are simulated seconds a second, the median of three. Images are drawn in software where",
        "there is no GPU.",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        "",
        "| robot | cameras | physics step | physics alone | with cameras | one image | expert's chunk "
        "| picked by the expert | median time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in figures:
        lines.append(
            f"| {f.robot} | {f.cameras} of {f.width}x{f.height} at {f.camera_hz:g} Hz | {f.step_ms:g} ms "
            f"| {f.physics:.1f}x | {f.together:.1f}x | {f.frame_ms:.1f} ms | {f.chunk_ms:.1f} ms "
            f"| {f.successes} of {f.episodes} | {f.duration_s:.1f} s |"
        )
    return "\n".join(lines) + "\n"
