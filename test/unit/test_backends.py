"""Which backend is chosen and why, what falls back and says so, and the calls that TensorRT gets.

TensorRT cannot be installed where these tests run. `FakeTensorRT` records the calls of its Python API that this project
makes and answers as documented; it computes nothing, so it shows their order and arguments and no more.
"""

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
from molmoact2_ros.policy.backends.tensorrt_engine import Engine, EngineError, EngineRunner, build_engine
from molmoact2_ros.policy.backends.tensorrt_operators import unsupported
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
    rows = compile_checkpoint(opened, robot, Request(), store, lambda *what: again.append(what))
    assert [graph for graph, doing in again if doing == "kept"] == ["vision_1", "decoder"], "what was done is kept"
    assert [row.graph for row in rows] == ["vision_1", "decoder", "context", "step"]
    assert all(row.cosine > 0.999999 and row.max_error < 1e-4 for row in rows)
    assert choose(opened, CPU, torch.float32, said.append) == "onnxruntime"
    assert choose(opened, CPU, torch.bfloat16, said.append) == "torch" and "float32" in said[-1]
    assert choose(opened, torch.device("cuda"), torch.bfloat16, said.append) == "torch"
    monkeypatch.setattr(amx, "reason_against", lambda: "")
    assert choose(opened, CPU, torch.float32, said.append) == "torch" and "AMX" in said[-1]


def test_what_is_not_there_is_named_with_what_to_do(opened: Checkpoint) -> None:
    with pytest.raises(BackendMissingError, match="pip install tensorrt"):
        open_stages("tensorrt", opened, CPU)
    with pytest.raises(BackendMissingError, match="runs on the CPU"):
        open_stages("onnxruntime", opened, torch.device("cuda"))
    with pytest.raises(ValueError, match="no stages"):
        open_stages("openvino", opened, CPU)
    with pytest.raises(ValueError, match="no precision 'fp16'; use float32"):
        Request(backend="onnxruntime", precision="fp16")
    with pytest.raises(ValueError, match="fp8 needs scales"):
        Request(backend="tensorrt", precision="fp8")
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


# -- TensorRT ----------------------------------------------------------------------------------------------------------


class FakeTensorRT:
    """See the module. `broken` makes one step fail as TensorRT reports it: parse, build, load, address or enqueue."""

    __version__ = "10.13.3"

    def __init__(self, broken: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.broken = broken
        self.Logger = SimpleNamespace
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.Builder = lambda logger: SimpleNamespace(
            create_network=lambda flags: self.note("network", flags) or "network",
            create_builder_config=self.config,
            build_serialized_network=lambda network, config: (
                self.note("build", network) or (None if broken == "build" else b"plan")
            ),
        )
        self.OnnxParser = lambda network, logger: SimpleNamespace(
            parse_from_file=lambda path: self.note("parse", Path(path).name) or broken != "parse",
            num_errors=1,
            get_error=lambda index: SimpleNamespace(desc=lambda: "no importer for Foo"),
        )
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=self.engine)

    def note(self, *what: Any) -> None:
        self.calls.append(what)

    def config(self) -> Any:
        timings = SimpleNamespace(serialize=lambda: b"timings")
        return SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: self.note("limit", pool, size),
            create_timing_cache=lambda blob: self.note("timings", blob) or timings,
            set_timing_cache=lambda cache, ignore_mismatch: self.note("cache", ignore_mismatch),
            get_timing_cache=lambda: timings,
        )

    def engine(self, plan: bytes) -> Any:
        self.note("load", plan)
        names = ["x", "y"] if self.broken != "names" else ["x", "z"]
        context = SimpleNamespace(
            set_tensor_address=lambda name, address: self.note("address", name, address) or self.broken != "address",
            execute_async_v3=lambda stream: self.note("enqueue", stream) or self.broken != "enqueue",
        )
        return (
            None
            if self.broken == "load"
            else SimpleNamespace(
                num_io_tensors=2,
                get_tensor_name=names.__getitem__,
                get_tensor_shape=lambda name: (2, 3) if self.broken != "shape" else (2, 4),
                create_execution_context=lambda: context,
            )
        )


def test_an_engine_is_built_strongly_typed_with_a_timing_cache_and_run_on_the_buffers(tmp_path: Path) -> None:
    trt, graph, plan = FakeTensorRT(), scaling(), tmp_path / "engine.plan"
    build_engine(trt, tmp_path / "graph.onnx", plan, tmp_path / "timings.cache")
    assert plan.read_bytes() == b"plan" and (tmp_path / "timings.cache").read_bytes() == b"timings"
    assert ("network", 1 << 1) in trt.calls and ("cache", False) in trt.calls and ("timings", b"") in trt.calls
    build_engine(trt, tmp_path / "graph.onnx", plan, tmp_path / "timings.cache")
    assert ("timings", b"timings") in trt.calls, "what was timed once is not timed again"
    buffers = make_buffers(graph, CPU)
    Engine(trt, plan, graph).run(buffers, 77)
    assert trt.calls[-3:] == [
        ("address", "x", buffers["x"].data_ptr()),
        ("address", "y", buffers["y"].data_ptr()),
        ("enqueue", 77),
    ]


@pytest.mark.parametrize(
    ("broken", "words"),
    [("parse", "no importer for Foo"), ("build", "built no engine"), ("load", "cannot load"), ("names", "differ from"),
     ("shape", r"shape \(2, 4\)"), ("address", "refused the buffer of x"), ("enqueue", "could not enqueue")],
)  # fmt: skip
def test_whatever_tensorrt_reports_is_an_error_with_its_reason(tmp_path: Path, broken: str, words: str) -> None:
    trt, graph, plan = FakeTensorRT(broken), scaling(), tmp_path / "engine.plan"
    with pytest.raises(EngineError, match=words):
        build_engine(trt, tmp_path / "graph.onnx", plan, tmp_path / "timings.cache")
        Engine(trt, plan, graph).run(make_buffers(graph, CPU), 0)


def test_each_graph_has_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ran = [], []

    def engine_of(graph: Graph) -> Any:
        made.append(graph.name)
        return SimpleNamespace(run=lambda buffers, stream: ran.append(stream))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    runner = EngineRunner(engine_of, CPU)
    for _ in range(3):
        runner.run(scaling(), {})
    assert made == ["scaled"] and ran == [5, 5, 5]


def test_operators_that_tensorrt_does_not_document_are_found(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    def value(name: str, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [2, 3])

    nodes = [
        helper.make_node("Clip", ["i"], ["a"]),
        helper.make_node("Det", ["x"], ["b"]),
        helper.make_node("MyOp", ["x"], ["c"], domain="own"),
        helper.make_node("ReduceSum", ["x", "axes"], ["d"]),
        helper.make_node("Add", ["x", "x"], ["e"]),
    ]
    inputs = [value("i", TensorProto.INT64), value("x", TensorProto.FLOAT)]
    inputs.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
    made = helper.make_graph(nodes, "g", inputs, [value("e", TensorProto.FLOAT)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    save(helper.make_model(made, opset_imports=opsets), str(tmp_path / "odd.onnx"))
    assert unsupported(tmp_path / "odd.onnx") == [
        "Clip of INT64",
        "Det is not in TensorRT's list",
        "ReduceSum with an input 1 that is computed",
        "opset 1 of own",
        "own:MyOp is no standard operator",
    ]
