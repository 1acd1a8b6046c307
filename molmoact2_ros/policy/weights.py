"""Headers of safetensors files: what is stored, and whether the file is whole, without reading a weight."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was expected, what was found and what to do."""


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: where, its type as safetensors names it (`BF16`), and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def read_weight_headers(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor stored in `directory` (one file, or the shards that the index names).

    Raises:
        CheckpointError: a file is missing, cut short or not safetensors, or the index and the shards disagree.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise CheckpointError(f"{directory}: missing model.safetensors; fetch the checkpoint again, complete")
    try:
        wanted: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error}); fetch the checkpoint again") from error
    shards = sorted(set(wanted.values()))
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory}: missing {', '.join(missing)}; fetch the checkpoint again, complete")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        tensors.update(read_header(directory / shard))
    if set(tensors) != set(wanted):
        odd = sorted(set(tensors) ^ set(wanted))
        raise CheckpointError(f"{index} and its shards disagree about {', '.join(odd[:3])}; fetch the checkpoint again")
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The header of one safetensors file, held against the size of the file.

    Raises:
        CheckpointError: the file is cut short, not safetensors, or a Git LFS pointer in its place.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise CheckpointError(f"{path} ({size} bytes) is cut short or not a safetensors file; fetch it again")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        tensors = {
            name: TensorInfo(path.name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error}); fetch it again") from error
    if end != size:
        raise CheckpointError(f"{path} has {size} bytes, its header promises {end}; it is cut short, fetch it again")
    for name, tensor in tensors.items():
        first, last = entries[name]["data_offsets"]
        if tensor.dtype in SIZES and last - first != math.prod(tensor.shape) * SIZES[tensor.dtype]:
            raise CheckpointError(f"{path}: the bytes of {name} do not fit its shape {tensor.shape}; fetch it again")
    return tensors


def check_tensors(found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Hold the stored tensors against the shapes that the configuration asks for; both sides must agree exactly.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; names the first few.
    """
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    wrong = sorted(name for name in set(found) & set(expected) if found[name].shape != tuple(expected[name]))
    if not (missing or extra or wrong):
        return
    parts = []
    if wrong:
        parts.append(
            f"{len(wrong)} of another shape ("
            + ", ".join(f"{name}: expected {tuple(expected[name])}, got {found[name].shape}" for name in wrong[:2])
            + ")"
        )
    if missing:
        parts.append(f"{len(missing)} missing ({', '.join(missing[:3])})")
    if extra:
        parts.append(f"{len(extra)} unknown ({', '.join(extra[:3])})")
    raise CheckpointError(
        f"{directory}: the weights do not fit config.json: {'; '.join(parts)}. They are of another model or version; "
        "use the files of one checkpoint together"
    )
