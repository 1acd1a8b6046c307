"""Which TensorRT a GPU takes, and how its engines are loaded and run: what needs no driver, and what a stand-in shows.

Pins: the package to install for each GPU, CUDA and processor; an engine whose tensors, sizes or types are not the
graph's is refused; a context a set of sizes; TensorRT's own words in every error; names that the real library has.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tensorrt_stand_in import FakeTensorRT

from molmoact2_ros.policy.backends import tensorrt_engine, tensorrt_library
from molmoact2_ros.policy.backends.buckets import BucketError
from molmoact2_ros.policy.backends.graphs import Graph, Port
from molmoact2_ros.policy.backends.tensorrt_engine import Engine, EngineError, EngineRunner, Scratch
from molmoact2_ros.policy.backends.tensorrt_library import RTX, library_of, parse_capabilities, tensorrt_module
from molmoact2_ros.policy.options import BackendMissingError

FLOAT = torch.float32
FREE = Graph(
    "rows",
    torch.nn.Identity(),
    (Port("x", ("rows", 3), FLOAT), Port("past", ("past", 3), FLOAT), Port("w", (2,), FLOAT)),
    (Port("y", ("rows", 3), FLOAT),),
    "rows",
)
TENSORS = {
    "x": ((-1, 3), "FLOAT"),
    "past": ((-1, 3), "FLOAT"),
    "w": ((2,), "FLOAT"),
    "y": ((-1, 3), "FLOAT"),
}
PROFILES = [{"x": (5, 3), "past": (0, 3)}, {"x": (2, 3), "past": (7, 3)}]


def sized(rows: int, past: int) -> Graph:
    inputs = [Port("x", (rows, 3), FLOAT), Port("w", (2,), FLOAT)]
    inputs += [Port("past", (past, 3), FLOAT)] if past else []
    return Graph(f"rows_{rows}", FREE.module, tuple(inputs), (Port("y", (rows, 3), FLOAT),), "rows")


@pytest.mark.parametrize(
    ("capability", "cuda", "arm", "name", "install"),
    [
        ((8, 9), "13.0", False, "TensorRT for RTX", "tensorrt_rtx_cu13_libs"),
        ((12, 0), "12.8", False, "TensorRT for RTX", "tensorrt_rtx_cu13_libs"),
        ((9, 0), "13.0", False, "TensorRT", "pip install 'tensorrt-cu13>=10.13'"),
        ((8, 0), "12.8", False, "TensorRT", "pip install 'tensorrt-cu12>=10.13'"),
        ((8, 7), "12.6", True, "TensorRT", "of JetPack"),
        ((11, 0), "13.0", True, "TensorRT", "of JetPack"),
        ((10, 0), "13.0", True, "TensorRT", "pip install 'tensorrt-cu13>=10.13'"),
    ],
)
def test_each_gpu_has_its_library(capability: Any, cuda: str, arm: bool, name: str, install: str) -> None:
    library = library_of(capability, cuda, arm)
    assert library.name == name and install in library.install


def test_a_gpu_without_bfloat16_is_refused() -> None:
    with pytest.raises(BackendMissingError, match=r"8\.0 or more; this one has 7\.5"):
        library_of((7, 5))


def test_capabilities_are_read_as_people_write_them() -> None:
    assert parse_capabilities(("sm120", "8.9", "SM_86", "sm89")) == ((8, 6), (8, 9), (12, 0))
    for wrong in ("sm90", "ada", "sm8", ""):
        with pytest.raises(ValueError, match="built ahead for"):
            parse_capabilities((wrong,))


def test_what_is_missing_lean_or_old_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = library_of((9, 0), "13.0")
    with pytest.raises(BackendMissingError, match=r"TensorRT is not installed .*pip install 'tensorrt-cu13"):
        tensorrt_module(hopper)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3"))
    with pytest.raises(BackendMissingError, match="lean runtime"):
        tensorrt_module(hopper)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0", Builder=None))
    with pytest.raises(BackendMissingError, match=r"tensorrt 10\.9\.0 is too old, 10\.13"):
        tensorrt_module(hopper)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0", Builder=None))
    assert tensorrt_module(hopper).__version__ == "11.4.0"


def test_every_name_that_is_called_is_in_the_real_library() -> None:
    trt = tensorrt_module(RTX)
    text = Path(tensorrt_engine.__file__).read_text()
    for name in set(re.findall(r"\btrt\.(\w+(?:\.[A-Z]\w+)*)", text)):
        found: Any = trt
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)
    owners = {
        trt.IRuntimeConfig: (
            "set_execution_context_allocation_strategy",
            "create_runtime_cache",
            "set_runtime_cache",
        ),
        trt.IRuntimeCache: ("serialize", "deserialize"),
        trt.ICudaEngine: (
            "create_runtime_config",
            "create_execution_context",
            "num_io_tensors",
            "num_optimization_profiles",
            "device_memory_size_v2",
            "get_tensor_name",
            "get_tensor_shape",
            "get_tensor_dtype",
            "get_tensor_profile_shape",
        ),
        trt.IExecutionContext: (
            "set_device_memory",
            "set_optimization_profile_async",
            "set_input_shape",
            "set_tensor_address",
            "execute_async_v3",
        ),
    }
    for owner, names in owners.items():
        for name in names:
            assert hasattr(owner, name) and f".{name}" in text, name
    assert set(tensorrt_engine.TYPES) <= set(trt.DataType.__members__)
    for major, minor in tensorrt_library.RTX_CAPABILITIES:
        assert hasattr(trt.ComputeCapability, f"SM{major}{minor}")


# -- loading and running, by the stand-in ------------------------------------------------------------------------------


def opened(trt: FakeTensorRT, folder: Path, cache: bool = True, graph: Graph = FREE) -> Engine:
    folder.joinpath("engine.plan").write_bytes(b"plan")
    runtime = folder / "runtime.cache" if cache else None
    return Engine(trt, folder / "engine.plan", graph, runtime, lambda size: 4096)


def test_a_context_a_set_of_sizes_shares_memory_and_keeps_what_was_compiled(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    trt = FakeTensorRT(TENSORS, PROFILES)
    asked: list[str] = []

    def engine_of(stage: str) -> Engine:
        asked.append(stage)
        return opened(trt, tmp_path)

    runner = EngineRunner(engine_of, torch.device("cpu"))
    later, first = sized(2, 7), sized(5, 0)
    for graph in (later, first):
        buffers = {port.name: torch.zeros(*port.shape) for port in (*graph.inputs, *graph.outputs)}
        trt.calls.clear()
        runner.run(graph, buffers)
        index = 0 if graph is first else 1
        assert ("profile", index, 77) in trt.calls and ("device memory", 4096, 1000) in trt.calls
        assert {call[1:] for call in trt.calls if call[0] == "shape"} == set(PROFILES[index].items())
        bound = dict(call[1:] for call in trt.calls if call[0] == "address")
        assert bound == {name: buffers[name].data_ptr() if name in buffers else 4096 for name in TENSORS}
        assert trt.calls[-1] == ("enqueue", 77)
        trt.calls.clear()
        runner.run(graph, buffers)
        assert trt.calls == [("enqueue", 77)], "once bound, a run is one call"
    assert asked == ["rows"], "one engine, and so one copy of its weights, for all sizes"
    assert (tmp_path / "runtime.cache").read_bytes() == b"compiled"
    trt.calls.clear()
    opened(trt, tmp_path)
    assert ("read cache", b"compiled") in trt.calls and ("cache", True) in trt.calls
    assert ("memory", "user") in trt.calls


def test_without_a_runtime_cache_contexts_are_made_as_tensorrt_takes_it(tmp_path: Path) -> None:
    trt = FakeTensorRT(TENSORS, PROFILES)
    engine = opened(trt, tmp_path, cache=False)
    engine.context(sized(2, 7), 0)
    assert ("context", "user") in trt.calls
    engine.keep()
    assert not (tmp_path / "runtime.cache").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("x", ((-1, 4), "FLOAT"), r"x has shape \(-1, 4\), the graph has \(-1, 3\)"),
        ("w", ((-1,), "FLOAT"), r"w has shape \(-1,\), the graph has \(2,\)"),
        ("x", ((-1, 3), "HALF"), "x holds torch.float16, the graph has torch.float32"),
        ("y", ((-1, 3), "FP8"), "y holds None"),
        ("z", ((2,), "FLOAT"), "tensors z differ"),
    ],
)
def test_an_engine_that_is_not_the_graphs_is_refused(tmp_path: Path, name: str, tensor: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        opened(FakeTensorRT({**TENSORS, name: tensor}, PROFILES), tmp_path)


def test_sizes_that_an_engine_was_not_made_for_are_refused(tmp_path: Path) -> None:
    engine = opened(FakeTensorRT(TENSORS, PROFILES), tmp_path)
    for graph in (sized(2, 6), sized(2, 0), sized(5, 7)):
        with pytest.raises(BucketError, match="was not made for"):
            engine.context(graph, 0)
    fixed = {name: (PROFILES[1].get(name, shape), kind) for name, (shape, kind) in TENSORS.items()}
    fixed["y"] = ((2, 3), "FLOAT")
    engine = opened(FakeTensorRT(fixed, []), tmp_path, graph=sized(2, 7))
    engine.context(sized(2, 7), 0)
    with pytest.raises(BucketError, match="was not made for"):
        engine.context(sized(3, 7), 0)


@pytest.mark.parametrize("broken", ["load", "context", "profile", "shape", "address", "enqueue"])
def test_whatever_tensorrt_refuses_is_an_error(tmp_path: Path, broken: str) -> None:
    trt, graph = FakeTensorRT(TENSORS, PROFILES, broken), sized(2, 7)
    with pytest.raises(EngineError) as caught:
        context = opened(trt, tmp_path).context(graph, 0)
        context.bind({port.name: torch.zeros(*port.shape) for port in (*graph.inputs, *graph.outputs)})
        context.enqueue(0)
    if broken in ("load", "context"):
        assert f"no {broken} today" in str(caught.value) and "warning" not in str(caught.value)


def test_memory_that_was_given_out_stays_where_it_is() -> None:
    scratch = Scratch(torch.device("cpu"))
    first = scratch(100)
    assert scratch(1) == first and scratch(10_000) != first
    assert len(scratch._parts) == 2
