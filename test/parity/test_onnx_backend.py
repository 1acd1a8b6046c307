"""The backend `onnxruntime`, and the graphs of fixed sizes that TensorRT and CUDA graphs get, against the reference.

Pins: codes token for token and actions within 1e-4 in float32, for one to three cameras, gates and kinds of norm; that
padding to a bucket changes no answer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, checkpoint, frames, hold
from small_checkpoints import ROBOT

from molmoact2_ros.policy import Checkpoint, open_checkpoint
from molmoact2_ros.policy.backends.buckets import EagerRunner, ShapeBuckets, bucketed_stages
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.captured import CompiledRunner
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import Graph
from molmoact2_ros.policy.backends.onnx_stages import OnnxRunner, Session
from molmoact2_ros.policy.backends.opening import open_stages
from molmoact2_ros.policy.stages.stage_set import OpenStages


def slow(*case: Any) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)  # exporting takes seconds a graph


GATED = {"num_depth_codes": 16, "depth_gate": True}
EACH_LAYER_GATED = {**GATED, "depth_gate_per_layer": True}
OLMO = {"qk_norm_type": "olmo", "text_heads": 4, "text_kv_heads": 2, "image_size": 42}
NO_DEPTH = {"qk_norm_type": None, "depth_reasoning": False}

CASES: list[Any] = [(2, {}), (1, GATED), (3, EACH_LAYER_GATED), (2, OLMO), (2, NO_DEPTH)]
EXPORTED: list[Any] = [(2, {}), slow(1, GATED), slow(3, EACH_LAYER_GATED), slow(2, OLMO), slow(2, NO_DEPTH)]


@pytest.fixture
def store(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", lambda text: None)


def onnxruntime(opened: Checkpoint, store: EngineCache) -> OpenStages:
    return open_stages("onnxruntime", opened, CPU, None, store, lambda text: None)


@pytest.mark.parametrize(("cameras", "sizes"), EXPORTED)
def test_onnxruntime_answers_like_the_reference(
    tmp_path: Path, store: EngineCache, cameras: int, sizes: dict[str, Any]
) -> None:
    opened = checkpoint(tmp_path / "model", cameras, seed=cameras, **sizes)
    hold(opened, frames(1, cameras, "n=scpw"), onnxruntime(opened, store))


def test_onnxruntime_answers_like_the_reference_on_the_trained_cell(store: EngineCache) -> None:
    opened = open_checkpoint("so101_cell", ROBOT, ROBOT.norm_tag)
    hold(opened, frames(7, 2, "n=cp"), onnxruntime(opened, store))


def small_buckets(opened: Checkpoint) -> ShapeBuckets:
    """ShapeBuckets that this model's prompts do not fill, and windows that blocks must be cut for."""
    return ShapeBuckets(prompt=192, tokens=256, windows=(1, 4, 24), outputs=24)


def bucketed(opened: Checkpoint, runner: Any) -> OpenStages:
    return lambda model, dof: bucketed_stages(model, dof, small_buckets(opened), runner)


@pytest.mark.parametrize(("cameras", "sizes"), CASES)
@pytest.mark.parametrize("row_cost", [0.0, 0.05])
def test_padding_to_buckets_changes_no_answer(
    tmp_path: Path, cameras: int, sizes: dict[str, Any], row_cost: float
) -> None:
    opened = checkpoint(tmp_path, cameras, seed=cameras, **sizes)
    hold(opened, frames(1, cameras, "n=scpw"), bucketed(opened, EagerRunner()), row_cost=row_cost)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_stages_answer_like_the_reference(tmp_path: Path, compiler: str) -> None:
    opened = checkpoint(tmp_path, 2, seed=3, num_depth_codes=16, depth_gate=True)
    said: list[str] = []
    hold(opened, frames(1, 2, "nc"), bucketed(opened, CompiledRunner(said.append, compiler)))
    assert not said, "every graph compiled"


class ExportingRunner:
    """Exports every graph that it is asked to run, and runs it in onnxruntime: what a TensorRT engine is made from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.graphs, self.runners = folder, {}, {}

    def run(self, graph: Graph, buffers: dict[str, torch.Tensor]) -> None:
        if graph.name not in self.graphs:
            path = self.folder / f"{graph.name}.onnx"
            export_graph(graph, path)
            self.graphs[graph.name] = path
            self.runners[graph.name] = OnnxRunner({graph.name: path})
        self.runners[graph.name].run(graph, buffers)


@pytest.mark.parametrize(("cameras", "sizes"), [slow(2, {}), slow(2, OLMO)])
def test_graphs_of_fixed_sizes_answer_like_the_reference(tmp_path: Path, cameras: int, sizes: dict[str, Any]) -> None:
    opened = checkpoint(tmp_path / "model", cameras, seed=cameras, **sizes)
    runner = ExportingRunner(tmp_path)
    hold(opened, frames(1, cameras, "n=c"), bucketed(opened, runner), row_cost=0.0)
    kinds = {name.split("_")[0] for name in runner.graphs}
    assert kinds == {"vision", "decoder", "context", "step"} and len(runner.graphs) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("cameras", [1, 2, 3])
@pytest.mark.parametrize("norm", ["qwen3", "olmo", None])
@pytest.mark.parametrize("gate", [{}, {"depth_gate": True}, {"depth_gate": True, "depth_gate_per_layer": True}])
def test_many_models_in_onnxruntime(
    tmp_path: Path, store: EngineCache, cameras: int, norm: str | None, gate: dict[str, bool]
) -> None:
    opened = checkpoint(tmp_path / "model", cameras, seed=cameras, qk_norm_type=norm, num_depth_codes=100, **gate)
    hold(opened, frames(cameras, cameras, "n=cpdwpcn"), onnxruntime(opened, store))


def test_a_session_refuses_outputs_that_are_not_contiguous(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    from molmoact2_ros.policy.backends.graphs import Port

    graph = Graph("twice", Twice(), (Port("x", (2, 3), torch.float32),), (Port("y", (2, 3), torch.float32),))
    export_graph(graph, tmp_path / "twice.onnx")
    session = Session(tmp_path / "twice.onnx", 1)
    x, y = torch.arange(6.0).view(3, 2).T, torch.empty(2, 3)
    session.run({"x": x}, {"y": y})
    assert torch.equal(y, x * 2), "inputs may have any strides"
    with pytest.raises(ValueError, match="must be contiguous"):
        session.run({"x": y}, {"y": torch.empty(3, 2).T})
