"""The backend `tensorrt`: one engine a stage, built here for GPUs of any machine, and held against torch on its own."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import BucketError, ShapeBuckets, bucketed_stages
from molmoact2_ros.policy.backends.build import (
    Agreement,
    Say,
    as_facts,
    compare,
    engine_content,
    image_sample,
    ports_of,
)
from molmoact2_ros.policy.backends.cache import EngineCache, Entry
from molmoact2_ros.policy.backends.captured import CapturedRunner
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import Graph, context_graph, decoder_graph, step_graph, vision_graph
from molmoact2_ros.policy.backends.tensorrt_engine import (
    Built,
    Engine,
    EngineRunner,
    Scratch,
    Sizes,
    StageGraph,
    build_engine,
    port_shape,
)
from molmoact2_ros.policy.backends.tensorrt_library import (
    RTX,
    RTX_CAPABILITIES,
    Capability,
    Library,
    library_of,
    named,
    tensorrt_module,
)
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.options import BackendMissingError
from molmoact2_ros.policy.stages.stage_set import OpenStages, Stages, release, torch_stages

WINDOWS = (16, 32, 128)
"""Rows of a block behind known tokens. One row has no profile of its own: it would hold the weights a second time."""


@dataclass(frozen=True)
class Target:
    """What engines are for: a library, and the GPUs that they run on.

    Attributes:
        capabilities: of the GPUs. gpu: its name where the engine runs on the very kind that it is built on.
    """

    library: Library
    capabilities: tuple[Capability, ...]
    gpu: str = ""


def this_gpu(device: torch.device) -> Target | None:
    """The GPU that `device` is; None where it is none, or is not there.

    Raises:
        BackendMissingError: it is too old.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(device)
    own = (int(about.major), int(about.minor))
    library = library_of(own, torch.version.cuda or "", platform.machine() == "aarch64")
    return Target(library, (own,), "" if library.ahead else str(about.name))


def in_precision(model: Any, precision: str) -> None:
    """Bring the loaded bfloat16 `model` to `precision`: fp16 for images and flow only, whose values fit.

    The text model stays bfloat16 always: its prefill overflows in fp16.
    """
    if precision == "fp16":
        model.vision_backbone.half()
        model.action_expert.half()


def stage_graphs(
    stages: Stages, buckets: ShapeBuckets, horizon: int, pixels: torch.Tensor, table: torch.Tensor
) -> list[StageGraph]:
    """What every engine is built from: vision for one image, the text model at all of its sizes, context and step."""
    decoder = stages.decoder
    first: Sizes = {"rows": buckets.prompt, "past": 0, "outputs": min(buckets.prompt, buckets.outputs)}
    later: list[Sizes] = [{"rows": rows, "past": buckets.tokens, "outputs": rows} for rows in buckets.windows]
    width = decoder.kv_heads * decoder.head
    return [
        StageGraph(vision_graph(stages.vision, pixels, table)),
        StageGraph(decoder_graph(decoder, None, None, None), (first, *later)),
        StageGraph(context_graph(stages.flow, len(decoder.blocks), width, buckets.tokens)),
        StageGraph(step_graph(stages.flow, horizon, buckets.tokens)),
    ]


def engine_key(
    trt: Any, checkpoint: Checkpoint, store: EngineCache, stage: StageGraph, precision: str, target: Target
) -> dict[str, Any]:
    """What decides an engine: weights, the code of its stage, sizes, types, the library, and the GPUs."""
    return {
        "graph": stage.graph.stage,
        "kind": "tensorrt",
        "ports": ports_of(stage.graph),
        "profiles": list(stage.profiles),
        "precision": precision,
        "library": [target.library.name, str(trt.__version__)],
        "capabilities": [named(capability) for capability in target.capabilities],
        "gpu": target.gpu,
        **engine_content(checkpoint, store.root),
    }


def find_engine(
    trt: Any, checkpoint: Checkpoint, store: EngineCache, stage: StageGraph, precision: str, target: Target
) -> Entry | None:
    """The engine of a stage for the GPU of `target`, also where it was built for others besides."""
    (own,) = target.capabilities
    others = [capability for capability in RTX_CAPABILITIES if capability != own] if target.library.ahead else []
    for count in range(len(others) + 1):
        for more in itertools.combinations(others, count):
            wider = replace(target, capabilities=tuple(sorted((own, *more))))
            entry = store.find(engine_key(trt, checkpoint, store, stage, precision, wider))
            if entry is not None:
                return entry
    return None


@dataclass(frozen=True)
class Prepared:
    """A checkpoint's stages in torch on the CPU, and the graphs that its engines are built from."""

    stages: Stages
    buckets: ShapeBuckets
    image: tuple[torch.Tensor, torch.Tensor]
    graphs: list[StageGraph]


def prepare(checkpoint: Checkpoint, model: Any, config: Any, dof: int, precision: str, tokens: int) -> Prepared:
    """See `Prepared`.

    Args:
        model: the reference's inner model, bfloat16, on the CPU; it is brought to `precision`. tokens: as
            `buckets_for` takes it.
    """
    in_precision(model, precision)
    processor = load_processor(checkpoint.processor)
    buckets = buckets_for(checkpoint, config, processor, tokens, WINDOWS)
    image, stages = image_sample(processor), torch_stages(model, dof)
    return Prepared(stages, buckets, image, stage_graphs(stages, buckets, checkpoint.horizon, *image))


def _room_key(checkpoint: Checkpoint, store: EngineCache, precision: str) -> dict[str, Any]:
    return {"graph": "room", "kind": "tensorrt", "precision": precision, **engine_content(checkpoint, store.root)}


def room_of(checkpoint: Checkpoint, store: EngineCache, precision: str) -> int:
    """For how many tokens, at least, the engines in `store` were last asked to be; 0 for the usual room."""
    entry = store.find(_room_key(checkpoint, store, precision))
    return 0 if entry is None else int(entry.facts["tokens"])


def build_engines(
    checkpoint: Checkpoint,
    robot: Embodiment,
    precision: str,
    tokens: int,
    capabilities: tuple[Capability, ...],
    store: EngineCache,
    say: Say,
) -> tuple[dict[str, Built], list[Agreement]]:
    """Build the engines that are missing, and hold them against torch where this machine's GPU is one of theirs.

    Args:
        capabilities: the GPUs that they are for; empty: this machine's.

    Returns:
        What is known of each engine by stage, and how alike each graph is to torch, empty without such a GPU.

    Raises:
        BackendMissingError: the library is not installed, or it is not known what GPU to build for.
    """
    device = torch.device("cuda")
    here = this_gpu(device)
    target = Target(RTX, capabilities) if capabilities else here
    if target is None:
        raise BackendMissingError(
            "backend tensorrt: torch sees no GPU on this machine; name what GPU to build for, as in --for sm89,sm120"
        )
    trt = tensorrt_module(target.library)
    model = load_model(checkpoint, torch.device("cpu"), torch.bfloat16)
    prepared = prepare(checkpoint, model.model, model.config, robot.dof, precision, tokens)
    found: dict[str, Built] = {}
    for stage in prepared.graphs:
        entry = store.find(engine_key(trt, checkpoint, store, stage, precision, target))
        if entry is None:
            entry = _built(trt, stage, engine_key(trt, checkpoint, store, stage, precision, target), target, store, say)
            say(stage.graph.stage, "done")
        else:
            say(stage.graph.stage, "kept")
        found[stage.graph.stage] = Built(**entry.facts)
    if room_of(checkpoint, store, precision) != tokens:
        store.make(_room_key(checkpoint, store, precision), lambda folder: {"tokens": tokens})
    if here is None or not set(here.capabilities) <= set(target.capabilities):
        return found, []
    engines = opened_engines(trt, checkpoint, prepared, precision, here, device, store, say)
    return found, [row for _, rows in engines.values() for row in rows]


def _built(trt: Any, stage: StageGraph, key: Mapping[str, Any], target: Target, store: EngineCache, say: Say) -> Entry:
    def write(folder: Path) -> Mapping[str, Any]:
        start, name = time.perf_counter(), stage.graph.stage
        say(name, "exporting")
        onnx, plan = folder / "graph.onnx", folder / "engine.plan"
        export_graph(stage.graph, onnx)
        weights = weights_in(onnx)
        say(name, "building")
        ahead = target.library.ahead
        timings = None if ahead else store.root / f"timings-{trt.__version__}-{target.gpu.replace(' ', '_')}.cache"
        layers = build_engine(trt, onnx, plan, stage, target.capabilities if ahead else (), timings)
        for part in folder.glob("graph.onnx*"):
            part.unlink()
        return asdict(Built(layers, weights, plan.stat().st_size, round(time.perf_counter() - start, 2)))

    return store.make(key, write)


def weights_in(onnx: Path) -> int:
    """Bytes of the weights in an ONNX file."""
    import onnx as library

    graph = library.load(str(onnx), load_external_data=False).graph
    total = 0.0
    for tensor in graph.initializer:
        size = library.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for length in tensor.dims:
            size *= length
        total += size
    return int(total)


def at_sizes(stage: StageGraph) -> Iterator[Graph]:
    """The graph of a stage at each of its profiles."""
    for sizes in stage.profiles or ({},):
        inputs, outputs = (
            tuple(replace(port, shape=port_shape(port, sizes)) for port in ports)
            for ports in (stage.graph.inputs, stage.graph.outputs)
        )
        name = "_".join([stage.graph.stage, *(str(size) for size in sizes.values())])
        yield replace(stage.graph, name=name, inputs=inputs, outputs=outputs)


def opened_engines(
    trt: Any,
    checkpoint: Checkpoint,
    prepared: Prepared,
    precision: str,
    target: Target,
    device: torch.device,
    store: EngineCache,
    say: Say,
) -> dict[str, tuple[Engine, list[Agreement]]]:
    """Every engine of a checkpoint on the GPU, held against torch on it before its first use there.

    Raises:
        BucketError: an engine is missing.
        ParityError: an engine differs from torch; it is not used.
    """
    scratch = Scratch(device)
    found = {}
    for stage in prepared.graphs:
        name = stage.graph.stage
        entry = find_engine(trt, checkpoint, store, stage, precision, target)
        if entry is None:
            (own,) = target.capabilities
            ahead = f" --for sm{own[0]}{own[1]}" if target.library.ahead else ""
            raise BucketError(
                f"no engine {name} for this checkpoint, GPU and {target.library.name} {trt.__version__}; run molmoact2 "
                f"compile --backend tensorrt --precision {precision}{ahead} --checkpoint {checkpoint.directory}"
            )
        plan = entry.folder / "engine.plan"
        gpu = [torch.cuda.get_device_name(device), *(named(own) for own in target.capabilities)]
        runtime = store.root / f"runtime-{entry.folder.name}-{gpu[-1]}.cache" if target.library.ahead else None
        engine = Engine(trt, plan, stage.graph, runtime, scratch)
        key = {"graph": f"verified_{name}", "plan": store.hash_of(plan), "gpu": gpu}
        seen = store.find(key)
        if seen is None:
            say(name, "verifying")

            def verify(folder: Path, engine: Engine = engine, stage: StageGraph = stage) -> Mapping[str, Any]:
                return {graph.name: as_facts(_compared(engine, graph, device)) for graph in at_sizes(stage)}

            seen = store.make(key, verify)
            say(name, "done")
        found[name] = (engine, [Agreement(graph, **facts) for graph, facts in seen.facts.items()])
    return found


def _compared(engine: Engine, graph: Graph, device: torch.device) -> Agreement:
    context: Any = None

    def run(inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        nonlocal context
        stream = torch.cuda.current_stream(device).cuda_stream
        context = context or engine.context(graph, stream)
        context.bind({**inputs, **outputs})
        context.enqueue(stream)
        torch.cuda.synchronize(device)

    found = compare(graph, run, device)
    engine.keep()
    return found


def tensorrt_stages(
    checkpoint: Checkpoint, device: torch.device, precision: str, store: EngineCache, log: Callable[[str], None]
) -> OpenStages:
    """Stages over the engines in `store`, captured as CUDA graphs. The model that they are opened for must be on the
    CPU: its layers' weights never get to the GPU, all else of it does.

    Raises:
        BackendMissingError: the library is not installed, or the device is no GPU.
    """
    target = this_gpu(device)
    if target is None:
        raise BackendMissingError(
            f"backend tensorrt runs on an NVIDIA GPU, the device is {device}; to build engines for another machine run "
            "molmoact2 compile --backend tensorrt --for sm89"
        )
    trt = tensorrt_module(target.library)

    def say(stage: str, doing: str) -> None:
        if doing == "verifying":
            log(f"tensorrt: the engine {stage} is compiled for this GPU and held against torch, once")

    def opened(model: Any, dof: int) -> Stages:
        room = room_of(checkpoint, store, precision)
        prepared = prepare(checkpoint, model, model.config, dof, precision, room)
        engines = opened_engines(trt, checkpoint, prepared, precision, target, device, store, say)
        release(model.vision_backbone, prepared.stages.decoder.blocks)
        model.to(device)
        runner = CapturedRunner(EngineRunner(lambda name: engines[name][0], device), device, log)
        made = bucketed_stages(model, dof, prepared.buckets, runner, None, prepared.image)
        release(made.flow.expert)
        return made

    return opened
