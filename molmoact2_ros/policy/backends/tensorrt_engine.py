"""TensorRT engines: built from exported graphs, read back, and run on torch's buffers.

Written against the documented Python API of TensorRT 10. It has not been run where this project is built: TensorRT
cannot be installed there. `molmoact2 compile --backend tensorrt --self-test` holds a real build against torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.policy.backends.buckets import Buffers
from molmoact2_ros.policy.backends.graphs import Graph

WORKSPACE = 4 << 30
"""Bytes that the builder may use for trials."""

INSTALL = "pip install tensorrt-cu12 (needs an NVIDIA GPU with its driver)"


class EngineError(RuntimeError):
    """TensorRT could not parse, build or load a graph."""


def tensorrt_module() -> Any:
    """The bindings.

    Raises:
        BackendMissingError: they are not installed, or their libraries cannot be loaded.
    """
    from molmoact2_ros.policy.options import BackendMissingError

    try:
        import tensorrt
    except ImportError as error:
        raise BackendMissingError(f"backend tensorrt is not installed ({error}); {INSTALL}") from error
    if not hasattr(tensorrt, "Builder"):
        raise BackendMissingError(f"the installed tensorrt cannot build engines (a lean runtime?); {INSTALL}")
    return tensorrt


def build_engine(trt: Any, onnx: Path, plan: Path, timings: Path) -> None:
    """Build the engine of the graph in `onnx` into the file `plan`.

    Types are the graph's own (a strongly typed network): what is bfloat16 in the graph is bfloat16 in the engine, and
    the norms that the reference computes in float32 stay float32.

    Args:
        timings: file of the timing cache, read and written: later builds try only what they have not tried.

    Raises:
        EngineError: with what TensorRT said.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        said = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise EngineError(f"{onnx.name}: TensorRT cannot read this graph: {said}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
    # A cache of another GPU is refused here, not used.
    config.set_timing_cache(cache, ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"{onnx.name}: TensorRT built no engine (its log above says why)")
    plan.write_bytes(bytes(serialized))
    part = timings.with_suffix(".part")
    part.write_bytes(bytes(config.get_timing_cache().serialize()))
    part.replace(timings)


class Engine:
    """One engine with its execution context."""

    def __init__(self, trt: Any, plan: Path, graph: Graph) -> None:
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(f"{plan}: TensorRT cannot load this engine; compile again on this machine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{plan}: no execution context; is the GPU's memory full?")
        found = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        wanted = {port.name for port in (*graph.inputs, *graph.outputs)}
        # An input that changes no output is left out of an engine.
        if not found <= wanted or not {port.name for port in graph.outputs} <= found:
            raise EngineError(f"{plan}: tensors {', '.join(sorted(found ^ wanted))} differ from the graph's")
        for port in (*graph.inputs, *graph.outputs):
            if port.name in found and tuple(self._engine.get_tensor_shape(port.name)) != port.shape:
                raise EngineError(
                    f"{plan}: {port.name} has shape {tuple(self._engine.get_tensor_shape(port.name))}, the graph has "
                    f"{port.shape}"
                )
        self._names = sorted(found)

    def run(self, buffers: Buffers, stream: int) -> None:
        """Enqueue on the CUDA `stream`, from and into `buffers` on the device, without a copy.

        Raises:
            EngineError: TensorRT refused.
        """
        for name in self._names:
            if not self._context.set_tensor_address(name, buffers[name].data_ptr()):
                raise EngineError(f"TensorRT refused the buffer of {name}")
        if not self._context.execute_async_v3(stream):
            raise EngineError("TensorRT could not enqueue the engine")


class EngineRunner:
    """Runs graphs by their engines, on torch's current stream."""

    def __init__(self, engine_of: Callable[[Graph], Engine], device: torch.device) -> None:
        self._engine_of, self._device = engine_of, device
        self._engines: dict[str, Engine] = {}

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        engine = self._engines.get(graph.name)
        if engine is None:
            engine = self._engines[graph.name] = self._engine_of(graph)
        engine.run(buffers, torch.cuda.current_stream(self._device).cuda_stream)
