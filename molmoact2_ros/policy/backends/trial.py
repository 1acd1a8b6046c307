"""Whole calls of a backend against torch on the same weights: codes and actions, on images that change."""

from __future__ import annotations

import numpy as np
import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.build import Agreement, ParityError
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.opening import open_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_model
from molmoact2_ros.policy.options import InferenceOptions
from molmoact2_ros.policy.staged_model import StagedModel

TOLERANCE = {"float32": 1e-4, "bf16": 0.1, "fp16": 0.1}
"""Largest error of an action in the flow's scale of -1 .. 1, by precision, with the same depth codes."""


def run_trial(
    checkpoint: Checkpoint, robot: Embodiment, backend: str, precision: str, store: EngineCache, task: str
) -> list[Agreement]:
    """Three calls of both: a first image, the same one, a changed one. In float32 the codes are the same, too.

    Raises:
        ParityError: codes or actions differ.
    """
    where = torch.device("cpu") if backend == "onnxruntime" else torch.device("cuda")
    kind = torch.float32 if precision == "float32" else torch.bfloat16

    def quiet(text: str) -> None:
        pass

    options = InferenceOptions() if precision == "float32" else InferenceOptions(precision=precision)
    stages = open_stages(backend, checkpoint, where, options, store, quiet)
    loaded = load_model(checkpoint, torch.device("cpu"), kind) if backend == "tensorrt" else None
    ours = StagedModel(checkpoint, where, kind, quiet, options, stages, loaded)
    theirs = StagedModel(checkpoint, where, kind, quiet)
    random = np.random.default_rng(0)
    first = [_scene(random) for _ in checkpoint.cameras]
    changed = [first[0].copy(), *first[1:]]
    changed[0][:40, :50] ^= 0xA5
    state = np.asarray(robot.model_from_joints(robot.rest_position), dtype=np.float64)
    low, high = checkpoint.action_bounds
    cache, error, largest, cosine = None, 0.0, 0.0, 1.0
    for index, images in enumerate((first, first, changed)):
        answers = [
            model.predict(images, task, state, depth_cache=cache, generator=torch.Generator(where).manual_seed(index))
            for model in (ours, theirs)
        ]
        bins = [answer.depth_bins for answer in answers]
        if precision == "float32" and bins[0] is not None and bins[1] is not None and np.any(bins[0] != bins[1]):
            raise ParityError(f"whole call {index + 1}: {int(np.sum(bins[0] != bins[1]))} codes differ from torch's")
        a, b = (2 * (answer.actions - low) / (high - low) - 1 for answer in answers)
        error, largest = max(error, float(np.abs(a - b).max())), max(largest, float(np.abs(b).max()))
        cosine = min(cosine, float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
        cache = answers[1].depth_cache
    if not error <= TOLERANCE[precision]:
        raise ParityError(f"whole calls: actions differ from torch's by {error:.3g} (limit {TOLERANCE[precision]})")
    return [Agreement("whole calls", cosine, error, largest)]


def _scene(random: np.random.Generator) -> np.ndarray:
    coarse = random.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((20, 20, 1), np.uint8))
