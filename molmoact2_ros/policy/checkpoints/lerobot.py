"""LeRobot's layout: what `lerobot-train` writes, full or LoRA, and conversions of released checkpoints to it.

`config.json` is the policy's; the model's own configuration, processor and tokenizer are the base's, which it names.
Statistics, cameras and prompt are taken from the saved processors: they are what lerobot itself would run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from molmoact2_ros.policy.checkpoints.contents import Adapter, Contents, checked_config
from molmoact2_ros.policy.checkpoints.frame import declared_transform
from molmoact2_ros.policy.checkpoints.location import resolve_base
from molmoact2_ros.policy.checkpoints.released import require_files
from molmoact2_ros.policy.checkpoints.scaling import LEROBOT_MODES, Scaling
from molmoact2_ros.policy.checkpoints.settings import CheckpointError, names, part, read_json, switch, whole, words
from molmoact2_ros.policy.checkpoints.views import view
from molmoact2_ros.policy.checkpoints.weights import (
    TensorInfo,
    by_model_name,
    inside,
    read_header,
    read_weight_headers,
)

TAG = "lerobot"
"""Stands for the norm tag: the layout has one scaling only."""
BASE_PARAMETER = "base_checkpoint"
PRE = {
    "rename_observations_processor",
    "to_batch_processor",
    "molmoact2_state_frame_transform",
    "molmoact2_masked_normalizer",
    "molmoact2_clamp_normalized",
    "molmoact2_pack_inputs",
    "device_processor",
}
POST = {
    "molmoact2_clamp_action",
    "molmoact2_masked_unnormalizer",
    "molmoact2_action_frame_transform",
    "device_processor",
}
"""The steps that are understood."""
OPTIONAL = {"to_batch_processor", "device_processor", "rename_observations_processor", "molmoact2_clamp_normalized"}
"""Of these, what may be absent: the arithmetic is the same without."""
STATE, ACTION = "observation.state", "action"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def read_lerobot(directory: Path, policy: Mapping[str, Any], norm_tag: str, base: str) -> Contents:
    """What the folder says.

    Args:
        policy: its `config.json`. norm_tag: the user's, which must be the checkpoint's where it has one.
        base: the user's word for the checkpoint that it was fine-tuned from; empty: as the folder says.

    Raises:
        CheckpointError: something is missing, damaged, or of another kind.
    """
    where, notes = directory / "config.json", []
    own_tag = words(policy, "norm_tag", where)
    if own_tag and norm_tag and norm_tag != own_tag:
        raise CheckpointError(f"{where}: its norm_tag is {own_tag!r}, you say {norm_tag!r}; leave norm_tag empty")
    before = _steps(directory, "policy_preprocessor.json", PRE)
    after = _steps(directory, "policy_postprocessor.json", POST)
    pack, packed_in = before["molmoact2_pack_inputs"], directory / "policy_preprocessor.json"
    peft = (directory / ADAPTER_CONFIG).is_file() or (directory / ADAPTER).is_file()
    origin = base or words(pack, "checkpoint_path", packed_in) or words(policy, "checkpoint_path", where)
    revision = words(policy, "checkpoint_revision", where)
    if revision and not base and origin and not Path(origin).expanduser().is_dir():
        origin = f"{origin}@{revision}"
    tensors, adapter, variant = _weights(directory, policy, base, origin, peft)
    model_files = _model_files(resolve_base(origin, directory, BASE_PARAMETER, weights=False), directory)
    require_files(model_files)
    notes.append(f"fine-tuned from {origin}; its processor and tokenizer are taken from {model_files}")
    config = checked_config(read_json(model_files / "config.json"), model_files / "config.json", notes)
    config |= _changes(policy, pack, where, config, notes)
    transform = _transform(before, after, directory)
    scaling, stats = _scaling(directory, before, after)
    keys, renamed = _image_keys(policy, before, packed_in)
    width = len(stats["action"].get("mask") or next(iter(stats["action"].values())))
    joint_names = _joint_names(policy, width)
    for kind in ("state", "action"):
        if joint_names:
            stats[kind]["names"] = joint_names
    if policy.get("dtype") or policy.get("use_amp"):
        notes.append("use_amp is set in its config.json; the policy's parameter dtype decides here")
    metadata = {
        "action_key": ACTION,
        "state_key": STATE,
        "camera_keys": keys,
        "normalize_gripper": None,
        "action_horizon": config["max_action_horizon"],
        "n_action_steps": whole(policy, "n_action_steps", where, 1, config["max_action_horizon"]),
        "setup_type": words(pack, "setup_type", packed_in),
        "control_mode": words(pack, "control_mode", packed_in),
        "action_stats": stats["action"],
        "state_stats": stats["state"],
    }
    return Contents(
        layout="lerobot",
        what=f"LeRobot layout, {variant}",
        directory=directory,
        processor=model_files,
        config=config,
        norm_tag=own_tag or TAG,
        metadata=metadata,
        scaling=scaling,
        views=tuple(view(key, *renamed.get(key, ())) for key in keys),
        tensors=tensors,
        transform=transform,
        normalize_language=switch(pack, "normalize_language", packed_in, True),
        depth=False,
        adapter=adapter,
        notes=tuple(notes),
    )


def _steps(directory: Path, name: str, known: set[str]) -> dict[str, dict[str, Any]]:
    """The configuration of each step of a saved pipeline; the file of its state under `state_file`."""
    path = directory / name
    if not path.is_file():
        raise CheckpointError(
            f"{directory}: missing {name}: without its processors nothing says how a LeRobot checkpoint is scaled; "
            "fetch it again, complete"
        )
    steps = read_json(path).get("steps")
    if not isinstance(steps, list):
        raise CheckpointError(f"{path}: no list of steps in it; fetch it again")
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        kind = step.get("registry_name") or step.get("class") if isinstance(step, dict) else None
        if kind not in known:
            raise CheckpointError(
                f"{path}: step {kind!r} is not one of lerobot 0.6's for MolmoAct2 ({', '.join(sorted(known))}); save "
                "it with that version"
            )
        found[kind] = {
            **part({"config": step.get("config") or {}}, "config", path),
            "state_file": step.get("state_file"),
        }
    absent = sorted(known - OPTIONAL - set(found))
    if absent:
        raise CheckpointError(f"{path}: step {', '.join(absent)} is missing; save it with lerobot 0.6")
    return found


def _weights(
    directory: Path, policy: Mapping[str, Any], base: str, origin: str, peft: bool
) -> tuple[dict[str, TensorInfo], Adapter | None, str]:
    """The model's tensors by its own names, the adapter, and the variant in words."""
    if not peft:
        found = by_model_name(read_weight_headers(directory), directory)
        plain = {name: info for name, info in found.items() if ".lora_" not in name}
        if len(plain) == len(found):
            return plain, None, "full"
        settings = {
            "r": whole(policy, "lora_rank", directory / "config.json", 1),
            "lora_alpha": whole(policy, "lora_alpha", directory / "config.json", 1),
        }
        matrices = {name.replace(".default.", "."): info for name, info in found.items() if name not in plain}
        return plain, Adapter(matrices, settings, None), f"LoRA of rank {settings['r']} among the weights"
    for name in (ADAPTER, ADAPTER_CONFIG):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory}: a LoRA adapter without {name}; fetch it again, complete")
    settings = read_json(directory / ADAPTER_CONFIG)
    under = base or words(settings, "base_model_name_or_path", directory / ADAPTER_CONFIG) or origin
    holder = resolve_base(under, directory, BASE_PARAMETER, weights=True)
    stored = read_weight_headers(holder)
    named = by_model_name(stored, holder)
    if any(".lora_" in name for name in named):
        raise CheckpointError(f"{directory}: its base {holder} is itself an adapter; merge that one first")
    absolute = {
        name: TensorInfo(str(holder / info.file), info.dtype, info.shape, info.stored) for name, info in named.items()
    }
    matrices = {name: info for name, info in read_header(directory / ADAPTER).items()}
    rank = settings.get("r", "?")
    return absolute, Adapter(matrices, settings, directory), f"LoRA adapter of rank {rank} on {under}"


def _model_files(found: Path, directory: Path) -> Path:
    """Where the model's own files are: `found`, or what that was itself fine-tuned from."""
    for _ in range(4):
        config = read_json(found / "config.json")
        if config.get("type") is None or "text_config" in config:
            return found
        found = resolve_base(words(config, "checkpoint_path", found), found, BASE_PARAMETER, weights=False)
    raise CheckpointError(f"{directory}: its base is a fine-tune of a fine-tune without an end; name {BASE_PARAMETER}")


def _changes(
    policy: Mapping[str, Any], pack: Mapping[str, Any], where: Path, config: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """What a fine-tune's settings change in the model's configuration, as lerobot's policy does it."""
    steps = policy.get("num_inference_steps")
    changed: dict[str, Any] = {
        "max_action_horizon": whole(policy, "chunk_size", where, 1),
        "num_state_tokens": whole(pack, "num_state_tokens", where, 2, config["num_state_tokens"]),
        "add_setup_tokens": switch(pack, "add_setup_tokens", where, True),
        "add_control_tokens": switch(pack, "add_control_tokens", where, True),
        "action_mode": words(policy, "action_mode", where) or "both",
    }
    if steps is not None:
        changed["flow_matching_num_steps"] = whole(policy, "num_inference_steps", where, 1)
        notes.append(f"num_inference_steps {changed['flow_matching_num_steps']}: so many steps of the flow")
    if changed["num_state_tokens"] > config["num_state_tokens"]:
        raise CheckpointError(
            f"{where}: num_state_tokens {changed['num_state_tokens']}, but the base has {config['num_state_tokens']}"
        )
    return changed


def _transform(before: Mapping[str, Any], after: Mapping[str, Any], directory: Path) -> bool:
    """Whether states and actions pass the published SO frame transform."""
    steps = [before["molmoact2_state_frame_transform"], after["molmoact2_action_frame_transform"]]
    found = [declared_transform(step.get("joint_signs"), step.get("joint_offsets"), directory) for step in steps]
    if found[0] != found[1]:
        raise CheckpointError(
            f"{directory}: states pass a frame transform and actions do not, or the reverse; save again"
        )
    return found[0]


def _scaling(
    directory: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[Scaling, dict[str, dict[str, Any]]]:
    """Modes, and the statistics of states and actions as lists."""
    into, out = before["molmoact2_masked_normalizer"], after["molmoact2_masked_unnormalizer"]
    modes = {}
    for kind, step, feature in (("state", into, "STATE"), ("action", out, "ACTION")):
        said = part(step, "norm_map", directory).get(feature, "IDENTITY")
        if said not in LEROBOT_MODES:
            raise CheckpointError(f"{directory}: norm_map {feature} is {said!r}, expected {', '.join(LEROBOT_MODES)}")
        modes[kind] = LEROBOT_MODES[said]
    stats = {
        "state": _stats(directory, into.get("state_file"), STATE, "policy_preprocessor.json"),
        "action": _stats(directory, out.get("state_file"), ACTION, "policy_postprocessor.json"),
    }
    eps = into.get("eps", 1e-8)
    if not isinstance(eps, float) or not 0.0 < eps < 1e-2 or out.get("eps", 1e-8) != eps:
        raise CheckpointError(f"{directory}: eps of the processors must be one small number, got {eps!r}")
    return Scaling("lerobot", modes["state"], modes["action"], eps), stats


def _stats(directory: Path, file: object, key: str, of: str) -> dict[str, Any]:
    """The statistics of one vector in a processor's state file."""
    from safetensors import SafetensorError, safe_open

    path = inside(directory, file, directory / of)
    if not path.is_file():
        raise CheckpointError(f"{directory}: missing {path.name} with the statistics; fetch it again, complete")
    try:
        with safe_open(str(path), framework="numpy") as opened:
            found = {
                name.removeprefix(f"{key}."): np.asarray(opened.get_tensor(name), dtype=np.float32)
                for name in opened.keys()  # noqa: SIM118 - not a mapping
                if name.rpartition(".")[0] == key
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from error
    stats: dict[str, Any] = {name: values.tolist() for name, values in found.items() if values.ndim == 1}
    if not stats:
        raise CheckpointError(f"{path}: no statistics of {key}; it was not saved with the data set's statistics")
    if "mask" in stats:
        stats["mask"] = [bool(value > 0.5) for value in stats["mask"]]
    return {name: values for name, values in stats.items() if name != "count" or len(values) > 1}


def _image_keys(
    policy: Mapping[str, Any], before: Mapping[str, Any], where: Path
) -> tuple[list[str], dict[str, list[str]]]:
    """Keys of the pictures in the prompt's order, and what was renamed to each."""
    pack = before["molmoact2_pack_inputs"]
    keys = names(pack, "image_keys", where)
    if not keys:
        features = policy.get("input_features")
        seen = features.items() if isinstance(features, dict) else ()
        keys = sorted(key for key, about in seen if isinstance(about, dict) and about.get("type") == "VISUAL")
    if not keys:
        raise CheckpointError(f"{where}: image_keys is empty, and input_features has no picture; it sees nothing")
    if len(set(keys)) != len(keys):
        raise CheckpointError(f"{where}: image_keys names a picture twice: {', '.join(keys)}")
    renamed: dict[str, list[str]] = {}
    mapping = before.get("rename_observations_processor", {}).get("rename_map") or {}
    for source, target in part({"rename_map": mapping}, "rename_map", where).items():
        renamed.setdefault(str(target), []).append(str(source))
    return keys, renamed


def _joint_names(policy: Mapping[str, Any], width: int) -> list[str]:
    """Names of the vectors' entries, where the data set had them."""
    said = policy.get("dataset_feature_names")
    found = said.get(ACTION) if isinstance(said, dict) else None
    if isinstance(found, dict):
        found = [name for group in found.values() if isinstance(group, list) for name in group]
    if not isinstance(found, list) or len(found) != width:
        return []
    return [str(name) for name in found]
