"""Which tensors a checkpoint stores, and whether its files are whole, without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from molmoact2_ros.policy.checkpoints.settings import CheckpointError, read_json

FLOATS = ("F64", "F32", "BF16", "F16")
"""Types that a weight may be stored in."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
"""A tensor that every model has: what stands before it is the prefix of a layout's names."""

_DAMAGE = {
    "in header": "the header is damaged",
    "invalid shape": "the bytes of a tensor do not fit its shape",
    "invalid offset": "the bytes of a tensor do not fit its shape",
}
"""What safetensors' own errors say, by a part of their text; all others mean a file that is cut short."""


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        file: where, from the checkpoint's directory, or a whole path.
        dtype: its type as safetensors names it (`BF16`). shape: its shape.
        stored: its name in the file, where the layout puts something before it; empty: the same.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    stored: str = ""


def inside(directory: Path, name: object, of: Path) -> Path:
    """The file `name` that a JSON file `of` a checkpoint names.

    Raises:
        CheckpointError: it is no name, or leads out of `directory`.
    """
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{of}: expected the name of a file in its folder, got {name!r}; fetch it again")
    return directory / name


def read_weight_headers(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor stored in `directory` (one file, or the shards that the index names), by its name there.

    An index may name tensors that no shard holds, and shards may hold others: what the shards hold counts.

    Raises:
        CheckpointError: a file is missing, cut short or not safetensors, or there are two sets of weights.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{directory}: both {SINGLE} and {INDEX} are there, and programs differ in which they take; remove the one "
            "that is not meant"
        )
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        shards = sorted(path.name for path in directory.glob("model-*.safetensors"))
        if shards:
            raise CheckpointError(f"{directory}: {len(shards)} shards, but {INDEX} is missing; fetch it")
        raise CheckpointError(f"{directory}: missing {SINGLE}; fetch the checkpoint again, complete")
    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise CheckpointError(f"{index}: no weight_map in it; fetch the checkpoint again")
    paths = {name: inside(directory, name, index) for name in sorted({str(name) for name in wanted.values()})}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        elsewhere = [str(path.relative_to(directory)) for path in directory.glob(f"*/{Path(missing[0]).name}")]
        hint = f"; {elsewhere[0]} is there: move the shards beside the index" if elsewhere else ""
        raise CheckpointError(
            f"{directory}: missing {', '.join(missing)}{hint or '; fetch the checkpoint again, complete'}"
        )
    tensors: dict[str, TensorInfo] = {}
    for name, path in paths.items():
        for key, info in read_header(path).items():
            if key in tensors:
                raise CheckpointError(
                    f"{directory}: {key} is in {tensors[key].file} and in {name}: these are shards of two checkpoints; "
                    "fetch one, complete"
                )
            tensors[key] = replace(info, file=name)
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """What one safetensors file holds.

    Raises:
        CheckpointError: the file is cut short, not safetensors, or a Git LFS pointer in its place.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) == b"version ":
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    try:
        with safe_open(str(path), framework="numpy") as opened:
            found = {}
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                part = opened.get_slice(name)
                found[name] = TensorInfo(path.name, str(part.get_dtype()), tuple(part.get_shape()))
            return found
    except (SafetensorError, OSError) as error:
        what = next((said for part, said in _DAMAGE.items() if part in str(error)), "it is cut short")
        raise CheckpointError(f"{path} ({size} bytes): {what} ({error}); fetch it again") from error


def by_model_name(found: Mapping[str, TensorInfo], directory: Path) -> dict[str, TensorInfo]:
    """`found` by the model's own names: what a layout puts before each, and around adapted layers, is taken off.

    Raises:
        CheckpointError: there is no language-model head, by which the prefix is known.
    """
    heads = [name for name in found if name == HEAD or name.endswith(f".{HEAD}")]
    if not heads:
        some = ", ".join(sorted(found)[:3]) or "nothing"
        raise CheckpointError(f"{directory}: no {HEAD} among its tensors ({some}); these are another model's weights")
    prefix = min(heads, key=len).removesuffix(HEAD)
    return {
        name.removeprefix(prefix).replace(".base_layer.", "."): replace(info, stored=name)
        for name, info in found.items()
    }


def check_tensors(found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Hold the stored tensors against the shapes that the configuration asks for. Others may be there as well.

    Raises:
        CheckpointError: tensors are missing, of another shape or in a type that needs scales; names the first few.
    """
    missing = sorted(set(expected) - set(found))
    wrong = sorted(name for name in set(found) & set(expected) if found[name].shape != tuple(expected[name]))
    packed = sorted(name for name in set(found) & set(expected) if found[name].dtype not in FLOATS)
    if packed:
        raise CheckpointError(
            f"{directory}: {len(packed)} weights are stored as {found[packed[0]].dtype} ({packed[0]}), expected "
            f"{', '.join(FLOATS)}: quantised weights cannot be read; use the checkpoint that they were made from"
        )
    if not (missing or wrong):
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
    extra = sorted(set(found) - set(expected))
    if extra:
        parts.append(f"{len(extra)} unknown ({', '.join(extra[:3])})")
    raise CheckpointError(
        f"{directory}: the weights do not fit config.json: {'; '.join(parts)}. They are of another model or version; "
        "use the files of one checkpoint together"
    )
