"""The stages of the backend `tensorrt` on a machine without a GPU: engines are stood in for by copies of the modules
that they are built from, so that all else is as on a GPU.

Pins: the answers are torch's; each engine is held against torch once before its first use, and one that differs is not
used; torch's own copy of what engines compute is given up before anything goes to the GPU.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, TASK, checkpoint, frames

from molmoact2_ros.policy import Checkpoint
from molmoact2_ros.policy.backends import tensorrt_build
from molmoact2_ros.policy.backends.build import ParityError
from molmoact2_ros.policy.backends.cache import EngineCache, Entry
from molmoact2_ros.policy.backends.graphs import Graph, Port
from molmoact2_ros.policy.backends.tensorrt_library import RTX
from molmoact2_ros.policy.loading import load_model
from molmoact2_ros.policy.staged_model import StagedModel


def empty(port: Port) -> torch.Tensor:
    return torch.empty((0, int(port.shape[1])), dtype=port.dtype)


class ModuleEngine:
    """Stands for an engine: the graph's module, with weights of its own."""

    wrong = ""
    kept = 0

    def __init__(self, trt: Any, plan: Path, graph: Graph, runtime_cache: Path, scratch: Any) -> None:
        assert plan.read_bytes() == b"plan" and runtime_cache.name.endswith("-8.9.cache")
        self.graph, self.module = graph, copy.deepcopy(graph.module)

    def context(self, graph: Graph, stream: int) -> Any:
        held: dict[str, Any] = {}

        def enqueue(stream: int) -> None:
            inputs = [held[port.name] if port.name in held else empty(port) for port in self.graph.inputs]
            with torch.inference_mode():
                made = self.module(*inputs)
            for port, x in zip(self.graph.outputs, made if isinstance(made, tuple) else (made,), strict=True):
                held[port.name].copy_(x if self.graph.stage != ModuleEngine.wrong else x.flip(0))

        return SimpleNamespace(bind=held.update, enqueue=enqueue)

    def keep(self) -> None:
        ModuleEngine.kept += 1


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("engines"), 2, seed=1, depth_gate=True, depth_gate_per_layer=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EngineCache:
    """One with a GPU of capability 8.9, as far as `tensorrt_build` can tell, and its cache of engines."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "engine.plan").write_bytes(b"plan")
    monkeypatch.setattr(tensorrt_build, "Engine", ModuleEngine)
    monkeypatch.setattr(tensorrt_build, "this_gpu", lambda device: tensorrt_build.Target(RTX, ((8, 9),)))
    monkeypatch.setattr(tensorrt_build, "find_engine", lambda *which: Entry(tmp_path / "engine", {}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return EngineCache(tmp_path / "cache", print)


def model_of(opened: Checkpoint, store: EngineCache, said: list[str]) -> StagedModel:
    stages = tensorrt_build.tensorrt_stages(opened, CPU, "bf16", store, said.append)
    return StagedModel(opened, CPU, torch.float32, said.append, None, stages, load_model(opened, CPU, torch.float32))


def test_answers_are_torchs_and_its_weights_are_given_up(opened: Checkpoint, machine: EngineCache) -> None:
    said: list[str] = []
    ours = model_of(opened, machine, said)
    verified = [line for line in said if "held against torch, once" in line]
    assert [line.split()[3] for line in verified] == ["vision", "decoder", "context", "step"] and ModuleEngine.kept == 7
    theirs = StagedModel(opened, CPU, torch.float32, said.append)
    caches: list[Any] = [None, None]
    for index, frame in enumerate(frames(1, 2, "n=scw")):
        answers = [
            model.predict(
                frame.images, TASK, frame.state, depth_cache=cache, generator=torch.Generator().manual_seed(index)
            )
            for model, cache in zip((ours, theirs), caches, strict=True)
        ]
        np.testing.assert_array_equal(answers[0].depth_bins, answers[1].depth_bins)
        np.testing.assert_allclose(answers[0].actions, answers[1].actions, atol=2e-3)
        caches = [answer.depth_cache for answer in answers]
    inner = ours.model.model
    for part in (inner.vision_backbone, inner.transformer.blocks, inner.action_expert):
        assert sum(parameter.numel() for parameter in part.parameters()) == 0
    assert ours.model.lm_head.weight.numel() > 0 and inner.transformer.ln_f.weight.numel() > 0
    said.clear()
    model_of(opened, machine, said)
    assert not [line for line in said if "held against torch" in line], "once a GPU"


def test_an_engine_that_differs_from_torch_is_not_used(
    opened: Checkpoint, machine: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModuleEngine, "wrong", "context")
    for _ in range(2):
        with pytest.raises(ParityError, match=r"context: cosine .* this graph is not used"):
            model_of(opened, machine, [])
