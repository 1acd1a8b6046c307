"""Whole calls of a backend against torch on the same weights: codes and actions, on pictures that change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.build import Agreement, ParityError
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.opening import open_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.fast_model import FastModel

TASK = "pick up the red cube"
TOLERANCE = {"float32": 1e-4, "bf16": 0.1, "fp16": 0.05, "fp8": 0.2}
"""Largest error of an action in the flow's scale of -1 .. 1, by precision."""


def run_trial(
    checkpoint: Checkpoint, robot: Embodiment, wanted: object, store: EngineCache, log: Callable[[str], None]
) -> list[Agreement]:
    """Three calls of both: a first picture, the same, a changed one. Codes are the same in float32.

    Raises:
        ParityError: codes or actions differ.
    """
    from molmoact2_ros.policy.backends.compiling import Compilation

    assert isinstance(wanted, Compilation)
    where = torch.device("cpu") if wanted.backend == "onnxruntime" else torch.device("cuda")
    kind = torch.float32 if wanted.kind == "float32" else torch.bfloat16
    opener = open_stages(wanted.backend, checkpoint, where, wanted.kind, store, log)
    ours = FastModel(checkpoint, where, kind, log, open_stages=opener)
    theirs = FastModel(checkpoint, where, kind, log)
    random = np.random.default_rng(0)
    first = [np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8) for _ in range(2)]
    first = [first[0]] * len(checkpoint.cameras) if len(checkpoint.cameras) == 1 else first[: len(checkpoint.cameras)]
    changed = [image.copy() for image in first]
    changed[0][:40, :50] ^= 0xA5
    state = np.asarray(robot.model_from_joints(robot.rest_position), dtype=np.float64)
    low, high = (np.array(checkpoint.metadata["action_stats"][name]) for name in ("q01", "q99"))
    cache, error, largest, cosine = None, 0.0, 0.0, 1.0
    for index, images in enumerate((first, first, changed)):
        answers = [
            model.predict(images, TASK, state, depth_cache=cache, generator=torch.Generator(where).manual_seed(index))
            for model in (ours, theirs)
        ]
        if wanted.kind == "float32" and answers[0].depth_bins is not None:
            different = int((answers[0].depth_bins != answers[1].depth_bins).sum())
            if different:
                raise ParityError(f"whole call {index + 1}: {different} depth codes differ from torch's")
        a, b = (2 * (answer.actions - low) / (high - low) - 1 for answer in answers)
        error, largest = max(error, float(np.abs(a - b).max())), max(largest, float(np.abs(b).max()))
        cosine = min(cosine, float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
        cache = answers[1].depth_cache
    if not error <= TOLERANCE[wanted.kind]:
        raise ParityError(f"whole calls: actions differ from torch's by {error:.3g} (limit {TOLERANCE[wanted.kind]})")
    return [Agreement("whole calls", cosine, error, largest)]
