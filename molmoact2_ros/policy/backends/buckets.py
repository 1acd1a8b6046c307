"""Stages over graphs of fixed sizes: rows are padded to the next bucket, and what is padded is masked exactly.

A runner computes one graph from fixed input buffers into fixed output buffers, so that addresses never change: what
CUDA graphs and TensorRT contexts need. Masked scores have a weight of exactly zero, so padding changes no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from molmoact2_ros.policy.backends.graphs import (
    Graph,
    context_by_layer,
    context_graph,
    decoder_graph,
    step_graph,
    vision_graph,
)
from molmoact2_ros.policy.stages.decoder import MASKED, KeyValueStore, TextDecoder
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.stage_set import Stages
from molmoact2_ros.policy.stages.vision import VisionStage

Buffers = dict[str, torch.Tensor]
"""The tensors of a graph by port name, inputs and outputs; contiguous, on the model's device, at fixed addresses."""

WINDOWS = (1, 16, 32, 128)
"""Rows of a block behind known tokens. One decoded token, the windows of a CPU, a whole depth sequence."""


class Runner(Protocol):
    """Computes graphs. The same graph always comes with the same buffers."""

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """Fill the buffers of the outputs from those of the inputs."""


@dataclass(frozen=True)
class ShapeBuckets:
    """The sizes that graphs are made for.

    Attributes:
        prompt: rows of the first pass: the longest prompt with its drafted depth sequence.
        windows: rows of a later pass, ascending. tokens: the most tokens that the store holds and the flow sees.
        outputs: of how many of its last rows the first pass gives the states: a whole depth sequence and one more.
    """

    prompt: int
    tokens: int
    windows: tuple[int, ...] = WINDOWS
    outputs: int = WINDOWS[-1]

    @classmethod
    def around(cls, prompt: int, cells: int, free: int, most: int, windows: tuple[int, ...] = WINDOWS) -> ShapeBuckets:
        """ShapeBuckets for prompts of about `prompt` tokens, with room for a longer task.

        Args:
            prompt: of the task at hand. cells: of the depth grid, 0 without. free: tokens that may follow the cells.
            most: positions that the model has. windows: rows of later passes, ascending.
        """
        drafted = cells + 2 if cells else 0
        first = min(_up(prompt + drafted + 32, 64), most)
        # The prompt's last row is asked for, too: it tells the first drafted token.
        return cls(first, min(_up(first + free, 64), most), windows, max(windows[-1], drafted + 1))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


@dataclass
class _Made:
    graph: Graph
    buffers: Buffers = field(default_factory=dict)


class BucketError(RuntimeError):
    """A call is larger than every bucket that graphs were made for."""


def make_buffers(graph: Graph, device: torch.device) -> Buffers:
    """Zeroed tensors for every port of a graph of fixed sizes."""
    return {
        port.name: torch.zeros([int(size) for size in port.shape], dtype=port.dtype, device=device)
        for port in (*graph.inputs, *graph.outputs)
    }


class BucketedVision(VisionStage):
    """Pictures through one graph for each number of images, or one image after the other.

    Args:
        image: pixels and pooling table of one image, of which graphs are made; None: of all images together.
    """

    def __init__(self, backbone: Any, runner: Runner, image: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        super().__init__(backbone)
        self._runner = runner
        self._image = image
        self._made: dict[tuple[Any, ...], _Made] = {}

    def encode(self, pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `VisionStage.encode`."""
        if self._image is None or pixels.shape[0] <= self._image[0].shape[0]:
            return self._encode(pixels, table)
        crops, tokens = self._image[0].shape[0], self._image[1].shape[0]
        found = []
        for index, (part, rows) in enumerate(zip(pixels.split(crops), table.split(tokens), strict=True)):
            patches = index * crops * pixels.shape[1]
            found.append(self._encode(part, torch.where(rows >= 0, rows - patches, rows)))
        return torch.cat(found)

    def _encode(self, pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        key = (tuple(pixels.shape), pixels.dtype, tuple(table.shape))
        made = self._made.get(key)
        if made is None:
            graph = vision_graph(self, pixels, table)
            made = self._made[key] = _Made(graph, make_buffers(graph, pixels.device))
        made.buffers["pixels"].copy_(pixels)
        made.buffers["table"].copy_(table)
        self._runner.run(made.graph, made.buffers)
        return made.buffers["features"].clone()

    def prepare(self, images: int) -> None:
        """Run the graphs of fewer new images than the `images` of the calls so far."""
        if self._image is not None:
            return
        for made in list(self._made.values()):
            pixels, table = made.buffers["pixels"], made.buffers["table"]
            for count in range(1, images):
                crops, tokens = (count * part.shape[0] // images for part in (pixels, table))
                self.encode(torch.zeros_like(pixels[:crops]), torch.zeros_like(table[:tokens]))


class BucketedDecoder(TextDecoder):
    """The text model by buckets. There is one store, at a fixed address.

    Args:
        plain: where torch has the weights too: what is longer than the buckets runs without them, and this is told.
            None: it is an error.
    """

    def __init__(self, text: Any, buckets: ShapeBuckets, runner: Runner, plain: Callable[[str], None] | None) -> None:
        super().__init__(text)
        self.buckets, self._runner, self._plain = buckets, runner, plain
        weight = self.ln_f.weight
        width = self.kv_heads * self.head
        self._store = KeyValueStore(len(self.blocks), buckets.tokens, width, weight.device, self.dtype)
        self._written = 0
        self._made: dict[int, _Made] = {}

    def store_for(self, capacity: int, present: KeyValueStore | None) -> KeyValueStore:
        """See `TextDecoder.store_for`; back to the one store wherever it suffices."""
        if present is self._store or min(capacity, self.max_positions) <= self._store.capacity:
            return self.new_store(capacity)
        return super().store_for(capacity, present)

    def new_store(self, capacity: int) -> KeyValueStore:
        """The one store, emptied; another one where it is too small and torch can do without buckets.

        Raises:
            BucketError: it is too small.
        """
        if min(capacity, self.max_positions) > self._store.capacity:
            if self._plain is not None:
                self._plain(
                    f"a call may need {capacity} tokens, graphs hold {self._store.capacity}: without them (slower)"
                )
                return super().new_store(capacity)
            raise BucketError(
                f"a call may need {capacity} tokens, the graphs were made for {self._store.capacity}; shorten the task "
                "or compile with --tokens"
            )
        self._store.length = 0
        return self._store

    def forward(self, x: torch.Tensor, store: KeyValueStore, mask: torch.Tensor | None, outputs: int) -> torch.Tensor:
        """See `TextDecoder.forward`; more rows than the widest window go through it in turn."""
        if store.length + x.shape[0] > store.capacity:
            raise RuntimeError(
                f"a sequence of {store.length + x.shape[0]} tokens does not fit; the model has room for "
                f"{store.capacity}"
            )
        n, base, found = x.shape[0], store.length, []
        size = self.buckets.windows[-1] if base else self.buckets.prompt
        if store is not self._store or (self._plain is not None and not base and n > size):
            return super().forward(x, store, mask, outputs)
        if not base and n > size:
            raise BucketError(
                f"a prompt of {n} tokens is longer than the graphs were made for ({size}); shorten the task or compile "
                "with --tokens"
            )
        for first in range(0, n, size):
            last = min(first + size, n)
            part = None if mask is None else mask[first:last, : base + last]
            found.append(self._pass(x[first:last], store, part, min(last - first, max(outputs - (n - last), 0))))
        return torch.cat(found)

    def _pass(self, x: torch.Tensor, store: KeyValueStore, mask: torch.Tensor | None, asked: int) -> torch.Tensor:
        """One graph's worth of rows; returns the hidden states of the last `asked` of them.

        Raises:
            BucketError: the graph gives fewer.
        """
        start, n = store.length, x.shape[0]
        made = self._bucket(n, start > 0)
        buffers, past = made.buffers, 0 if start == 0 else self.buckets.tokens
        size, outputs = buffers["rows"].shape[0], buffers["wanted"].shape[0]
        if asked > outputs:
            raise BucketError(f"{asked} rows' states are asked for, the graph {made.graph.name} gives {outputs}")
        positions = torch.arange(start, start + size, device=x.device).clamp_(max=self.max_positions - 1)
        buffers["rows"][:n] = x
        # What may not be seen has weight zero, and zero times NaN is NaN: nothing of an earlier call is left behind.
        buffers["rows"][n:] = 0.0
        store.keys[:, start : self._written] = 0.0
        store.values[:, start : self._written] = 0.0
        buffers["cos"].copy_(self.cos[positions])
        buffers["sin"].copy_(self.sin[positions])
        seen = buffers["mask"]
        seen.fill_(MASKED)
        # Padded rows see only rows of their own pass, and no other row sees them.
        seen[:n, :start] = 0.0 if mask is None else mask[:, :start]
        seen[:n, past : past + n] = 0.0 if mask is None else mask[:, start:]
        given = min(outputs, n)
        buffers["wanted"].zero_()
        buffers["wanted"][:given] = torch.arange(n - given, n, device=x.device)
        self._runner.run(made.graph, buffers)
        store.keys[:, start : start + n] = made.buffers["keys"][:, :n]
        store.values[:, start : start + n] = made.buffers["values"][:, :n]
        self._written = store.length = start + n
        return buffers["hidden"][given - asked : given].clone()

    def prepare(self) -> None:
        """Run every graph once: an engine is then loaded, a capture made, before anything moves."""
        row = self.cos.new_zeros((1, self.ln_f.weight.shape[0])).to(self.dtype)
        for rows in (0, *self.buckets.windows):
            self._store.length = self.buckets.tokens - rows if rows else 0
            self._pass(row.expand(max(rows, 1), -1), self._store, None, 1)
        self._store.length = 0

    def _bucket(self, n: int, behind: bool) -> _Made:
        buckets = self.buckets
        size = next(window for window in buckets.windows if window >= n) if behind else buckets.prompt
        made = self._made.get(size if behind else -size)
        if made is None:
            made = _Made(bucket_graph(self, buckets, size, behind))
            made.buffers = make_buffers(made.graph, self.ln_f.weight.device)
            # New keys and values of all layers lie in one tensor each, so that one copy takes them to the store.
            shape = (len(self.blocks), size, self._store.keys.shape[2])
            for name, past in (("key", self._store.keys), ("value", self._store.values)):
                new = made.buffers[f"{name}s"] = past.new_zeros(shape)
                for layer in range(len(self.blocks)):
                    made.buffers[f"{name}_{layer}"] = new[layer]
                    if behind:
                        made.buffers[f"past_{name}_{layer}"] = past[layer]
            self._made[size if behind else -size] = made
        return made


def bucket_graph(stage: TextDecoder, buckets: ShapeBuckets, rows: int, behind: bool) -> Graph:
    """The decoder's graph for so many rows, behind known tokens or first."""
    return decoder_graph(stage, rows, buckets.tokens if behind else 0, rows if behind else min(rows, buckets.outputs))


class BucketedFlow(FlowStage):
    """The flow over a context padded to the bucket."""

    def __init__(self, model: Any, action_dim: int, buckets: ShapeBuckets, runner: Runner) -> None:
        super().__init__(model, action_dim)
        self.buckets, self._runner = buckets, runner
        self._context: _Made | None = None
        self._steps: dict[int, _Made] = {}
        self._seen = 0
        self._beyond = False

    def prepare(self, keys: torch.Tensor, values: torch.Tensor, horizon: int) -> None:
        """Run the graphs of the context and of a step once."""
        kind = self.expert.action_embed.weight.dtype
        context = self.project(keys.to(kind), values.to(kind))
        actions = context[0].new_zeros((1, horizon, self.width))
        self.step(actions, 0, context, self.rope(actions))

    def project(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FlowStage.project`; the result belongs to the stage and lasts until the next call."""
        self._beyond = keys.shape[1] > self.buckets.tokens
        if self._beyond:
            # Only with a store of another size, which the decoder has spoken of.
            return super().project(keys, values)
        made = self._context
        if made is None:
            graph = context_graph(self, keys.shape[0], keys.shape[2], self.buckets.tokens)
            made = self._context = _Made(graph, make_buffers(graph, keys.device))
        before, self._seen = self._seen, keys.shape[1]
        made.buffers["keys"][:, : self._seen] = keys
        made.buffers["values"][:, : self._seen] = values
        made.buffers["keys"][:, self._seen : before] = 0.0
        made.buffers["values"][:, self._seen : before] = 0.0
        self._runner.run(made.graph, made.buffers)
        return made.buffers["context_keys"], made.buffers["context_values"]

    def step(
        self,
        actions: torch.Tensor,
        step: int,
        context: tuple[torch.Tensor, torch.Tensor],
        rope: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """See `FlowStage.step`."""
        if self._beyond:
            return super().step(actions, step, context, rope)
        horizon = actions.shape[1]
        made = self._steps.get(horizon)
        if made is None:
            graph = step_graph(self, horizon, self.buckets.tokens)
            made = self._steps[horizon] = _Made(graph, make_buffers(graph, actions.device))
            made.buffers.update(context_by_layer(context))
        if step == 0:
            if rope is not None:
                made.buffers["cos"].copy_(rope[0])
                made.buffers["sin"].copy_(rope[1])
            made.buffers["mask"].fill_(MASKED)
            made.buffers["mask"][:, : self._seen] = 0.0
        made.buffers["actions"].copy_(actions)
        made.buffers["modulation"].copy_(self.modulations[step])
        made.buffers["final"].copy_(self.finals[step])
        self._runner.run(made.graph, made.buffers)
        return made.buffers["velocity"].clone()


def bucketed_stages(
    model: Any,
    dof: int,
    buckets: ShapeBuckets,
    runner: Runner,
    plain: Callable[[str], None] | None = None,
    image: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Stages:
    """All stages by buckets, with one runner; `plain` as `BucketedDecoder` takes it, `image` as `BucketedVision`."""
    return Stages(
        BucketedVision(model.vision_backbone, runner, image),
        BucketedDecoder(model.transformer, buckets, runner, plain),
        BucketedFlow(model, dof, buckets, runner),
    )


class EagerRunner:
    """Torch itself."""

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        made = graph.module(*(buffers[port.name] for port in graph.inputs))
        for port, tensor in zip(graph.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            buffers[port.name].copy_(tensor)
