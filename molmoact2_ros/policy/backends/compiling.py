"""`molmoact2 compile`: the files that a backend runs, built, held against torch and kept, with a table of how alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.build import Agreement, Say, exported, free_graphs, picture_sample
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.reference import load_model, load_processor
from molmoact2_ros.policy.stages.stage_set import torch_stages

COMPILED = ("onnxruntime", "tensorrt")
"""Backends that need files of their own."""


@dataclass(frozen=True)
class Compilation:
    """What `molmoact2 compile` was asked for; `tokens` widens the brackets for long tasks, 0 leaves them."""

    backend: str = "onnxruntime"
    precision: str = ""
    tokens: int = 0

    def __post_init__(self) -> None:
        known = {"onnxruntime": ("float32",), "tensorrt": ("bf16", "fp16", "fp8")}
        if self.backend not in known:
            raise ValueError(f"backend {self.backend!r} needs no compiling; use {' or '.join(COMPILED)}")
        if self.precision and self.precision not in known[self.backend]:
            raise ValueError(
                f"backend {self.backend} has no precision {self.precision!r}; use {', '.join(known[self.backend])}"
            )

    @property
    def kind(self) -> str:
        """The precision, or the backend's own where none was given."""
        return self.precision or {"onnxruntime": "float32", "tensorrt": "bf16"}[self.backend]


def compile_checkpoint(
    checkpoint: Checkpoint, robot: Embodiment, wanted: Compilation, store: EngineCache, say: Say
) -> list[Agreement]:
    """Build what is missing of `wanted` and return how alike each graph is to torch.

    Raises:
        ParityError: a graph differs; what was good is kept.
        BackendMissingError: the backend is not installed, or this machine has no GPU for it.
    """
    if wanted.backend == "tensorrt":
        from molmoact2_ros.policy.backends.tensorrt_build import build_engines

        return build_engines(checkpoint, robot, wanted.kind, wanted.tokens, store, say)
    model = load_model(checkpoint.directory, checkpoint.config, checkpoint.tensors, torch.device("cpu"), torch.float32)
    stages = torch_stages(model.model, robot.dof)
    graphs = free_graphs(stages, *picture_sample(load_processor(checkpoint.directory)))
    return [
        Agreement(graph.name, facts["cosine"], facts["max_error"], facts["largest"])
        for graph, _, facts in exported(graphs, checkpoint, store, say)
    ]


def self_test(
    wanted: Compilation, store: EngineCache, robot: Embodiment, say: Say, log: Callable[[str], None]
) -> list[Agreement]:
    """Compile a small random model and run a few calls of it against torch, from first picture to actions.

    Raises:
        ParityError: a stage, the codes or the actions differ.
    """
    from molmoact2_ros.benchmarking.random_model import write_random_checkpoint
    from molmoact2_ros.policy import open_checkpoint
    from molmoact2_ros.policy.backends.trial import run_trial

    with tempfile.TemporaryDirectory() as scratch:
        directory = write_random_checkpoint(Path(scratch), "small", robot, "pick up the red cube")
        opened = open_checkpoint(directory, robot, robot.norm_tag)
        found = compile_checkpoint(opened, robot, wanted, store, say)
        return [*found, *run_trial(opened, robot, wanted, store, log)]


def table(rows: Sequence[Agreement], console: Any) -> None:
    """Print how alike every graph is."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for name, side in (("stage", "left"), ("cosine", "right"), ("largest error", "right"), ("of", "right")):
        shown.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in rows:
        shown.add_row(row.graph, f"{row.cosine:.7f}", f"{row.max_error:.2e}", f"{row.largest:.3g}")
    console.print(shown)
