"""Closed-loop trials of a policy on the simulated cell without ROS: quicker than real time, for a look during training.

What counts in the end is measured through the ROS nodes in real time (`molmoact2 sim`); the figures here leave out
jitter, the executor's limits and a busy machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.simulation.cell import So101Cell
from molmoact2_ros.training.demonstrations import Controller, depth_patches, resize


@dataclass(frozen=True)
class Trials:
    """What came of n episodes. Distances are the smallest horizontal ones while the grip point was above the cube,
    m."""

    successes: int
    reached: int
    episodes: int
    distances_m: tuple[float, ...]
    durations_s: tuple[float, ...]

    def __str__(self) -> str:
        finite = [d for d in self.distances_m if np.isfinite(d)]
        nearest = f"{np.median(finite) * 100:.1f} cm" if finite else "never above it"
        return f"{self.successes} of {self.episodes} picked, {self.reached} reached, median nearest {nearest}"


def trials(
    controller: Controller,
    episodes: range,
    seed: int,
    *,
    image_size: int,
    grid: int,
    patch: int,
    delay_rows: int = 8,
    limit_s: float = 15.0,
) -> Trials:
    """Run `episodes` with a chunk asked for as soon as the last one has arrived, `delay_rows` rows after its
    image."""
    cell = So101Cell(seed=seed)
    dt = 1.0 / SO101.rate_hz
    done = []
    try:
        for number in episodes:
            cell.reset(number)
            chunk, pending, age = None, None, 0
            command = cell.joints()[0]
            while cell.episode.elapsed_s < limit_s and not cell.episode.success:
                if pending is None:
                    joints, _ = cell.joints()
                    images = np.stack([resize(cell.render(name), image_size) for name in cell.cameras])
                    depth = depth_patches(cell.render_depth(cell.cameras[0]), grid, patch)
                    pending, waited = controller(images, joints, depth), 0
                if waited >= delay_rows:
                    chunk, age, pending = pending, waited, None
                waited += 1
                if chunk is not None:
                    target = chunk[min(age, len(chunk) - 1)]
                    # A crude version of the executor's velocity limit, so that a bad chunk cannot teleport the arm.
                    command = command + np.clip(
                        target - command, -SO101.limits.velocity * dt, SO101.limits.velocity * dt
                    )
                    cell.command(command)
                    age += 1
                cell.advance(dt)
            done.append(cell.episode)
    finally:
        cell.close()
    return Trials(
        successes=sum(e.success for e in done),
        reached=sum(e.reached for e in done),
        episodes=len(done),
        distances_m=tuple(e.min_distance_m for e in done),
        durations_s=tuple(e.elapsed_s for e in done),
    )
