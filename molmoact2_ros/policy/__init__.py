"""From an observation to an action chunk: checkpoint, model, prediction. Importing this room loads numpy only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from molmoact2_ros.policy.interface import Observation, Policy, Prediction

BACKENDS = ("torch", "reference")
"""torch: the reference's weights in stages, with the same codes and actions; reference: its own `predict_action`."""


def open_policy(
    checkpoint: str | Path,
    robot: Embodiment,
    norm_tag: str,
    *,
    backend: str = "reference",
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    seed: int = 0,
    cameras: tuple[str, ...] | None = None,
    log: Callable[[str], None] | None = None,
) -> Policy:
    """Open a checkpoint and return the policy that runs it.

    Args:
        checkpoint: a directory in the released format, the name of a bundled checkpoint, or a Hugging Face id.
        robot: the embodiment that will execute the chunks; checked against the checkpoint.
        backend: one of `BACKENDS`.
        norm_tag: tag in `norm_stats.json`, always explicit: another tag is another robot's scaling.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (a GPU when there is one).
        dtype: `float32`, `bfloat16`, `float16`, or `auto` (float32 on a CPU, as stored on a GPU).
        threads: CPU threads of torch in this process, 0 for its default.
        seed: of the flow's noise.
        cameras: the robot's cameras in the order of the prompt, where the checkpoint's camera names do not say it.
        log: takes one line for the user when something changes that the prediction cannot show.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or made for something else.
        ValueError: unknown backend, device or dtype.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; this version has: {', '.join(BACKENDS)}")
    opened = open_checkpoint(checkpoint, robot, norm_tag, cameras=cameras)
    say = log or logging.getLogger(__name__).warning
    for note in opened.notes:
        say(note)
    if backend == "torch":
        from molmoact2_ros.policy.fast_policy import FastPolicy

        return FastPolicy(opened, robot, device=device, dtype=dtype, threads=threads, seed=seed, log=say)
    from molmoact2_ros.policy.reference_policy import ReferencePolicy

    return ReferencePolicy(opened, robot, device=device, dtype=dtype, threads=threads, seed=seed, log=say)


__all__ = [
    "BACKENDS",
    "Checkpoint",
    "CheckpointError",
    "Observation",
    "Policy",
    "Prediction",
    "open_checkpoint",
    "open_policy",
]
