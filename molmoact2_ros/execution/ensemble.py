"""Temporal ensembling: overlapping chunks averaged with exponential weights, as ACT does it. An option.

The average is made in rows, when a chunk arrives: each of its rows is averaged with what the chunks before it say about
the same moment. So the curve through the rows stays C2 and everything after it stays the same. A chunk fades out
towards its end, or its end would be a step. Grippers are the newest chunk's alone: a decision has no average.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.execution.chunk import Chunk

Array = NDArray[np.float64]

FADE_ROWS = 5
"""Over so many last rows the weight of a chunk goes to nothing."""


class Ensemble:
    """The last chunks.

    Args:
        size: how many chunks are averaged, the newest included.
        decay: exponent per chunk; the oldest has weight 1, each newer one exp(-decay) times that of the one before.
            Above 0 older chunks count more (ACT: 0.01), below 0 newer ones.
    """

    def __init__(self, size: int, decay: float, gripper_indices: Sequence[int]) -> None:
        if size < 1:
            raise ValueError(f"an ensemble needs at least one chunk, got {size}")
        self._decay, self._grippers = decay, list(gripper_indices)
        self._chunks: deque[Chunk] = deque(maxlen=size)

    def forget(self) -> None:
        """What was observed so far no longer counts."""
        self._chunks.clear()

    def merge(self, chunk: Chunk) -> Chunk:
        """Take `chunk` in and return the average at its own times."""
        self._chunks.append(chunk)
        times = (np.arange(len(chunk.rows)) + 1) / chunk.rate_hz
        total = np.zeros_like(chunk.rows)
        weights = np.zeros((len(chunk.rows), 1))
        for age, other in enumerate(self._chunks):
            shift = (chunk.origin_ns - other.origin_ns) * 1e-9
            where = (times + shift) * other.rate_hz - 1.0  # in rows of the other chunk
            left = len(other.rows) - 1 - where
            share = np.ones_like(left) if other is chunk else np.clip(left / FADE_ROWS, 0.0, 1.0)
            weight = (np.exp(-self._decay * age) * share)[:, None]
            rows = np.arange(len(other.rows))
            total += weight * np.stack([np.interp(where, rows, column) for column in other.rows.T], axis=1)
            weights += weight
        merged = total / weights
        merged[:, self._grippers] = chunk.rows[:, self._grippers]
        return replace(chunk, rows=merged)
