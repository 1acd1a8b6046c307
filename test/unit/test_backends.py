"""Which backend is chosen and why, and what falls back and says so."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from parity_cases import CPU, checkpoint

from molmoact2_ros.policy import Checkpoint
from molmoact2_ros.policy.backends import amx
from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import BucketError, EagerRunner, ShapeBuckets, bucketed_stages, make_buffers
from molmoact2_ros.policy.backends.build import ParityError, as_facts, compare
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.captured import CapturedRunner, CompiledRunner
from molmoact2_ros.policy.backends.compiling import Request, compile_checkpoint
from molmoact2_ros.policy.backends.graphs import Graph, Port
from molmoact2_ros.policy.backends.opening import choose, open_stages
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.options import BackendMissingError, InferenceOptions
from molmoact2_ros.policy.stages.stage_set import torch_stages


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("backends"), 2, seed=1)


@pytest.fixture(scope="module")
def model(opened: Checkpoint) -> Any:
    return load_model(opened, CPU, torch.float32)


class Scaled(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def scaling(by: float = 2.0) -> Graph:
    return Graph("scaled", Scaled(by), (Port("x", (2, 3), torch.float32),), (Port("y", (2, 3), torch.float32),))


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_auto_is_onnxruntime_once_the_checkpoint_is_compiled(
    opened: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLMOACT2_CACHE", str(tmp_path))
    monkeypatch.setattr(amx, "reason_against", lambda: "no such unit")
    said: list[str] = []
    assert choose(opened, CPU, torch.float32, said.append) == "torch"
    assert "not compiled" in said[-1] and "molmoact2 compile" in said[-1]
    built: list[tuple[str, str]] = []

    def say(graph: str, doing: str) -> None:
        built.append((graph, doing))
        if graph == "context" and doing == "exporting":
            raise KeyboardInterrupt

    store = EngineCache(tmp_path, said.append)
    robot = SimpleNamespace(dof=6)
    with pytest.raises(KeyboardInterrupt):
        compile_checkpoint(opened, robot, Request(), store, say)
    assert choose(opened, CPU, torch.float32, said.append) == "torch", "half of the graphs are not enough"
    again: list[tuple[str, str]] = []
    _, rows = compile_checkpoint(opened, robot, Request(), store, lambda *what: again.append(what))
    assert [graph for graph, doing in again if doing == "kept"] == ["vision_1", "decoder"], "what was done is kept"
    assert [row.graph for row in rows] == ["vision_1", "decoder", "context", "step"]
    assert all(row.cosine > 0.999999 and row.max_error < 1e-4 for row in rows)
    assert choose(opened, CPU, torch.float32, said.append) == "onnxruntime"
    assert choose(opened, CPU, torch.bfloat16, said.append) == "torch" and "float32" in said[-1]
    assert choose(opened, torch.device("cuda"), torch.bfloat16, said.append) == "torch"
    monkeypatch.setattr(amx, "reason_against", lambda: "")
    assert choose(opened, CPU, torch.float32, said.append) == "torch" and "AMX" in said[-1]


def test_what_is_not_there_is_named_with_what_to_do(opened: Checkpoint) -> None:
    with pytest.raises(BackendMissingError, match=r"runs on an NVIDIA GPU.*--for sm89"):
        open_stages("tensorrt", opened, CPU)
    with pytest.raises(BackendMissingError, match="runs on the CPU"):
        open_stages("onnxruntime", opened, torch.device("cuda"))
    with pytest.raises(ValueError, match="no stages"):
        open_stages("openvino", opened, CPU)
    with pytest.raises(ValueError, match="no precision 'fp16'; use float32"):
        Request(backend="onnxruntime", precision="fp16")
    with pytest.raises(ValueError, match="fp8 is not built"):
        Request(backend="tensorrt", precision="fp8")
    with pytest.raises(ValueError, match="--for names GPUs"):
        Request(backend="onnxruntime", targets=("sm89",))
    with pytest.raises(ValueError, match="built ahead for sm86, sm89, sm120, sm121, not for 'sm90'"):
        Request(backend="tensorrt", targets=("sm89", "sm90"))
    with pytest.raises(ValueError, match="needs no compiling"):
        Request(backend="torch")


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_a_graph_that_differs_is_refused() -> None:
    graph = scaling()

    def wrong(inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        outputs["y"].copy_(inputs["x"] * torch.tensor([2.0, 2.0, 1.0]))

    def infinite(inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        outputs["y"].fill_(float("inf"))

    for run in (wrong, infinite):
        with pytest.raises(ParityError, match="this graph is not used"):
            as_facts(compare(graph, run))
    good = compare(graph, lambda inputs, outputs: outputs["y"].copy_(inputs["x"] * 2))
    assert as_facts(good)["max_error"] == 0.0 and good.cosine == pytest.approx(1.0)


# -- falling back ------------------------------------------------------------------------------------------------------


def test_cuda_graphs_without_a_gpu_fall_back_with_the_reason(opened: Checkpoint, model: Any) -> None:
    said: list[str] = []
    stages = open_stages("torch", opened, CPU, InferenceOptions(cuda_graphs=True), log=said.append)(model.model, 6)
    assert type(stages.decoder) is type(torch_stages(model.model, 6).decoder)
    assert len(said) == 1 and "no CUDA graphs: the device is cpu" in said[0]
    graph = scaling()
    buffers = make_buffers(graph, CPU)
    buffers["x"].fill_(3.0)
    CapturedRunner(EagerRunner(), CPU, said.append).run(graph, buffers)
    assert torch.equal(buffers["y"], torch.full((2, 3), 6.0))


def test_a_capture_that_fails_leaves_the_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    runner = CapturedRunner(EagerRunner(), CPU, said.append)
    runner.reason = ""  # as on a GPU; capturing then fails, since there is none
    graph = scaling()
    for value in (1.0, 5.0):
        buffers = make_buffers(graph, CPU)
        buffers["x"].fill_(value)
        runner.run(graph, buffers)
        assert torch.equal(buffers["y"], torch.full((2, 3), 2 * value))
    assert len(said) == 2 and "capturing scaled failed" in said[1] and "capturing scaled failed" in runner.reason


def test_a_graph_that_does_not_compile_runs_eagerly() -> None:
    said: list[str] = []

    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x  # depends on values: no whole graph

    graph = Graph("branching", Branching(), scaling().inputs, scaling().outputs)
    runner = CompiledRunner(said.append, backend="eager")
    for value in (1.0, 4.0):
        buffers = make_buffers(graph, CPU)
        buffers["x"].fill_(value)
        runner.run(graph, buffers)
        assert torch.equal(buffers["y"], torch.full((2, 3), 2 * value))
    assert len(said) == 1 and said[0].startswith("branching is not compiled")


def test_longer_than_the_buckets_is_an_error_or_runs_without_them(model: Any) -> None:
    buckets = ShapeBuckets(prompt=8, tokens=16, windows=(1, 4))
    strict = bucketed_stages(model.model, 6, buckets, EagerRunner()).decoder
    rows = torch.randn(12, strict.ln_f.weight.shape[0])
    with pytest.raises(BucketError, match=r"may need 40 tokens.*--tokens"):
        strict.new_store(40)
    with pytest.raises(BucketError, match="a prompt of 12 tokens"):
        strict(rows, strict.new_store(16), None, 1)
    said: list[str] = []
    loose = bucketed_stages(model.model, 6, buckets, EagerRunner(), said.append).decoder
    plain = torch_stages(model.model, 6).decoder
    with torch.inference_mode():
        expected = plain(rows, plain.new_store(40), None, 2)
        torch.testing.assert_close(loose(rows, loose.new_store(40), None, 2), expected)
        torch.testing.assert_close(loose(rows, loose.new_store(16), None, 2), expected)
    assert len(said) == 1 and "without them" in said[0]


def test_buckets_have_room_for_the_prompt_and_a_whole_depth_sequence(opened: Checkpoint, model: Any) -> None:
    processor = load_processor(opened.directory)
    usual = buckets_for(opened, model.config, processor, 0)
    assert usual.prompt % 64 == 0 and usual.tokens % 64 == 0 and usual.tokens >= usual.prompt + 9
    wide = buckets_for(opened, model.config, processor, 600)
    assert wide.tokens >= 600 and wide.prompt > usual.prompt
