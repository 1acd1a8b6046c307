"""The backend `onnxruntime`: every stage an exported graph of any sizes, run on the CPU.

Nothing is padded. Keys and values are read from and written to the store in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from molmoact2_ros.policy.backends.buckets import Buffers
from molmoact2_ros.policy.backends.graphs import Graph, context_by_layer
from molmoact2_ros.policy.stages.decoder import KeyValueStore, TextDecoder
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.stage_set import Stages
from molmoact2_ros.policy.stages.vision import VisionStage

_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.uint8: np.uint8}


class Session:
    """One exported graph in onnxruntime, with torch tensors as its buffers."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait by spinning take the cores that control loops need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> None:
        """Compute `outputs` in place. Tensors are on the CPU, contiguous (a copy is made of what is not)."""
        binding = self._session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in held.items():
            binding.bind_input(name, "cpu", 0, _TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            if not tensor.is_contiguous():
                raise ValueError(f"output {name!r} must be contiguous, it has strides {tensor.stride()}")
            binding.bind_output(name, "cpu", 0, _TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())
        self._session.run_with_iobinding(binding)


class OnnxVision(VisionStage):
    """One image after the other; images of another form than the exported one stay with torch."""

    def __init__(self, backbone: Any, graph: Graph, session: Session) -> None:
        super().__init__(backbone)
        self._session = session
        self._pixels, self._table = graph.inputs
        self._features = graph.outputs[0]

    def encode(self, pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `VisionStage.encode`."""
        patches, tokens = pixels.shape[1], int(self._table.shape[0])
        fits = tuple(pixels.shape[1:]) == self._pixels.shape[1:] and pixels.dtype == self._pixels.dtype
        if not fits or table.shape != (tokens * pixels.shape[0], self._table.shape[1]):
            return super().encode(pixels, table)
        features = pixels.new_empty((table.shape[0], int(self._features.shape[1])), dtype=self._features.dtype)
        for index in range(pixels.shape[0]):
            own = slice(index * tokens, (index + 1) * tokens)
            local = torch.where(table[own] >= 0, table[own] - index * patches, table[own])
            self._session.run({"pixels": pixels[index : index + 1], "table": local}, {"features": features[own]})
        return features


class OnnxDecoder(TextDecoder):
    """The text model; new keys and values are written straight into the store."""

    def __init__(self, text: Any, session: Session) -> None:
        super().__init__(text)
        self._session = session

    def forward(self, x: torch.Tensor, store: KeyValueStore, mask: torch.Tensor | None, outputs: int) -> torch.Tensor:
        """See `TextDecoder.forward`."""
        n, start = x.shape[0], store.length
        end = start + n
        if end > store.capacity:
            raise RuntimeError(f"a sequence of {end} tokens does not fit; the model has room for {store.capacity}")
        asked = max(outputs, 1)  # graphs give at least one row
        inputs = {
            "rows": x,
            "cos": self.cos[start:end],
            "sin": self.sin[start:end],
            "mask": x.new_zeros((n, end)) if mask is None else mask,
            "wanted": torch.arange(n - asked, n),
        }
        made = {"hidden": x.new_empty((asked, x.shape[1]))}
        for layer in range(len(self.blocks)):
            for name, rows in (("key", store.keys[layer]), ("value", store.values[layer])):
                inputs[f"past_{name}_{layer}"] = rows[:start]
                made[f"{name}_{layer}"] = rows[start:end]
        self._session.run(inputs, made)
        store.length = end
        return made["hidden"][asked - outputs :]


class OnnxFlow(FlowStage):
    """The context of all layers, and one step that is called once a step."""

    def __init__(self, model: Any, action_dim: int, context: Session, step: Session) -> None:
        super().__init__(model, action_dim)
        self._project, self._step = context, step

    def project(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FlowStage.project`."""
        shape = (keys.shape[0], self.heads, keys.shape[1], self.head)
        made = {"context_keys": keys.new_empty(shape), "context_values": keys.new_empty(shape)}
        self._project.run({"keys": keys, "values": values}, made)
        return made["context_keys"], made["context_values"]

    def step(
        self,
        actions: torch.Tensor,
        step: int,
        context: tuple[torch.Tensor, torch.Tensor],
        rope: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """See `FlowStage.step`."""
        velocity = torch.empty_like(actions)
        inputs = {
            "actions": actions,
            "modulation": self.modulations[step],
            "final": self.finals[step],
            "mask": actions.new_zeros((1, context[0].shape[2])),
            **context_by_layer(context),
        }
        if rope is not None:
            inputs["cos"], inputs["sin"] = rope
        self._step.run(inputs, {"velocity": velocity})
        return velocity


def onnx_stages(model: Any, dof: int, vision: Graph, sessions: dict[str, Session]) -> Stages:
    """Stages over `sessions` by graph name: `vision.name`, decoder, context and step."""
    return Stages(
        OnnxVision(model.vision_backbone, vision, sessions[vision.name]),
        OnnxDecoder(model.transformer, sessions["decoder"]),
        OnnxFlow(model, dof, sessions["context"], sessions["step"]),
    )


class OnnxRunner:
    """Graphs of fixed sizes in onnxruntime: what shows that an exported graph computes what torch does."""

    def __init__(self, files: dict[str, Path], threads: int = 1) -> None:
        self._sessions = {name: Session(path, threads) for name, path in files.items()}

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        inputs = {port.name: buffers[port.name] for port in graph.inputs}
        self._sessions[graph.name].run(inputs, {port.name: buffers[port.name] for port in graph.outputs})


def runs_here(graph: Graph) -> bool:
    """Whether onnxruntime has kernels for the graph's types on a CPU (not for bfloat16)."""
    return all(port.dtype in _TYPES for port in (*graph.inputs, *graph.outputs))
