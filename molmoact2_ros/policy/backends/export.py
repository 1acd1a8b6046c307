"""A graph to an ONNX file: weights inside up to protobuf's limit, beside it above."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.policy.backends.graphs import Graph, sample_inputs

_REST = inspect.Parameter.VAR_POSITIONAL

OPSET = 20
"""The first with Gelu as one operator; read by onnxruntime and by TensorRT."""

SAMPLE = {"rows": 7, "past": 11, "outputs": 3, "tokens": 13, "horizon": 5}
"""Sizes of the example inputs where a graph takes any: all different, and none of them 0 or 1."""


def export_graph(graph: Graph, path: Path) -> None:
    """Write `graph` to `path` (and `path` + `.data` for its weights).

    Raises:
        RuntimeError: torch could not export it.
    """
    device = next(graph.module.parameters(), torch.empty(0)).device
    examples = [example.to(device) for example in sample_inputs(graph, SAMPLE)]
    names = {size for port in graph.inputs for size in port.shape if isinstance(size, str)}
    dynamic: Any = None
    if names:
        # Every named size is free; that the keys are past and new rows together is for the caller to see to.
        shapes = [
            {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(port.shape) if isinstance(size, str)}
            for port in graph.inputs
        ]
        fixed = sum(1 for name in inspect.signature(graph.module.forward).parameters.values() if name.kind != _REST)
        dynamic = (*shapes[:fixed], tuple(shapes[fixed:])) if fixed < len(shapes) else tuple(shapes)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(examples),
            None,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            external_data=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)
