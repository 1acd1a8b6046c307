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
from molmoact2_ros.policy.checkpoints.weights import check_tensors
from molmoact2_ros.policy.reference_contract import broken
from molmoact2_ros.policy.tensors import WeightsLook, WeightTypes, read_tensors

LEROBOT, SERIES = "0.6.1", "0.6."
"""The version that is tested, and those that may run: what is called in them is checked when it is loaded."""

_PACKAGE = "lerobot.policies.molmoact2.molmoact2_hf_model"
_ALIAS = "molmoact2_reference"
_HELD: set[ModuleType] = set()
"""Modules whose functions were found to be as tested."""
_LABELS = {"auto_map", "processor_class", "image_processor_type", "video_processor_type"}


def require_lerobot() -> None:
    """Refuse another series of lerobot than the one this adapter was written against.

    Raises:
        RuntimeError: lerobot is absent, or of another version.
    """
    try:
        found = version("lerobot")
    except PackageNotFoundError:
        raise RuntimeError(f"lerobot is not installed; install lerobot[molmoact2]=={LEROBOT}") from None
    if not found.startswith(SERIES):
        raise RuntimeError(
            f"lerobot {found} is installed, the policy needs {SERIES}x: it calls private functions of the reference "
            f"model, which differ in other series; install lerobot[molmoact2]=={LEROBOT}"
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
    """The reference's `modeling_molmoact2`.

    Raises:
        RuntimeError: lerobot is absent, of another series, or what is called in it has changed.
    """
    module = reference_module("modeling_molmoact2")
    if module not in _HELD:
        changed = broken(module)
        if changed:
            raise RuntimeError(
                f"lerobot {version('lerobot')} differs from {LEROBOT} in what the policy calls: {'; '.join(changed)}; "
                f"install lerobot[molmoact2]=={LEROBOT}"
            )
        _HELD.add(module)
    return module


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


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | WeightTypes) -> Any:
    """The reference model with the weights of `checkpoint`, strictly, in evaluation mode.

    The class's own `from_pretrained` is not used: with this version of transformers it loads the weights and then draws
    most of them anew, because the class initialises through `.data`, which transformers does not guard. Weights are
    read one by one into their final type and place, so that no more than one is held twice.

    Raises:
        CheckpointError: the weights do not fit the configuration, the files cannot be read, or what is in them cannot
            be weights.
    """
    types = dtype if isinstance(dtype, WeightTypes) else WeightTypes(dtype, dtype)
    model = empty_model(checkpoint.config)
    wanted = model.state_dict()
    check_tensors(
        checkpoint.tensors, {name: tuple(value.shape) for name, value in wanted.items()}, checkpoint.directory
    )
    look = WeightsLook(checkpoint.directory)
    by_file: dict[str, list[tuple[str, str]]] = {}
    for name in wanted:
        info = checkpoint.tensors[name]
        by_file.setdefault(info.file, []).append((info.stored or name, name))
    weights: dict[str, torch.Tensor] = {}
    for file, pairs in sorted(by_file.items()):
        for name, tensor in read_tensors(checkpoint.directory / file, pairs):
            look.at(name, tensor)
            weights[name] = tensor.to(device=device, dtype=types.of(name, tensor), copy=True)
    look.finish()
    model.load_state_dict(weights, strict=True, assign=True)
    if checkpoint.adapter is not None:
        from molmoact2_ros.policy.adapters import merged

        model = merged(model, checkpoint.adapter, checkpoint.directory)
    model.config._name_or_path = str(checkpoint.directory)
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
            kind: {key: value for key, value in _part(directory, config, kind).items() if key not in _LABELS}
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


_OWN_FILES = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
"""Where transformers 4 kept what transformers 5 keeps in `processor_config.json`."""


def _part(directory: Path, config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The settings of one part of the processor, from its own file where the common one does not have them."""
    own = directory / _OWN_FILES[kind]
    if not config.get(kind) and own.is_file():
        return dict(json.loads(own.read_text()))
    if not config.get(kind) and kind == "image_processor":
        raise ValueError(f"neither processor_config.json nor {own.name} says how images are prepared")
    return dict(config.get(kind) or {})


def open_processor(checkpoint: Checkpoint, config: Any) -> Any:
    """The processor of a checkpoint whose model has the configuration `config`, once it is known to be this model's.

    Raises:
        CheckpointError: its files are missing, or of another model.
    """
    processor = load_processor(checkpoint.processor)
    check_tokenizer(checkpoint, processor.tokenizer, config)
    check_processor(checkpoint, processor, config)
    return processor


def check_processor(checkpoint: Checkpoint, processor: Any, config: Any) -> None:
    """Images must come out of the processor in the size that the model was made for.

    Raises:
        CheckpointError: they do not.
    """
    image, vit = processor.image_processor, config.vit_config
    size = (int(image.size["height"]), int(image.size["width"]))
    wanted = tuple(int(side) for side in vit.image_default_input_size)
    found = [f"images of {size[0]} x {size[1]}"] if size != wanted else []
    if int(image.patch_size) != int(vit.image_patch_size):
        found.append(f"patches of {image.patch_size}")
    if found:
        raise CheckpointError(
            f"{checkpoint.processor}: its processor gives {' and '.join(found)}, the model takes {wanted[0]} x "
            f"{wanted[1]} in patches of {vit.image_patch_size}; the processor's files are another checkpoint's"
        )


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Any, config: Any) -> None:
    """The tokenizer's ids must be the configuration's: another tokenizer would prompt in another language.

    Raises:
        CheckpointError: they are not.
    """
    expected = {
        "<im_patch>": config.image_patch_id,
        "<action_output>": config.action_output_token_id,
        "<state_start>": config.state_start_token_id,
        **_family("state", config.state_token_start_id, config.num_state_tokens),
    }
    if checkpoint.depth_side is not None:
        expected["<depth_start>"] = config.depth_start_token_id
        expected["<depth_end>"] = config.depth_end_token_id
        expected |= _family("depth", config.depth_token_start_id, config.num_depth_tokens)
    if config.num_action_tokens:
        expected |= _family("action", config.action_token_start_id, config.num_action_tokens)
    ids = tokenizer.convert_tokens_to_ids(list(expected))
    wrong = [
        f"{token} is {found} instead of {index}"
        for (token, index), found in zip(expected.items(), ids, strict=True)
        if index is not None and found != index
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.processor}: the tokenizer is not this model's: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; use the files of one checkpoint together"
        )


def _family(name: str, first: int | None, count: int | None) -> dict[str, int]:
    """The ids that `<name_0>`, `<name_1>`, ... must have."""
    return {} if first is None else {f"<{name}_{index}>": int(first) + index for index in range(int(count or 0))}
