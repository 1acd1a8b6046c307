"""The released layout: `config.json` of the model, `norm_stats.json`, processor files and weights in one folder.

Folders of Ai2's own training (`stepN-hf`, `stepN-merged`) and conversions with Ai2's script have it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact2_ros.policy.checkpoints.contents import Contents, checked_config
from molmoact2_ros.policy.checkpoints.scaling import BOUNDED_MODES, Scaling
from molmoact2_ros.policy.checkpoints.settings import CheckpointError, names, read_json, words
from molmoact2_ros.policy.checkpoints.views import view
from molmoact2_ros.policy.checkpoints.weights import TensorInfo, by_model_name, inside, read_weight_headers

STATS_FORMAT = "molmoact2_norm_stats.v1"


def read_released(directory: Path, config: Mapping[str, Any], norm_tag: str) -> Contents:
    """What the folder says of the tag.

    Raises:
        CheckpointError: something is missing, damaged, or of another kind.
    """
    notes: list[str] = []
    where = directory / "config.json"
    checked = checked_config(config, where, notes)
    stats_path = inside(directory, config.get("norm_stats_filename") or "norm_stats.json", where)
    require_files(directory, stats_path)
    _require_unmixed(directory, stats_path)
    metadata, mode = _read_stats(stats_path, norm_tag)
    said = f"{stats_path}: norm tag {norm_tag!r}"
    keys = names(metadata, "camera_keys", said)
    if len(set(keys)) != len(keys):
        raise CheckpointError(f"{said}: camera_keys names a camera twice: {', '.join(keys)}; fetch it again")
    for key in ("setup_type", "control_mode"):
        words(metadata, key, said)
    return Contents(
        layout="released",
        what="released layout",
        directory=directory,
        processor=directory,
        config=checked,
        norm_tag=norm_tag,
        metadata=metadata,
        scaling=Scaling("released", mode, mode),
        views=tuple(view(key) for key in keys),
        tensors=_weights(directory),
        notes=tuple(notes),
    )


def require_files(directory: Path, *more: Path) -> None:
    """The processor's and the tokenizer's files must be in `directory`, and `more` must be there.

    Raises:
        CheckpointError: with what is missing.
    """
    missing = [path.name for path in (*more, directory / "processor_config.json") if not path.is_file()]
    if not (directory / "tokenizer.json").is_file():
        pair = [name for name in ("vocab.json", "merges.txt") if not (directory / name).is_file()]
        if pair:
            missing.append("tokenizer.json")
    if missing:
        raise CheckpointError(f"{directory}: missing {', '.join(missing)}; fetch the checkpoint again, complete")


def _require_unmixed(directory: Path, stats_path: Path) -> None:
    """A fine-tune's weights with its base's statistics would move by other amounts than it was trained on."""
    theirs = [name for name in ("policy_preprocessor.json", "train_config.json") if (directory / name).is_file()]
    if theirs:
        raise CheckpointError(
            f"{directory}: {stats_path.name} and {theirs[0]} are of two layouts: which scaling belongs to the weights "
            "is not known; of a fine-tune by lerobot name the folder as lerobot-train wrote it, of a released one "
            f"remove {theirs[0]}"
        )


def _weights(directory: Path) -> dict[str, TensorInfo]:
    found = by_model_name(read_weight_headers(directory), directory)
    foreign = next((info.stored for name, info in found.items() if info.stored != name), None)
    if foreign is not None:
        raise CheckpointError(
            f"{directory}: the weights are named as lerobot names them ({foreign}), beside the statistics of a "
            "released checkpoint, which need not be theirs; name the folder that lerobot-train wrote, with its own "
            "config.json and processors"
        )
    return found


def _read_stats(path: Path, norm_tag: str) -> tuple[dict[str, Any], str]:
    payload = read_json(path)
    if payload.get("format") != STATS_FORMAT:
        raise CheckpointError(f"{path}: format is {payload.get('format')!r}, this version reads {STATS_FORMAT!r}")
    mode = payload.get("norm_mode")
    if mode not in BOUNDED_MODES:
        raise CheckpointError(
            f"{path}: norm_mode is {mode!r}, expected one of {', '.join(BOUNDED_MODES)}: with others a target could "
            "lie anywhere"
        )
    tags = payload.get("metadata_by_tag")
    if not isinstance(tags, dict) or not tags:
        raise CheckpointError(f"{path}: metadata_by_tag is empty; the checkpoint cannot be scaled for any robot")
    known = ", ".join(sorted(tags))
    if not str(norm_tag or "").strip():
        raise CheckpointError(
            f"no norm tag given: without it another robot's scaling could be used. Name one of these: {known}"
        )
    if norm_tag not in tags:
        raise CheckpointError(f"{path}: no norm tag {norm_tag!r}; this checkpoint has: {known}")
    if not isinstance(tags[norm_tag], dict):
        raise CheckpointError(
            f"{path}: norm tag {norm_tag!r} should hold an object, got {tags[norm_tag]!r}; fetch it again"
        )
    return dict(tags[norm_tag]), str(mode)
