"""Which depth cells changed since they were predicted, decided with the reference's own arithmetic, half as often.

The reference resizes both images at every call; here the resized patches of the last one are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.policy.reference import CELL_PIXELS, CELL_THRESHOLD, resized_for_depth


@dataclass(frozen=True)
class SeenCells:
    """What each cell looked like: patches float32 (side, side, values), their norms (side, side), the image itself,
    and how many frames ago every cell was predicted."""

    image: NDArray[np.uint8]
    patches: NDArray[np.float32]
    norms: NDArray[np.float32]
    age: int = 0


def see(image: NDArray[np.uint8], side: int) -> SeenCells:
    """The cells of `image` uint8 (h, w, 3) on a grid of `side` x `side`; the image is copied."""
    image = image.copy()
    size = side * CELL_PIXELS
    resized = resized_for_depth(image, size).astype(np.float32)
    cut = resized.reshape(side, CELL_PIXELS, side, CELL_PIXELS, 3).transpose(0, 2, 1, 3, 4)
    patches: NDArray[np.float32] = cut.reshape(side, side, -1)
    return SeenCells(image, patches, np.linalg.norm(patches, axis=-1))


def changed_cells(now: SeenCells, before: SeenCells) -> NDArray[np.bool_]:
    """Which cells are to be predicted anew: bool (cells,), as `updated_cells` of the reference says it."""
    if now.patches is before.patches:
        return np.zeros(now.norms.size, bool)
    dot = np.sum(now.patches * before.patches, axis=-1)
    denominator = now.norms * before.norms
    similarity = np.where(denominator < 1e-8, 1.0, dot / (denominator + 1e-12))
    return np.asarray(similarity < CELL_THRESHOLD, dtype=np.bool_).reshape(-1)


def see_again(image: NDArray[np.uint8], before: SeenCells | None, side: int) -> SeenCells:
    """As `see`, without computing anything when `image` is bit for bit the last one."""
    if before is not None and before.age == 0 and np.array_equal(image, before.image):
        return before
    return see(image, side)


def predicted(now: SeenCells, before: SeenCells | None, updated: NDArray[np.bool_]) -> SeenCells:
    """What each cell looked like when it was last predicted: the drift-safe cache after a frame."""
    if before is None or updated.all():
        return now
    mask = updated.reshape(now.norms.shape)
    patches = np.where(mask[..., None], now.patches, before.patches)
    return replace(now, patches=patches, norms=np.where(mask, now.norms, before.norms), age=before.age + 1)
