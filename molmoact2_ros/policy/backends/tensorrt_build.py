"""The backend `tensorrt`: which engines a checkpoint needs, built, held against torch, kept, and run as stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import BucketError, ShapeBuckets, bucket_graph, bucketed_stages
from molmoact2_ros.policy.backends.build import Agreement, Say, as_facts, compare, graph_key, image_sample
from molmoact2_ros.policy.backends.cache import EngineCache
from molmoact2_ros.policy.backends.captured import CapturedRunner
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import Graph, context_graph, step_graph, vision_graph
from molmoact2_ros.policy.backends.tensorrt_engine import Engine, EngineRunner, build_engine, tensorrt_module
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.options import BackendMissingError
from molmoact2_ros.policy.stages.stage_set import OpenStages, Stages, torch_stages


def in_precision(model: Any, precision: str) -> None:
    """Bring the loaded bfloat16 `model` to `precision`: fp16 for images and flow only, whose values fit.

    The text model stays bfloat16 always: its prefill overflows in fp16.
    """
    if precision == "fp16":
        model.vision_backbone.half()
        model.action_expert.half()


def needed_graphs(
    stages: Stages, buckets: ShapeBuckets, cameras: int, horizon: int, pixels: torch.Tensor, table: torch.Tensor
) -> list[Graph]:
    """Every graph that calls with up to `cameras` new images and chunks of `horizon` rows come to."""
    decoder = stages.decoder
    graphs = []
    for count in range(1, cameras + 1):
        tables = [torch.where(table >= 0, table + index * pixels.shape[1], table) for index in range(count)]
        graphs.append(vision_graph(stages.vision, pixels.repeat(count, 1, 1), torch.cat(tables)))
    graphs.append(bucket_graph(decoder, buckets, buckets.prompt, False))
    graphs += [bucket_graph(decoder, buckets, rows, True) for rows in buckets.windows]
    width = decoder.kv_heads * decoder.head
    graphs.append(context_graph(stages.flow, len(decoder.blocks), width, buckets.tokens))
    graphs.append(step_graph(stages.flow, horizon, buckets.tokens))
    return graphs


def engine_key(
    trt: Any, checkpoint: Checkpoint, store: EngineCache, graph: Graph, precision: str, device: torch.device
) -> dict[str, Any]:
    """What decides an engine: its graph, TensorRT's version and the GPU."""
    about = torch.cuda.get_device_properties(device)
    gpu = [about.name, f"{about.major}.{about.minor}", about.multi_processor_count]
    return graph_key(
        checkpoint, store.root, graph, kind="tensorrt", precision=precision, tensorrt=str(trt.__version__), gpu=gpu
    )


def build_engines(
    checkpoint: Checkpoint, robot: Embodiment, precision: str, tokens: int, store: EngineCache, say: Say
) -> list[Agreement]:
    """Build the engines that are missing; see `compile_checkpoint`."""
    trt = tensorrt_module()
    device = _gpu()
    model = load_model(checkpoint, device, torch.bfloat16)
    in_precision(model.model, precision)
    processor = load_processor(checkpoint.processor)
    buckets = buckets_for(checkpoint, model.config, processor, tokens)
    pixels, table = image_sample(processor)
    stages = torch_stages(model.model, robot.dof)
    cameras = len(checkpoint.cameras)
    found = []
    for graph in needed_graphs(stages, buckets, cameras, checkpoint.horizon, pixels.to(device), table.to(device)):
        key = engine_key(trt, checkpoint, store, graph, precision, device)
        entry = store.find(key)
        if entry is None:

            def write(folder: Path, graph: Graph = graph) -> Mapping[str, Any]:
                say(graph.name, "exporting")
                onnx = folder / "graph.onnx"
                export_graph(graph, onnx)
                say(graph.name, "building")
                build_engine(trt, onnx, folder / "engine.plan", store.root / "tensorrt_timings.cache")
                for part in folder.glob("graph.onnx*"):
                    part.unlink()
                say(graph.name, "verifying")
                engine = Engine(trt, folder / "engine.plan", graph)

                def run(inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
                    engine.run({**inputs, **outputs}, torch.cuda.current_stream(device).cuda_stream)
                    torch.cuda.synchronize(device)

                return as_facts(compare(graph, run, device))

            entry = store.make(key, write)
            say(graph.name, "done")
        else:
            say(graph.name, "kept")
        found.append(Agreement(graph.name, *(entry.facts[name] for name in ("cosine", "max_error", "largest"))))
    return found


def tensorrt_stages(
    checkpoint: Checkpoint, device: torch.device, precision: str, store: EngineCache, log: Callable[[str], None]
) -> OpenStages:
    """Stages over the engines in `store`, captured as CUDA graphs.

    Raises:
        BackendMissingError: TensorRT is not installed, or the device is no GPU.
    """
    trt = tensorrt_module()
    if device.type != "cuda":
        raise BackendMissingError(f"backend tensorrt runs on a GPU, the device is {device}")

    def engine_of(graph: Graph) -> Engine:
        entry = store.find(engine_key(trt, checkpoint, store, graph, precision, device))
        if entry is None:
            raise BucketError(
                f"no engine {graph.name} for this checkpoint, GPU and TensorRT {trt.__version__}; run molmoact2 "
                f"compile --backend tensorrt --precision {precision} --checkpoint {checkpoint.directory}"
            )
        return Engine(trt, entry.folder / "engine.plan", graph)

    def opened(model: Any, dof: int) -> Stages:
        in_precision(model, precision)
        buckets = buckets_for(checkpoint, model.config, load_processor(checkpoint.processor), 0)
        runner = CapturedRunner(EngineRunner(engine_of, device), device, log)
        return bucketed_stages(model, dof, buckets, runner)

    return opened


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise BackendMissingError("backend tensorrt needs an NVIDIA GPU; torch sees none on this machine")
    return torch.device("cuda", torch.cuda.current_device())
