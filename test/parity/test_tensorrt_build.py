"""Every graph of the backend `tensorrt`, built by TensorRT for RTX itself, for each GPU that it builds for ahead once.

Pins: each graph of each kind of model parses and builds in bf16 and fp16; the engines hold their weights once; a build
that was interrupted goes on; an engine of another library, GPU, precision or with a damaged file is not found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, checkpoint

from molmoact2_ros.policy import Checkpoint
from molmoact2_ros.policy.backends.build import graph_key
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import Graph, Port
from molmoact2_ros.policy.backends.tensorrt_build import (
    RTX,
    Built,
    Target,
    at_sizes,
    build_engines,
    engine_key,
    find_engine,
    prepare,
    room_of,
)
from molmoact2_ros.policy.backends.tensorrt_engine import EngineError, StageGraph, build_engine
from molmoact2_ros.policy.backends.tensorrt_library import RTX_CAPABILITIES, tensorrt_module
from molmoact2_ros.policy.loading import load_model
from molmoact2_ros.policy.options import BackendMissingError

ROBOT: Any = SimpleNamespace(dof=6)
STAGES = ["vision", "decoder", "context", "step"]
WIDE = {"text_width": 1024, "text_mlp": 6144, "depth_gate": True}
"""Text layers large enough that their weights, not the compiled code, make an engine's size."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("wide"), 2, seed=1, **WIDE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    return EngineCache(tmp_path_factory.mktemp("engines"), lambda text: None)


BOTH = ((8, 9), (12, 0))
ROOM = 400
"""Tokens; more than the usual prompt of this model needs."""


def build(opened: Checkpoint, store: EngineCache, say: Any) -> dict[str, Built]:
    built, compared = build_engines(opened, ROBOT, "bf16", ROOM, BOTH, store, say)
    assert not compared, "there is no GPU to compare on"
    return built


@pytest.fixture(scope="module")
def built(opened: Checkpoint, store: EngineCache) -> dict[str, Built]:
    """All engines for two kinds of GPU, in a build that was interrupted at the third and then went on."""
    did: list[tuple[str, str]] = []

    def stop(stage: str, doing: str) -> None:
        did.append((stage, doing))
        if (stage, doing) == ("context", "exporting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(opened, store, stop)
    assert [stage for stage, doing in did if doing == "done"] == STAGES[:2]
    did.clear()
    found = build(opened, store, lambda *what: did.append(what))
    assert [stage for stage, doing in did if doing == "kept"] == STAGES[:2], "what was built is not built again"
    return found


def test_every_graph_is_built_for_two_kinds_of_gpu_and_holds_its_weights_once(built: dict[str, Built]) -> None:
    assert list(built) == STAGES and all(about.layers > 10 for about in built.values())
    weights, size = (sum(getattr(about, name) for about in built.values()) for name in ("weights", "bytes"))
    assert weights > 70e6 and size <= 1.2 * weights


def test_an_engine_is_found_for_each_of_its_gpus_and_for_nothing_else(
    opened: Checkpoint, store: EngineCache, built: dict[str, Built]
) -> None:
    trt = tensorrt_module(RTX)
    model = load_model(opened, CPU, torch.bfloat16)
    room = room_of(opened, store, "bf16")
    assert room == ROOM and room_of(opened, store, "fp16") == 0, "their room is known"
    stages = prepare(opened, model.model, model.config, 6, "bf16", room).graphs
    assert stages[1].profiles[1]["past"] >= ROOM
    target = Target(RTX, ((8, 9),))
    assert [len(list(at_sizes(stage))) for stage in stages] == [1, 4, 1, 1]
    for stage in stages:
        entry = find_engine(trt, opened, store, stage, "bf16", target)
        assert entry is not None and not list(entry.folder.glob("*.onnx*"))
    step = stages[-1]
    newer: Any = SimpleNamespace(__version__="1.8.0")
    assert find_engine(newer, opened, store, step, "bf16", target) is None
    assert find_engine(trt, opened, store, step, "fp16", target) is None
    assert find_engine(trt, opened, store, step, "bf16", Target(RTX, ((8, 6),))) is None
    other = StageGraph(replace(step.graph, inputs=step.graph.inputs[:-1]))
    assert find_engine(trt, opened, store, other, "bf16", target) is None
    assert find_engine(trt, opened, store, replace(stages[1], profiles=()), "bf16", target) is None
    key = engine_key(trt, opened, store, step, "bf16", replace(target, capabilities=BOTH))
    assert not {"versions", "torch"} & set(key), "a robot's machine has not what engines are built with"
    assert graph_key(opened, store.root, step.graph, kind="onnx") != key
    found = store.find(key)
    assert found is not None
    plan = found.folder / "engine.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    assert find_engine(trt, opened, store, step, "bf16", target) is None, "a damaged file is not loaded"
    plan.write_bytes(whole)


def fp16(tmp_path: Path) -> Iterator[StageGraph]:
    opened = checkpoint(tmp_path / "fp16", 1, seed=2)
    model = load_model(opened, CPU, torch.bfloat16)
    for stage in prepare(opened, model.model, model.config, 6, "fp16", 0).graphs:
        if stage.graph.stage != "decoder":  # which stays bfloat16
            assert {port.dtype for port in stage.graph.outputs} == {torch.float16}
            yield stage


def other_decoders(tmp_path: Path) -> Iterator[StageGraph]:
    kinds: list[dict[str, Any]] = [
        {"qk_norm_type": "olmo", "text_heads": 4, "text_kv_heads": 2, "text_layers": 1},
        {"qk_norm_type": None, "depth_reasoning": False, "text_layers": 1},
    ]
    for index, sizes in enumerate(kinds):
        opened = checkpoint(tmp_path / str(index), 1, seed=3, **sizes)
        model = load_model(opened, CPU, torch.bfloat16)
        yield prepare(opened, model.model, model.config, 6, "bf16", 0).graphs[1]


@pytest.mark.parametrize(("kinds", "capability"), [(fp16, (8, 6)), (other_decoders, (12, 1))])
def test_graphs_of_other_types_and_models_are_built(tmp_path: Path, kinds: Any, capability: Any) -> None:
    assert {*BOTH, (8, 6), (12, 1)} == set(RTX_CAPABILITIES)
    trt = tensorrt_module(RTX)
    for stage in kinds(tmp_path):
        export_graph(stage.graph, tmp_path / "graph.onnx")
        plan = tmp_path / "engine.plan"
        assert build_engine(trt, tmp_path / "graph.onnx", plan, stage, [capability], None) > 10
        assert plan.stat().st_size > 1000


def test_what_tensorrt_cannot_read_or_build_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    def value(name: str, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def graph(node: Any, path: Path, *shape: Any) -> Path:
        made = helper.make_graph([node], "g", [value("x", *shape)], [value("y", *shape)])
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
        save(helper.make_model(made, opset_imports=opsets), str(path))
        return path

    trt, port = tensorrt_module(RTX), (Port("x", ("rows", 2), torch.float32),)
    stage = StageGraph(Graph("g", torch.nn.Identity(), port, port, "g"))
    odd = graph(helper.make_node("MyOp", ["x"], ["y"], domain="own"), tmp_path / "odd.onnx", 2, 2)
    with pytest.raises(EngineError, match=r"odd\.onnx: TensorRT cannot read this graph: .*MyOp"):
        build_engine(trt, odd, tmp_path / "plan", stage, [(8, 9)], None)
    free = graph(helper.make_node("Neg", ["x"], ["y"]), tmp_path / "free.onnx", "rows", 2)
    with pytest.raises(EngineError, match=r"free\.onnx: TensorRT built no engine: .*profile"):
        build_engine(trt, free, tmp_path / "plan", stage, [(8, 9)], None)
    assert not (tmp_path / "plan").exists()
    build_engine(trt, free, tmp_path / "plan", replace(stage, profiles=({"rows": 2},)), [(8, 9)], None)
    assert (tmp_path / "plan").stat().st_size > 0


def test_without_a_gpu_it_must_be_said_what_to_build_for(opened: Checkpoint, store: EngineCache) -> None:
    with pytest.raises(BackendMissingError, match="--for sm89,sm120"):
        build_engines(opened, ROBOT, "bf16", 0, (), store, print)
