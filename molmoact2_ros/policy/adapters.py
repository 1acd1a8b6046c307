"""LoRA: a fine-tune's small matrices, merged into the weights by peft when the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molmoact2_ros.policy.checkpoint import CheckpointError
from molmoact2_ros.policy.checkpoints.contents import Adapter
from molmoact2_ros.policy.tensors import read_tensors


class _Policy(nn.Module):
    """Holds the model where lerobot's policy holds it, so that an adapter's names are found."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def merged(model: Any, adapter: Adapter, directory: Path) -> Any:
    """`model` with the adapter in its weights.

    Raises:
        CheckpointError: the adapter is not this model's, or of a kind that peft cannot merge.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    device = next(model.parameters()).device
    names = {info.file for info in adapter.tensors.values()}
    matrices: dict[str, torch.Tensor] = {}
    for file in sorted(names):
        pairs = [(info.stored or name, name) for name, info in adapter.tensors.items() if info.file == file]
        matrices |= {
            name: tensor.to(device=device, copy=True) for name, tensor in read_tensors(directory / file, pairs)
        }
    try:
        if adapter.directory is None:
            layers = sorted({name.rpartition(".lora_")[0] for name in matrices})
            wrapped = get_peft_model(model, LoraConfig(target_modules=layers, **adapter.settings))
            matrices = {f"base_model.model.{name}": tensor for name, tensor in matrices.items()}
            holder: Any = None
        else:
            said = json.loads((adapter.directory / "adapter_config.json").read_text())
            if said.get("peft_type") != "LORA":
                raise CheckpointError(
                    f"{directory}: a {said.get('peft_type')} adapter, expected LORA; merge it with peft"
                )
            holder = _Policy(model)
            settings = LoraConfig.from_pretrained(str(adapter.directory))
            settings.base_model_name_or_path = None  # known already, and peft warns that this model has another
            wrapped = get_peft_model(holder, settings)
        result: Any = set_peft_model_state_dict(wrapped, matrices)
        fresh = [name for name in wrapped.state_dict() if ".lora_" in name or ".modules_to_save." in name]
        absent = [name for name in result.missing_keys if ".lora_" in name]
        if result.unexpected_keys or absent or not fresh:
            odd = [*result.unexpected_keys, *absent] or ["no layer of it"]
            raise CheckpointError(
                f"{directory}: the adapter is not this base's: {', '.join(odd[:3])} does not fit; name the base that "
                "it was trained on as base_checkpoint"
            )
        whole = wrapped.merge_and_unload(safe_merge=True)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{directory}: the LoRA adapter cannot be merged: {error}") from error
    return whole.model if holder is not None else whole
