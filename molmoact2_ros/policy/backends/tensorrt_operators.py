"""Which ONNX operators TensorRT documents, of those that the stages are exported to, with what it asks of them.

Facts from docs/operators.md of onnx/onnx-tensorrt at 96e7811 (the 10.1 release; opsets 9 to 20): supported types and
restrictions. TensorRT is not installed where this is checked, so that a graph passes here is no proof that it builds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ALL = _NUMBERS | {"BOOL"}

OPERATORS: dict[str, frozenset[str]] = {
    "Add": _NUMBERS,
    "And": frozenset({"BOOL"}),
    "Cast": _ALL | {"UINT8"},
    "Clip": _FLOATS,
    "Concat": _ALL,
    "Constant": _ALL,
    "ConstantOfShape": _ALL,
    "Div": _NUMBERS,
    "Equal": _NUMBERS,
    "Erf": _FLOATS,
    "Exp": _FLOATS,
    "Expand": _ALL,
    "Flatten": _ALL,
    "Gather": _ALL,
    "GatherND": _ALL,
    "Gelu": _NUMBERS,
    "Gemm": _FLOATS,
    "GreaterOrEqual": _NUMBERS,
    "Identity": _ALL,
    "IsNaN": _NUMBERS,
    "LayerNormalization": _FLOATS,
    "MatMul": _FLOATS,
    "Max": _NUMBERS,
    "Min": _NUMBERS,
    "Mul": _NUMBERS,
    "Neg": _NUMBERS,
    "Not": frozenset({"BOOL"}),
    "Pow": _FLOATS,
    "Reciprocal": _FLOATS,
    "ReduceMean": _NUMBERS,
    "ReduceSum": _NUMBERS,
    "Reshape": _ALL,
    "Round": _FLOATS,
    "Shape": _ALL,
    "Sigmoid": _FLOATS,
    "Slice": _ALL,
    "Softmax": _FLOATS,
    "Split": _ALL,
    "Sqrt": _FLOATS,
    "Squeeze": _ALL,
    "Sub": _NUMBERS,
    "Tanh": _FLOATS,
    "Tile": _ALL,
    "Transpose": _ALL,
    "Unsqueeze": _ALL,
    "Where": _ALL,
}
"""Operator to the types of its data inputs."""

CONSTANT_INPUTS = {"ReduceMean": (1,), "ReduceSum": (1,), "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,)}
"""Inputs (axes) that must be known when the engine is built."""


def unsupported(path: Path) -> list[str]:
    """What in the ONNX file at `path` TensorRT does not document, one line a kind of node; empty when all is well."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    kinds: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    problems = [
        f"opset {entry.version} of {entry.domain or 'ai.onnx'}"
        for entry in model.opset_import
        if entry.domain not in ("", "ai.onnx") or not 9 <= entry.version <= 20
    ]
    for node in graph.node:
        problems += _node_problems(node, constants, kinds, onnx.TensorProto.DataType.Name)
    return sorted(set(problems))


def _node_problems(node: Any, constants: set[str], kinds: dict[str, int], name_of: Any) -> list[str]:
    if node.domain not in ("", "ai.onnx"):
        return [f"{node.domain}:{node.op_type} is no standard operator"]
    allowed = OPERATORS.get(node.op_type)
    if allowed is None:
        return [f"{node.op_type} is not in TensorRT's list"]
    problems = []
    # Where chooses by its first input, which is always bool; indices and shapes may be integers everywhere.
    data = node.input[1:] if node.op_type == "Where" else node.input[:1]
    for name in data:
        kind = name_of(kinds[name]) if name in kinds else "unknown"
        if kind not in allowed:
            problems.append(f"{node.op_type} of {kind}")
    problems += [
        f"{node.op_type} with an input {index} that is computed"
        for index in CONSTANT_INPUTS.get(node.op_type, ())
        if index < len(node.input) and node.input[index] and node.input[index] not in constants
    ]
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        problems.append("LayerNormalization with more than one output")
    return problems
