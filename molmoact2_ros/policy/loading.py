"""Finds and loads the reference model's classes, its weights and its processor, of the pinned version only.

The reference is `MolmoAct2ForConditionalGeneration` as it ships in lerobot; what calls it is in `reference.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from molmoact2_ros.policy.checkpoint import Checkpoint, CheckpointError
from molmoact2_ros.policy.weights import TensorInfo, check_tensors

LEROBOT = "0.6.1"
"""The version whose private functions are used here."""

_PACKAGE = "lerobot.policies.molmoact2.molmoact2_hf_model"
_ALIAS = "molmoact2_reference"
_LABELS = {"auto_map", "processor_class", "image_processor_type", "video_processor_type"}


def require_lerobot() -> None:
    """Refuse another version of lerobot than the one this adapter was written against.

    Raises:
        RuntimeError: lerobot is absent, or of another version.
    """
    try:
        found = version("lerobot")
    except PackageNotFoundError:
        raise RuntimeError(f"lerobot is not installed; install lerobot[molmoact2]=={LEROBOT}") from None
    if found != LEROBOT:
        raise RuntimeError(
            f"lerobot {found} is installed, the policy needs {LEROBOT}: it calls private functions of the reference "
            f"model, which may differ in another version; install lerobot[molmoact2]=={LEROBOT}"
        )


def reference_module(name: str) -> ModuleType:
    """A module of the reference model's folder, such as `modeling_molmoact2`.

    The folder stands alone, so it is imported under a name of its own: importing it as a part of lerobot would import
    every policy, environment and data set that lerobot has: seconds of the node's start. Where lerobot's own is
    loaded already, that one is taken, so that a process has each class once.

    Raises:
        RuntimeError: lerobot is absent, or of another version.
    """
    require_lerobot()
    package = _PACKAGE if _PACKAGE in sys.modules else _ALIAS
    if package not in sys.modules:
        found = importlib.util.find_spec("lerobot")
        assert found is not None and found.submodule_search_locations
        folder = Path(found.submodule_search_locations[0], *_PACKAGE.split(".")[1:])
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not folder.is_dir():
            raise RuntimeError(f"lerobot {LEROBOT} has no folder {folder}; reinstall lerobot[molmoact2]=={LEROBOT}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")


def modeling() -> ModuleType:
    """The reference's `modeling_molmoact2`."""
    return reference_module("modeling_molmoact2")


def empty_model(config: Mapping[str, Any]) -> Any:
    """The reference model that `config` (the content of `config.json`) describes, on the meta device: no memory taken.

    Raises:
        CheckpointError: the configuration describes no MolmoAct2 model.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # The class calls a function that transformers has emptied and announces; nothing the user can act on.
            warnings.filterwarnings("ignore", message="`rope_config_validation` is deprecated")
            settings = reference_module("configuration_molmoact2").MolmoAct2Config(**config)
            return modeling().MolmoAct2ForConditionalGeneration(settings)
    except Exception as error:
        raise CheckpointError(f"config.json does not describe a MolmoAct2 model: {error}") from error


def load_model(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """The reference model with the weights of `directory`, strictly, in evaluation mode.

    The class's own `from_pretrained` is not used: with this version of transformers it loads the weights and then draws
    most of them anew, because the class initialises through `.data`, which transformers does not guard.

    Raises:
        CheckpointError: the weights do not fit the configuration, or the files cannot be read.
    """
    from safetensors.torch import load_file

    model = empty_model(config)
    check_tensors(tensors, {name: tuple(value.shape) for name, value in model.state_dict().items()}, directory)
    weights: dict[str, torch.Tensor] = {}
    for name in sorted({tensor.file for tensor in tensors.values()}):
        try:
            shard = load_file(str(directory / name), device=str(device))
        except Exception as error:
            raise CheckpointError(f"{directory / name} cannot be read: {error}") from error
        # Rotary frequencies stay float32: the model computes them anew anyway.
        weights.update({key: value if "inv_freq" in key else value.to(dtype) for key, value in shard.items()})
    model.load_state_dict(weights, strict=True, assign=True)
    model.config._name_or_path = str(directory)
    return model.requires_grad_(False).eval()


def load_processor(directory: Path) -> Any:
    """The processor of the checkpoint in `directory`, from its local files alone.

    Raises:
        CheckpointError: a file is missing or does not describe a processor.
    """
    from transformers import Qwen2Tokenizer

    try:
        config = json.loads((directory / "processor_config.json").read_text())
        parts = {
            kind: {key: value for key, value in dict(config.get(kind) or {}).items() if key not in _LABELS}
            for kind in ("image_processor", "video_processor")
        }
        template = directory / "chat_template.jinja"
        return reference_module("processing_molmoact2").MolmoAct2Processor(
            image_processor=reference_module("image_processing_molmoact2").MolmoAct2ImageProcessor(
                **parts["image_processor"]
            ),
            video_processor=reference_module("video_processing_molmoact2").MolmoAct2VideoProcessor(
                **parts["video_processor"]
            ),
            tokenizer=Qwen2Tokenizer.from_pretrained(str(directory), local_files_only=True),
            chat_template=template.read_text() if template.is_file() else None,
            image_use_col_tokens=config.get("image_use_col_tokens", True),
            use_single_crop_col_tokens=config.get("use_single_crop_col_tokens"),
            use_single_crop_start_token=config.get("use_single_crop_start_token", True),
            video_use_col_tokens=config.get("video_use_col_tokens", False),
            use_frame_special_tokens=config.get("use_frame_special_tokens", True),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{directory}: its processor or tokenizer files cannot be loaded: {error}") from error


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Any, config: Any) -> None:
    """The tokenizer's ids must be the configuration's: another tokenizer would prompt in another language.

    Raises:
        CheckpointError: they are not.
    """
    expected = {
        "<im_patch>": config.image_patch_id,
        "<action_output>": config.action_output_token_id,
        "<state_0>": config.state_token_start_id,
    }
    if checkpoint.depth_side is not None:
        expected["<depth_0>"] = config.depth_token_start_id
        expected["<depth_end>"] = config.depth_end_token_id
    wrong = [
        f"{token} is {tokenizer.convert_tokens_to_ids(token)} instead of {index}"
        for token, index in expected.items()
        if index is not None and tokenizer.convert_tokens_to_ids(token) != index
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.directory}: the tokenizer is not this model's: {', '.join(wrong)}; use the files of "
            "one checkpoint together"
        )
