"""Engines of TensorRT and TensorRT for RTX: built from exported graphs, read back, and run on torch's buffers.

A stage is one engine, so that its weights are there once, with an optimisation profile and an execution context for
each set of sizes. Building is run where this project is built, by TensorRT for RTX; loading and running need a GPU's
driver, and are held there against a stand-in for their calls only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.policy.backends.buckets import BucketError, Buffers
from molmoact2_ros.policy.backends.graphs import Graph, Port
from molmoact2_ros.policy.backends.tensorrt_library import Capability

WORKSPACE = 4 << 30
"""Bytes that the builder of TensorRT may use for trials on the GPU."""

TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
}
"""TensorRT's names of the types that graphs have at their ends."""

Sizes = dict[str, int]
"""What the named sizes of a graph are in one profile."""


class EngineError(RuntimeError):
    """TensorRT could not parse, build or load a graph."""


@dataclass(frozen=True)
class StageGraph:
    """What one engine is built from: a graph, and the sizes that it is to run at; none where they are all fixed."""

    graph: Graph
    profiles: tuple[Sizes, ...] = ()


@dataclass(frozen=True)
class Built:
    """What is known of an engine: layers of its network, bytes of the weights in it and of the file, seconds taken."""

    layers: int
    weights: int
    bytes: int
    seconds: float


def port_shape(port: Port, sizes: Sizes) -> tuple[int, ...]:
    """The sizes of `port` where the named ones are `sizes`; keys are past and new rows together."""
    known = {**sizes, "keys": sizes.get("rows", 0) + sizes.get("past", 0)}
    return tuple(known[size] if isinstance(size, str) else size for size in port.shape)


def logger_of(trt: Any) -> Any:
    """A logger that keeps warnings and errors for the exception's words: `lines`."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.lines.append(message.strip())

    return Kept()


def build_engine(
    trt: Any, onnx: Path, plan: Path, stage: StageGraph, capabilities: Sequence[Capability], timings: Path | None
) -> int:
    """Build the engine of the graph in `onnx` into the file `plan`, and return how many layers its network has.

    Types are the graph's own: what is bfloat16 in the graph is bfloat16 in the engine, and the norms that the reference
    computes in float32 stay float32.

    Args:
        capabilities: GPUs that TensorRT for RTX builds for; empty for TensorRT, which builds for this machine's.
        timings: file of TensorRT's timing cache, read and written: later builds try only what they have not tried.

    Raises:
        EngineError: with what TensorRT said.
    """
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    # Zero in newer versions, where every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        said = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise EngineError(f"{onnx.name}: TensorRT cannot read this graph: {_words([*said, *logger.lines])}")
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, (major, minor) in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
        # Without it what an engine allocates while it runs cannot be captured in a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    else:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    for sizes in stage.profiles:
        profile = builder.create_optimization_profile()
        for port in stage.graph.inputs:
            if any(isinstance(size, str) for size in port.shape):
                shape = port_shape(port, sizes)
                profile.set_shape(port.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    if timings is not None:
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        # A cache of another GPU is refused here, not used.
        config.set_timing_cache(cache, ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f"{onnx.name}: TensorRT built no engine: {_words(logger.lines)}")
    plan.write_bytes(memoryview(serialized))
    known = None if timings is None else config.get_timing_cache()
    if timings is not None and known is not None:
        part = timings.with_suffix(".part")
        part.write_bytes(memoryview(known.serialize()))
        part.replace(timings)
    return int(network.num_layers)


def _words(lines: Sequence[str]) -> str:
    return "; ".join(lines) or "it gave no reason"


class Engine:
    """One engine with its weights on the GPU, and a context for each of its profiles that is used.

    Args:
        runtime_cache: file of what TensorRT for RTX compiled on this GPU, read and written; None for TensorRT.
        scratch: gives the address of at least so many bytes on the GPU: contexts run in turn and share them.
    """

    def __init__(
        self, trt: Any, plan: Path, graph: Graph, runtime_cache: Path | None, scratch: Callable[[int], int]
    ) -> None:
        self._trt, self._plan, self._graph, self._scratch = trt, plan, graph, scratch
        self._cache_file = runtime_cache
        self._logger = logger_of(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{plan}: TensorRT cannot load this engine ({_words(self._logger.lines)}); compile again for this GPU"
            )
        self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._check()
        self._config: Any = None
        self._cache: Any = None
        if runtime_cache is not None:
            self._config = self._engine.create_runtime_config()
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._config.set_execution_context_allocation_strategy(strategy)
            self._cache = self._config.create_runtime_cache()
            if runtime_cache.is_file():
                # Of another driver or GPU it is refused, and made anew.
                self._cache.deserialize(runtime_cache.read_bytes())
            self._config.set_runtime_cache(self._cache)

    def _check(self) -> None:
        """The engine's tensors against the graph's.

        Raises:
            EngineError: they differ.
        """
        ports = {port.name: port for port in (*self._graph.inputs, *self._graph.outputs)}
        # An input that changes no output is left out of an engine.
        if not set(self._names) <= set(ports) or not {port.name for port in self._graph.outputs} <= set(self._names):
            differ = ", ".join(sorted(set(self._names) ^ set(ports)))
            raise EngineError(f"{self._plan}: tensors {differ} differ from the graph's")
        for name in self._names:
            port = ports[name]
            shape = tuple(self._engine.get_tensor_shape(name))
            wanted = tuple(-1 if isinstance(size, str) else size for size in port.shape)
            if shape != wanted:
                raise EngineError(f"{self._plan}: {name} has shape {shape}, the graph has {wanted}")
            kind = TYPES.get(str(self._engine.get_tensor_dtype(name)).rpartition(".")[2])
            if kind != port.dtype:
                raise EngineError(f"{self._plan}: {name} holds {kind}, the graph has {port.dtype}")

    def context(self, graph: Graph, stream: int) -> Context:
        """A context for the sizes of `graph`.

        Raises:
            BucketError: the engine was not made for them.
            EngineError: TensorRT refused.
        """
        given = {port.name: tuple(port.shape) for port in graph.inputs}
        free = [port for port in self._graph.inputs if any(isinstance(size, str) for size in port.shape)]
        free = [port for port in free if port.name in self._names]
        shapes: dict[str, tuple[int, ...]] = {}
        index = 0
        if free:
            for index in range(self._engine.num_optimization_profiles):
                shapes = {port.name: tuple(self._engine.get_tensor_profile_shape(port.name, index)[1]) for port in free}
                # An input that the graph has not is one without rows: keys and values before the first token.
                if all(given[name] == shape if name in given else 0 in shape for name, shape in shapes.items()):
                    break
            else:
                raise BucketError(f"the engine {self._plan.parent.name} was not made for {graph.name}; compile again")
        fixed = {port.name: tuple(port.shape) for port in self._graph.inputs if port not in free}
        if any(given.get(name) != shape for name, shape in fixed.items() if name in self._names):
            raise BucketError(f"the engine {self._plan.parent.name} was not made for {graph.name}; compile again")
        made = self._new_context()
        if made is None:
            raise EngineError(f"{self._plan}: no execution context ({_words(self._logger.lines)}); is memory full?")
        size = int(self._engine.device_memory_size_v2)
        made.set_device_memory(self._scratch(size), size)
        if shapes and not made.set_optimization_profile_async(index, stream):
            raise EngineError(f"{self._plan}: TensorRT refused profile {index}")
        for name, shape in shapes.items():
            if not made.set_input_shape(name, shape):
                raise EngineError(f"{self._plan}: TensorRT refused {name} of shape {shape}")
        return Context(made, self._names, self._scratch(1))

    def _new_context(self) -> Any:
        if self._config is not None:
            return self._engine.create_execution_context(self._config)
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def keep(self) -> None:
        """Write what was compiled on this GPU to the file of the runtime cache."""
        if self._cache is not None and self._cache_file is not None:
            part = self._cache_file.with_suffix(".part")
            part.write_bytes(memoryview(self._cache.serialize()))
            part.replace(self._cache_file)


class Context:
    """An engine at one set of sizes, bound to one set of buffers."""

    def __init__(self, context: Any, names: Sequence[str], somewhere: int) -> None:
        self._context, self._names, self._somewhere = context, names, somewhere

    def bind(self, buffers: Buffers) -> None:
        """Read from and write into `buffers` from now on; what they lack has no rows, and lies anywhere.

        Raises:
            EngineError: TensorRT refused a buffer.
        """
        for name in self._names:
            # Without rows a tensor has no address, and TensorRT wants one.
            address = buffers[name].data_ptr() if name in buffers else 0
            address = address or self._somewhere
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT refused the buffer of {name}")

    def enqueue(self, stream: int) -> None:
        """Enqueue on the CUDA `stream`, without a copy.

        Raises:
            EngineError: TensorRT refused.
        """
        if not self._context.execute_async_v3(stream):
            raise EngineError("TensorRT could not enqueue the engine")


class EngineRunner:
    """Runs graphs by the engines of their stages, on torch's current stream.

    Args:
        engine_of: opens the engine of a stage, by name.
    """

    def __init__(self, engine_of: Callable[[str], Engine], device: torch.device) -> None:
        self._engine_of, self._device = engine_of, device
        self._engines: dict[str, Engine] = {}
        self._contexts: dict[str, Context] = {}

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        stream = torch.cuda.current_stream(self._device).cuda_stream
        context = self._contexts.get(graph.key)
        if context is not None:
            context.enqueue(stream)
            return
        engine = self._engines.get(graph.stage)
        if engine is None:
            engine = self._engines[graph.stage] = self._engine_of(graph.stage)
        context = engine.context(graph, stream)
        context.bind(buffers)
        context.enqueue(stream)
        # Compiled for this GPU by now, at the latest: kept for the next start. Never while a CUDA graph is captured.
        torch.cuda.synchronize(self._device)
        engine.keep()
        self._contexts[graph.key] = context


class Scratch:
    """Memory on the device that all contexts share: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[torch.Tensor] = []

    def __call__(self, size: int) -> int:
        """The address of at least `size` bytes. What was given before stays where it is."""
        if not self._parts or self._parts[-1].numel() < size:
            self._parts.append(torch.empty(max(size, 256), dtype=torch.uint8, device=self._device))
        return self._parts[-1].data_ptr()
