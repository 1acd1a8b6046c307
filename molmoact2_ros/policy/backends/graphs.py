"""The stages as graphs of plain tensors, named and shaped: what is exported, from the modules that torch itself runs.

`rows` are new tokens, `past` tokens whose keys and values are known, `tokens` the language model's tokens that the
flow sees, `crops` images. A graph is made for one set of these sizes; with `None` for a size it takes any.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from molmoact2_ros.policy.stages.decoder import TextDecoder
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.vision import VisionStage


@dataclass(frozen=True)
class Port:
    """One tensor of a graph: name, sizes (a name where any size goes) and type."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype

    def sample(self, sizes: dict[str, int], seed: int) -> torch.Tensor:
        """A random tensor for this port, with `sizes` for the named dimensions; indices and masks are valid ones."""
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)
        random = torch.Generator().manual_seed(seed)
        if self.dtype == torch.uint8:
            return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        if self.name == "table":
            return torch.randint(-1, 4, shape, generator=random)
        if self.dtype == torch.int64:
            # Every index is valid as long as there is one row, patch or token.
            return torch.zeros(shape, dtype=torch.int64)
        if self.name == "mask":
            return torch.zeros(shape, dtype=self.dtype)
        return torch.randn(shape, generator=random).to(self.dtype)


@dataclass(frozen=True)
class Graph:
    """A module with named inputs and outputs, of a stage: "vision", "decoder", "context" or "step". `name` is for
    people: two graphs of a model may share it."""

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stage: str = ""

    @cached_property
    def key(self) -> str:
        """The name with a hash of all names, sizes and types: unique among the graphs of a model."""
        return f"{self.name}:{hashlib.sha256(repr((self.inputs, self.outputs)).encode()).hexdigest()[:16]}"


# The modules below call the stages' own definitions by class: a backend's stage may have replaced the method.


class _Vision(nn.Module):
    def __init__(self, stage: VisionStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return VisionStage.encode(self.stage, pixels, table)


class _Decoder(nn.Module):
    def __init__(self, stage: TextDecoder) -> None:
        super().__init__()
        self.stage = stage

    def forward(
        self,
        rows: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        wanted: torch.Tensor,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        new: list[torch.Tensor] = []

        def extend(index: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            new.extend((k, v))
            if not past:
                return k, v
            return torch.cat((past[2 * index], k)), torch.cat((past[2 * index + 1], v))

        hidden = self.stage.layers(rows, cos, sin, mask, extend, lambda x: x.index_select(0, wanted))
        return hidden, *new


class _Context(nn.Module):
    def __init__(self, stage: FlowStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return FlowStage.project(self.stage, keys, values)


class _Step(nn.Module):
    def __init__(self, stage: FlowStage) -> None:
        super().__init__()
        self.stage = stage

    def forward(
        self,
        actions: torch.Tensor,
        modulation: torch.Tensor,
        final: torch.Tensor,
        mask: torch.Tensor,
        *context: torch.Tensor,
    ) -> torch.Tensor:
        # Keys of every layer, values of every layer, and the turns of the positions: apart, so that none is copied.
        layers = modulation.shape[0]
        keys, values, turns = context[:layers], context[layers : 2 * layers], context[2 * layers :]
        rope = (turns[0], turns[1]) if turns else None
        return self.stage.velocity(actions, modulation, final, keys, values, rope, mask)


def vision_graph(stage: VisionStage, pixels: torch.Tensor, table: torch.Tensor) -> Graph:
    """Pictures to features, for exactly these sizes.

    Args:
        pixels: (crops, patches, values). table: (tokens, k), as `VisionStage.encode` takes them.
    """
    width = stage.backbone.image_projector.w2.out_features
    inputs = (Port("pixels", tuple(pixels.shape), pixels.dtype), Port("table", tuple(table.shape), table.dtype))
    outputs = (Port("features", (table.shape[0], width), stage.dtype),)
    return Graph(f"vision_{pixels.shape[0]}", _Vision(stage), inputs, outputs, "vision")


def decoder_graph(stage: TextDecoder, rows: int | None, past: int | None, outputs: int | None) -> Graph:
    """New rows through the text model, with `past` keys and values before them.

    Args:
        rows, past, outputs: sizes; all None for a graph of any sizes; `past` 0 has no past inputs.
    """
    kind, width = stage.dtype, stage.ln_f.weight.shape[0]
    n: int | str = "rows" if rows is None else rows
    m: int | str = "past" if past is None else past
    o: int | str = "outputs" if outputs is None else outputs
    whole: int | str = rows + past if rows is not None and past is not None else "keys"
    layers, kv = len(stage.blocks), stage.kv_heads * stage.head
    inputs = [
        Port("rows", (n, width), kind),
        Port("cos", (n, 1, stage.head), stage.cos.dtype),
        Port("sin", (n, 1, stage.head), stage.sin.dtype),
        Port("mask", (n, whole), kind),
        Port("wanted", (o,), torch.int64),
    ]
    made = [Port("hidden", (o, width), kind)]
    for layer in range(layers):
        for name in ("key", "value"):
            if past != 0:
                inputs.append(Port(f"past_{name}_{layer}", (m, kv), kind))
            made.append(Port(f"{name}_{layer}", (n, kv), kind))
    name = "decoder" if rows is None else f"decoder_{rows}_{past}_{outputs}"
    return Graph(name, _Decoder(stage), tuple(inputs), tuple(made), "decoder")


def context_graph(stage: FlowStage, layers: int, width: int, tokens: int | None) -> Graph:
    """The text model's keys and values (layers, tokens, width) to the expert's heads."""
    kind = stage.expert.action_embed.weight.dtype
    n: int | str = "tokens" if tokens is None else tokens
    inputs = (Port("keys", (layers, n, width), kind), Port("values", (layers, n, width), kind))
    shape = (layers, stage.heads, n, stage.head)
    outputs = (Port("context_keys", shape, kind), Port("context_values", shape, kind))
    return Graph("context" if tokens is None else f"context_{tokens}", _Context(stage), inputs, outputs, "context")


def step_graph(stage: FlowStage, horizon: int | None, tokens: int | None) -> Graph:
    """One Euler step's velocity; called once a step with other modulations."""
    kind = stage.expert.action_embed.weight.dtype
    n: int | str = "tokens" if tokens is None else tokens
    h: int | str = "horizon" if horizon is None else horizon
    _, blocks, parts, one, width = stage.modulations.shape
    inputs = [
        Port("actions", (1, h, stage.width), kind),
        Port("modulation", (blocks, parts, one, width), kind),
        Port("final", (2, one, width), kind),
        Port("mask", (1, n), kind),
    ]
    inputs += [
        Port(f"context_{name}_{layer}", (stage.heads, n, stage.head), kind)
        for name in ("key", "value")
        for layer in range(blocks)
    ]
    if stage.expert.blocks[0].self_attn.rope is not None:
        inputs += [Port(name, (1, 1, h, stage.head), kind) for name in ("cos", "sin")]
    outputs = (Port("velocity", (1, h, stage.width), kind),)
    name = "step" if tokens is None else f"step_{horizon}_{tokens}"
    return Graph(name, _Step(stage), tuple(inputs), outputs, "step")


def context_by_layer(context: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs of a step that hold `context`, keys and values (layers, heads, n, head size): views."""
    return {
        f"context_{name}_{layer}": part
        for name, tensor in zip(("key", "value"), context, strict=True)
        for layer, part in enumerate(tensor)
    }


def sample_inputs(graph: Graph, sizes: dict[str, int], seed: int = 0) -> list[Any]:
    """Random inputs for `graph`, the named dimensions of `sizes` (rows, past, outputs, tokens)."""
    known = {**sizes, "keys": sizes.get("rows", 0) + sizes.get("past", 0)}
    return [port.sample(known, seed + index) for index, port in enumerate(graph.inputs)]
