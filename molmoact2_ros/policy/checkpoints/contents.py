"""What a checkpoint's files say, before it is held against a robot; every layout comes down to this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molmoact2_ros.policy.checkpoints.scaling import Scaling
from molmoact2_ros.policy.checkpoints.settings import CheckpointError, part, switch, whole
from molmoact2_ros.policy.checkpoints.views import View
from molmoact2_ros.policy.checkpoints.weights import TensorInfo

MODEL_TYPE = "molmoact2"


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices that are merged into the weights at loading.

    Attributes:
        tensors: by the layer that each belongs to and "A", "B" or another part of it.
        settings: of peft's configuration. directory: where `adapter_config.json` is; None where the matrices lie among
            the weights and `settings` is all there is.
    """

    tensors: Mapping[str, TensorInfo]
    settings: Mapping[str, Any]
    directory: Path | None


@dataclass(frozen=True)
class Contents:
    """See the module.

    Attributes:
        layout: "released" or "lerobot".
        what: the layout in words, with the variant.
        directory: the checkpoint's. processor: where processor and tokenizer files are.
        config: the model's configuration, with what a fine-tune changes in it.
        norm_tag: the tag in use; "lerobot" where the layout has none.
        metadata: about the tag, in the words of `norm_stats.json`.
        scaling: how vectors are scaled. transform: the files carry the published SO frame transform.
        views: the pictures that it wants, in order.
        normalize_language: the task is tidied up before it goes into the prompt.
        depth: what it was trained for includes depth reasoning.
        tensors: the stored weights by the model's names. adapter: LoRA.
        notes: what the user should know, one line each.
    """

    layout: str
    what: str
    directory: Path
    processor: Path
    config: Mapping[str, Any]
    norm_tag: str
    metadata: Mapping[str, Any]
    scaling: Scaling
    views: tuple[View, ...]
    tensors: Mapping[str, TensorInfo]
    transform: bool = False
    normalize_language: bool = True
    depth: bool = True
    adapter: Adapter | None = None
    notes: tuple[str, ...] = field(default=())


def checked_config(config: Mapping[str, Any], where: Path, notes: list[str]) -> dict[str, Any]:
    """The configuration of a MolmoAct2 model, with what cannot run here put right or refused.

    Raises:
        CheckpointError: it is another architecture's, quantised, or a value in it cannot be.
    """
    kind = config.get("model_type") or config.get("type")
    if "text_config" not in config or kind != MODEL_TYPE:
        raise CheckpointError(
            f"{where}: not a MolmoAct2 checkpoint: expected model_type {MODEL_TYPE!r} with a text_config, or a LeRobot "
            f"policy of type {MODEL_TYPE!r}; it says {kind!r}"
        )
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{where}: quantization_config is set: quantised weights cannot be read; use the checkpoint that they were "
            "made from"
        )
    found = dict(config)
    for key, least in (("max_action_dim", 1), ("max_action_horizon", 1), ("num_state_tokens", 2)):
        found[key] = whole(config, key, where, least)
    for key, default in (("flow_matching_num_steps", 10), ("n_obs_steps", 1)):
        found[key] = whole(config, key, where, 1, default)
    for key in ("image_patch_id", "state_start_token_id", "state_token_start_id", "action_output_token_id"):
        found[key] = whole(config, key, where, 0)
    for key in ("add_setup_tokens", "add_control_tokens"):
        found[key] = switch(config, key, where, True)
    for section in ("vit_config", "adapter_config", "text_config", "action_expert_config"):
        if config.get(section) is not None or section != "action_expert_config":
            found[section] = part(config, section, where)
    for section, values in (("", found), *((name, value) for name, value in found.items() if name.endswith("_config"))):
        for key in ("attn_implementation", "_attn_implementation"):
            if isinstance(values, dict) and values.get(key) not in (None, "sdpa", "eager"):
                inside = f"{section}." if section else ""
                notes.append(f"config.json: {inside}{key} {values[key]!r} is not used here: sdpa computes the same")
                values[key] = "sdpa"
    return found


def depth_side(config: Mapping[str, Any], where: object) -> int | None:
    """Cells on a side of the depth grid; None without depth reasoning.

    Raises:
        CheckpointError: depth is on, and its settings cannot be.
    """
    if not switch(config, "enable_depth_reasoning", where, False):
        return None
    codes, kinds = whole(config, "num_depth_codes", where, 1), whole(config, "num_depth_tokens", where, 1)
    side = math.isqrt(codes)
    if side * side != codes or kinds > 256:
        raise CheckpointError(
            f"{where}: depth reasoning needs a square number of cells and at most 256 codes, got {codes}, {kinds}"
        )
    for key in ("depth_start_token_id", "depth_end_token_id", "depth_token_start_id"):
        whole(config, key, where, 0)
    return side
