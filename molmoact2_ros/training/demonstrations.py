"""Labelled observations of the simulated SO-101 cell: images, joints, the expert's chunk, depth patches.

The arm is driven as it will be on the robot: chunks are computed from an observation, arrive some rows late and are
played by time. What is played is disturbed (drift, knocks, odd start poses, a jaw that closes too early), what is
recorded as the label is the undisturbed chunk of the expert from the state that came of it, so that the policy sees
how to recover.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.simulation.cell import So101Cell
from molmoact2_ros.simulation.expert import expert_chunk, joints_for
from molmoact2_ros.simulation.scene import CellRandomisation

Array = NDArray[np.float64]
Controller = Callable[[NDArray[np.uint8], Array, NDArray[np.float32]], Array]
"""Resized images (cameras, size, size, 3), joints (6,) and depth patches (grid, grid, patch, patch) to the chunk
(horizon, 6) that is played; used to gather the policy's own states."""

WIDE = CellRandomisation(radius=(0.138, 0.232), bearing=0.82)
"""Training placements reach a little further than those of the evaluation."""
DEPTH_RANGE_M = (0.3, 1.0)
"""Depth is clipped to this range: the arm and the table; what lies behind them is one wall."""


@dataclass
class Samples:
    """Arrays of n labelled observations.

    Attributes:
        images: (n, cameras, size, size, 3) uint8, resized as the reference processor does.
        joints: (n, 6) encoder reading, rad.
        chunks: (n, horizon, 6) the expert's chunk, rad.
        depth: (n, grid, grid, patch, patch) float32 distance of the first camera, m.
        cube: (n, 3) place of the cube in the base frame, m.
    """

    images: NDArray[np.uint8]
    joints: Array
    chunks: Array
    depth: NDArray[np.float32]
    cube: Array

    def __len__(self) -> int:
        return len(self.joints)

    def save(self, path: Path) -> None:
        """Write all arrays to one .npz file, complete or not at all."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **vars(self))
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> Samples:
        """Read what `save` wrote."""
        with np.load(path) as data:
            return Samples(**{name: data[name] for name in data.files})

    @staticmethod
    def concatenate(parts: list[Samples]) -> Samples:
        """Join several sets."""
        return Samples(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The reference processor's resize (bilinear, no antialias) to (size, size, 3) uint8."""
    import torch
    from torchvision.transforms.functional import InterpolationMode, resize

    picture = torch.from_numpy(image).permute(2, 0, 1)
    return resize(picture, [size, size], InterpolationMode.BILINEAR, antialias=False).permute(1, 2, 0).numpy()


def depth_patches(depth: NDArray[np.float32], grid: int, patch: int) -> NDArray[np.float32]:
    """Depth image (h, w) to patches (grid, grid, patch, patch), clipped to `DEPTH_RANGE_M`."""
    import cv2

    side = grid * patch
    small = cv2.resize(np.clip(depth, *DEPTH_RANGE_M), (side, side), interpolation=cv2.INTER_AREA)
    return small.reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).astype(np.float32)


def gather(
    episodes: range,
    seed: int,
    *,
    image_size: int,
    grid: int,
    patch: int,
    scatter: float = 0.35,
    controller: Controller | None = None,
) -> Samples:
    """Drive `episodes` and return the labelled observations; the same arguments give the same samples.

    `scatter` is the share of episodes that begin elsewhere than at the start pose. With a `controller`, its chunks
    are played instead of the expert's in most episodes: the labels then correct the errors that the policy really
    makes.
    """
    cell = So101Cell(seed=seed, randomisation=WIDE)
    rows: list[tuple[NDArray[np.uint8], Array, Array, NDArray[np.float32], Array]] = []
    try:
        for episode in episodes:
            rng = np.random.default_rng([seed, episode, 1])
            cell.reset(episode)
            driver = controller if controller is not None and rng.random() < 0.8 else None
            _drive(cell, rng, driver, rows.append, image_size, grid, patch, scatter)
    finally:
        cell.close()
    return Samples(
        *(np.stack([row[i] for row in rows]) for i in range(5))  # type: ignore[arg-type]
    )


def _drive(
    cell: So101Cell,
    rng: np.random.Generator,
    controller: Controller | None,
    record: Callable[[tuple], None],  # type: ignore[type-arg]
    image_size: int,
    grid: int,
    patch: int,
    scatter: float,
) -> None:
    dt = 1.0 / SO101.rate_hz
    if rng.random() < scatter:
        _scatter_start(cell, rng)
    drift_size = rng.choice([0.0, 0.015, 0.04]) if controller is None else rng.choice([0.0, 0.01])
    drift = np.zeros(6)
    knock, knock_left = np.zeros(6), 0
    chunk, age, late = None, 0, 0
    pending: tuple[Array, int] | None = None
    ticks_after_success = int(rng.integers(3, 20))
    countdown = 0
    for _ in range(int(rng.integers(150, 330))):
        if countdown <= 0:
            joints, _ = cell.joints()
            pictures = {name: cell.render(name) for name in cell.cameras}
            cube = cell.object_pose()[0]
            label = expert_chunk(joints, cube)
            images = np.stack([resize(pictures[name], image_size) for name in cell.cameras])
            depth = depth_patches(cell.render_depth(cell.cameras[0]), grid, patch)
            record((images, joints, label, depth, cube))
            played = label if controller is None else controller(images, joints, depth)
            late = int(rng.integers(3, 13))
            pending = (played, 0)
            countdown = max(late, int(rng.integers(4, 10)))
        if pending is not None and pending[1] >= late:
            chunk, age, pending = pending[0], pending[1], None
        elif pending is not None:
            pending = (pending[0], pending[1] + 1)
        drift += -0.1 * drift + drift_size * np.array([1, 1, 1, 1, 1, 3]) * 0.45 * rng.standard_normal(6)
        if knock_left <= 0 and controller is None and rng.random() < 0.008:
            knock = rng.uniform(-0.35, 0.35, 6) * np.array([1.0, 0.7, 0.7, 0.7, 1.0, 2.5])
            knock_left = int(rng.integers(6, 22))
        if chunk is not None:
            target = chunk[min(age, len(chunk) - 1)] + drift + (knock if knock_left > 0 else 0.0)
            # The table stops a knocked arm; the servos of a real one would be stopped by the executor's limits.
            cell.command(np.clip(target, SO101.limits.lower, SO101.limits.upper))
            age += 1
        knock_left -= 1
        countdown -= 1
        cell.advance(dt)
        if cell.episode.success:
            ticks_after_success -= 1
            if ticks_after_success < 0:
                return


def _scatter_start(cell: So101Cell, rng: np.random.Generator) -> None:
    """Begin somewhere over the table, or stumbling about the cube, instead of at the start pose."""
    if rng.random() < 0.5:
        # Low and close to the cube, pressed down: beside it, on top of it, with the jaw in any position.
        place = cell.object_pose()[0]
        point = np.array([*(place[:2] + rng.uniform(-0.04, 0.04, 2)), rng.uniform(0.01, 0.045)])
        lift = 0.06
    else:
        point = np.array([rng.uniform(0.16, 0.27), rng.uniform(-0.17, 0.17), rng.uniform(0.045, 0.13)])
        lift = 0.0
    joints = np.concatenate([joints_for(point), [rng.uniform(-0.1, 1.2)]]) + 0.06 * rng.standard_normal(6)
    above = np.concatenate([joints_for(point + np.array([0.0, 0.0, lift])), joints[5:]])
    cell.data.qpos[:6] = np.clip(above, SO101.limits.lower, SO101.limits.upper)
    cell.data.qvel[:6] = 0.0
    cell.command(np.clip(joints, SO101.limits.lower, SO101.limits.upper))
    cell.advance(0.5 if lift else 0.1)
