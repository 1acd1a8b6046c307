"""How large the shape buckets of a checkpoint's prompts must be."""

from __future__ import annotations

from typing import Any

import numpy as np

from molmoact2_ros.policy.backends.buckets import WINDOWS, ShapeBuckets
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.reference import prompt_text

TASK = "put the red cube on the green plate beside the cup"
"""Stands for the length of a task."""


def buckets_for(
    checkpoint: Checkpoint, config: Any, processor: Any, tokens: int, windows: tuple[int, ...] = WINDOWS
) -> ShapeBuckets:
    """The buckets of a checkpoint's prompts: of a task of some words, with all cameras.

    Args:
        tokens: at least so many in all, for longer tasks; 0 for the usual room.
        windows: rows of later passes, ascending.
    """
    width = checkpoint.state_bounds.shape[1]
    depth = checkpoint.depth_side
    text = prompt_text(
        config, checkpoint.metadata, TASK, np.zeros(width, np.float32), len(checkpoint.cameras), depth is not None
    )
    pictures = [np.zeros((240, 320, 3), np.uint8)] * len(checkpoint.cameras)
    prompt = processor(text=text, images=pictures, return_tensors="pt")["input_ids"].shape[1]
    cells = 0 if depth is None else depth * depth
    free = max(8, int(config.max_action_horizon or 0)) + 1
    most = int(config.text_config.max_position_embeddings)
    extra = max(tokens - (prompt + cells + 2 + free), 0)
    return ShapeBuckets.around(prompt + extra, cells, free, most, windows)
