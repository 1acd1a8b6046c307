"""From a loaded checkpoint to files of graphs: which are needed, exported, held against torch, kept by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.policy.backends.cache import EngineCache, checkpoint_hash, file_hash
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import (
    Graph,
    context_graph,
    decoder_graph,
    sample_inputs,
    step_graph,
    vision_graph,
)
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.stages.preprocess import resizes
from molmoact2_ros.policy.stages.stage_set import Stages

COSINE = 0.999
"""A graph whose outputs are less alike than this is refused."""

Say = Callable[[str, str], None]
"""Told of each graph by name what becomes of it: "exporting", "building", "verifying", "kept" or "done"."""

Tensors = dict[str, torch.Tensor]


class ParityError(RuntimeError):
    """An exported graph or an engine does not compute what the reference's weights compute in torch."""


@dataclass(frozen=True)
class Agreement:
    """How alike a graph's outputs are to torch's: the lowest cosine, the largest error, the largest value."""

    graph: str
    cosine: float
    max_error: float
    largest: float

    @property
    def good(self) -> bool:
        """Whether it may be used."""
        return self.cosine >= COSINE and math.isfinite(self.max_error)


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of `packages`, "" of what is absent."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@cache
def source_hash() -> str:
    """A hash of the code that graphs are made by: another definition of a stage never finds an older one's files."""
    room = Path(__file__).parent
    files = [
        room / "graphs.py",
        room / "export.py",
        room / "buckets.py",
        room / "bucket_sizes.py",
        room / "tensorrt_engine.py",
        *sorted((room.parent / "stages").glob("*.py")),
    ]
    return "".join(file_hash(path)[:8] for path in files)


def graph_key(checkpoint: Checkpoint, root: Path, graph: Graph, **more: Any) -> dict[str, Any]:
    """What decides the content of a graph's file."""
    return {"graph": graph.name, "ports": ports_of(graph), **_content(checkpoint, root), **more}


def ports_of(graph: Graph) -> list[Any]:
    """Names, sizes and types at a graph's ends, for a key."""
    return [[port.name, list(port.shape), str(port.dtype)] for port in (*graph.inputs, *graph.outputs)]


def engine_content(checkpoint: Checkpoint, root: Path) -> dict[str, Any]:
    """What decides an engine beside its graph and the library: no package that is needed for building alone."""
    return {"checkpoint": checkpoint_hash(checkpoint.directory, checkpoint.files, root), "source": source_hash()}


def _content(checkpoint: Checkpoint, root: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint_hash(checkpoint.directory, checkpoint.files, root),
        "source": source_hash(),
        "versions": versions("torch", "onnx", "onnxscript", "onnxruntime", "lerobot"),
    }


def exported_all(
    graphs: Sequence[Graph], checkpoint: Checkpoint, store: EngineCache, say: Say
) -> list[tuple[Graph, Path, Mapping[str, Any]]]:
    """Like `exported`, all of them; and it is noted that they are complete, for `is_exported`."""
    found = list(exported(graphs, checkpoint, store, say))
    key = {"graph": "all", **_content(checkpoint, store.root)}
    keys = [graph_key(checkpoint, store.root, graph, kind="onnx") for graph in graphs]
    entry = store.find(key)
    if entry is None or entry.facts["keys"] != keys:
        store.make(key, lambda folder: {"keys": keys})
    return found


def is_exported(checkpoint: Checkpoint, store: EngineCache) -> bool:
    """Whether every graph of this checkpoint is in `store`; no weight is loaded."""
    entry = store.find({"graph": "all", **_content(checkpoint, store.root)})
    return entry is not None and all(store.find(key) is not None for key in entry.facts["keys"])


def image_sample(processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (crops, patches, values) and pooling table (tokens, k) of one image, for the vision graph's sizes."""
    import numpy as np

    resized = resizes(processor)
    made = processor.image_processor([np.zeros((240, 320, 3), np.uint8)], return_tensors="pt")
    pixels = made["pixel_values"]
    return (pixels.to(torch.uint8) if resized else pixels), made["image_token_pooling"]


def free_graphs(stages: Stages, pixels: torch.Tensor, table: torch.Tensor) -> list[Graph]:
    """The graphs that take any number of rows and tokens: vision for one image, decoder, context and step."""
    decoder = stages.decoder
    return [
        vision_graph(stages.vision, pixels, table),
        decoder_graph(decoder, None, None, None),
        context_graph(stages.flow, len(decoder.blocks), decoder.kv_heads * decoder.head, None),
        step_graph(stages.flow, None, None),
    ]


def exported(
    graphs: Sequence[Graph], checkpoint: Checkpoint, store: EngineCache, say: Say
) -> Iterator[tuple[Graph, Path, Mapping[str, Any]]]:
    """Each graph with its ONNX file and the facts noted about it; what is there already is not exported again."""
    for graph in graphs:
        key = graph_key(checkpoint, store.root, graph, kind="onnx")
        entry = store.find(key)
        if entry is None:

            def write(folder: Path, graph: Graph = graph) -> Mapping[str, Any]:
                say(graph.name, "exporting")
                export_graph(graph, folder / "graph.onnx")
                say(graph.name, "verifying")
                from molmoact2_ros.policy.backends.onnx_stages import Session, runs_here

                if not runs_here(graph):
                    return {}
                return as_facts(compare(graph, Session(folder / "graph.onnx", torch.get_num_threads()).run))

            entry = store.make(key, write)
            say(graph.name, "done")
        else:
            say(graph.name, "kept")
        yield graph, entry.folder / "graph.onnx", entry.facts


def as_facts(agreement: Agreement) -> dict[str, Any]:
    """For the manifest.

    Raises:
        ParityError: the graph is not good; nothing is kept of it then.
    """
    if not agreement.good:
        raise ParityError(
            f"{agreement.graph}: cosine {agreement.cosine:.6f} to torch (least {COSINE}), largest error "
            f"{agreement.max_error:.3g}: this graph is not used"
        )
    return {"cosine": agreement.cosine, "max_error": agreement.max_error, "largest": agreement.largest}


def compare(graph: Graph, run: Callable[[Tensors, Tensors], None], device: torch.device | None = None) -> Agreement:
    """Hold `run` (inputs, outputs to fill) against the graph's own module on random inputs of several sizes.

    Args:
        device: where `run` wants its tensors, None: where the module is.
    """
    named = {size for port in graph.inputs for size in port.shape if isinstance(size, str)}
    trials: list[dict[str, int]] = [{}]
    if named:
        trials = [
            {"rows": 37, "past": 0, "outputs": 5, "tokens": 41, "horizon": 30},
            {"rows": 6, "past": 37, "outputs": 6, "tokens": 40, "horizon": 30},
            {"rows": 1, "past": 20, "outputs": 1, "tokens": 2, "horizon": 9},
        ]
    cosine, error, largest = 1.0, 0.0, 0.0
    for index, sizes in enumerate(trials):
        inputs = sample_inputs(graph, sizes, 100 * index)
        with torch.inference_mode():
            expected = graph.module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            made = {
                port.name: torch.empty(x.shape, dtype=x.dtype, device=device)
                for port, x in zip(graph.outputs, expected, strict=True)
            }
            run({port.name: x.to(device) for port, x in zip(graph.inputs, inputs, strict=True)}, made)
            for port, x in zip(graph.outputs, expected, strict=True):
                ours, theirs = made[port.name].to(x.device).double().flatten(), x.double().flatten()
                norm = (ours.norm() * theirs.norm()).item()
                cosine = min(cosine, (ours @ theirs).item() / norm if norm > 0 else float(torch.equal(ours, theirs)))
                error = max(error, (ours - theirs).abs().max().item())
                largest = max(largest, theirs.abs().max().item())
                if not bool(torch.isfinite(ours).all()):
                    cosine, error = -1.0, math.inf
    return Agreement(graph.name, cosine, error, largest)
