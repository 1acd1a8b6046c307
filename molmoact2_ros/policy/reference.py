"""The one place that touches the reference model's classes and private functions, pinned to the version they come from.

The reference is `MolmoAct2ForConditionalGeneration` as it ships in lerobot. Nothing is changed in it: the stage times
come from wrappers that call the original.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact2_ros.policy.checkpoint import Checkpoint, CheckpointError
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.rtc import Prefix
from molmoact2_ros.policy.weights import TensorInfo, check_tensors

LEROBOT = "0.6.1"
"""The version whose private functions are used here."""

_PACKAGE = "lerobot.policies.molmoact2.molmoact2_hf_model"
_ALIAS = "molmoact2_reference"
_LABELS = {"auto_map", "processor_class", "image_processor_type", "video_processor_type"}

CELL_PIXELS = 32
CELL_THRESHOLD = 0.996
"""A depth cell is this many pixels wide in the resized picture, and counts as changed below this cosine similarity."""

DepthCache = Mapping[str, Any]
"""The reference's own cache of the last frame: `image` uint8 (h, w, 3) and `depth_bins` int64 (cells,)."""


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


def normalized_task(task: str) -> str:
    """The task as the prompt will say it: lower case, without prefixes and end punctuation; may be empty."""
    return str(_modeling()._normalize_question_text(task))


def updated_cells(image: NDArray[np.uint8], cache: DepthCache, cells: int) -> NDArray[np.bool_]:
    """Which of the `cells` the reference re-predicts for `image`, given the cache of the last frame: bool (cells,)."""
    module = _modeling()
    mask: NDArray[np.bool_] = module._compute_depth_update_mask(
        module._extract_first_image([image]), module._normalize_image_for_cache(cache["image"]), num_depth_codes=cells
    )
    return mask


def resized_for_depth(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`image` uint8 (h, w, 3) as the change of cells is judged on it, (size, size, 3)."""
    resized: NDArray[np.uint8] = _modeling()._resize_depth_reasoning_image(image, size)
    return resized


def prompt_text(
    config: Any, metadata: Mapping[str, Any], task: str, state: NDArray[np.float32], cameras: int, depth: bool
) -> str:
    """The prompt of `predict_action`; `task` as `normalized_task` gives it, `state` (dof,) scaled to -1 .. 1."""
    module = _modeling()
    text: str = module._build_robot_text(
        task=task,
        style="robot_depth_action" if depth else "robot_action",
        discrete_state_string=module._build_discrete_state_string(state, int(config.num_state_tokens)),
        setup_type=str(metadata.get("setup_type", "") or ""),
        control_mode=str(metadata.get("control_mode", "") or ""),
        add_setup_tokens=bool(config.add_setup_tokens),
        add_control_tokens=bool(config.add_control_tokens),
        num_images=cameras,
    )
    return text


def state_bins(state: NDArray[np.float32], num_state_tokens: int) -> list[int]:
    """The state tokens of a scaled state (dof,), as indices."""
    return [int(index) for index in _modeling()._discretize_normalized_state(state, num_state_tokens).reshape(-1)]


def bins_of_sequence(tokens: list[int], start: int, end: int, first_code: int, num_codes: int) -> list[int]:
    """The codes between the first `start` and the `end` after it; other tokens are passed over, as by the reference."""
    bins: list[int] = _modeling()._extract_discrete_token_bins(
        tokens, start, end, {first_code + code: code for code in range(num_codes)}
    )
    return bins


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
            return _modeling().MolmoAct2ForConditionalGeneration(settings)
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


@dataclass
class StageClock:
    """Adds up wall time by stage, and counts passes through the language model."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: int = 0

    def now(self) -> float:
        """Seconds, once the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to stage `name`."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

    def reset(self) -> None:
        """Begin a call."""
        self.seconds.clear()
        self.forwards = 0

    def milliseconds(self) -> dict[str, float]:
        """Stage times without overlap: each stage less the stages that ran inside it."""
        raw = {name: 1e3 * value for name, value in self.seconds.items()}
        # Without depth reasoning the reference goes past its outer class, which has the head.
        total, forward = raw.get("total", 0.0), raw.get("forward", raw.get("prompt", 0.0))
        vision = raw.get("vision", 0.0)
        depth = raw.get("depth", 0.0)
        # Without depth reasoning the prefill runs inside the flow call, with it inside the depth call.
        inside_flow = 0.0 if "depth" in raw else forward
        return {
            "preprocess": raw.get("preprocess", 0.0),
            "vision": vision,
            "prefill": forward - vision,
            "depth": max(depth - forward, 0.0),
            "flow": max(raw.get("flow", 0.0) - inside_flow, 0.0),
            "total": total,
        }


@dataclass(frozen=True)
class Answer:
    """What one call gave: actions (rows, dof) float32 in the checkpoint's units, the depth bins (cells,), which of them
    were predicted anew (cells,), and the next cache."""

    actions: NDArray[np.float32]
    depth_bins: NDArray[np.int64] | None
    depth_updated: NDArray[np.bool_] | None
    depth_cache: DepthCache | None
    timings_ms: dict[str, float]
    forwards: int


class ReferenceModel:
    """The reference model with its processor, loaded strictly, answering by `predict_action`."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, loaded: Any = None) -> None:
        """`loaded` is a model that has its weights already, and will be hooked; None loads the checkpoint's."""
        require_lerobot()
        self.model = loaded
        if loaded is None:
            self.model = load_model(checkpoint.directory, checkpoint.config, checkpoint.tensors, device, dtype)
        self.processor = load_processor(checkpoint.directory)
        self.checkpoint = checkpoint
        self.clock = StageClock(device)
        check_tokenizer(checkpoint, self.processor.tokenizer, self.model.config)
        self._hook()

    def predict(
        self,
        images: list[NDArray[np.uint8]],
        task: str,
        state: NDArray[np.float64],
        *,
        depth_cache: DepthCache | None,
        generator: torch.Generator,
        bound: Prefix | None = None,
    ) -> Answer:
        """One call of `predict_action`: continuous actions, adaptive depth where the checkpoint has depth.

        Raises:
            ValueError: it should be guided.
            UnendedSequenceError: the model gave no depth sequence that ends.
        """
        if bound is not None:
            raise ValueError("the reference's predict_action cannot be guided by a prefix; use backend torch")
        self.clock.reset()
        with torch.inference_mode(), self.clock.stage("total"), _unended_named():
            output = self.model.predict_action(
                processor=self._timed_processor,
                images=images,
                task=task,
                state=state,
                norm_tag=self.checkpoint.norm_tag,
                inference_action_mode="continuous",
                enable_depth_reasoning=self.checkpoint.depth_side is not None,
                enable_adaptive_depth=True,
                depth_cache=depth_cache,
                generator=generator,
                enable_cuda_graph=self.clock.device.type == "cuda",
            )
            actions = output.actions[0].float().cpu().numpy()
        bins = None if output.depth_bins is None else output.depth_bins[0].cpu().numpy()
        updated = None
        if bins is not None:
            cells = bins.size
            updated = np.ones(cells, bool) if depth_cache is None else updated_cells(images[0], depth_cache, cells)
        return Answer(actions, bins, updated, output.depth_cache, self.clock.milliseconds(), self.clock.forwards)

    def reset(self) -> None:
        """Begin an episode; the reference keeps nothing of its own."""

    def _timed_processor(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("preprocess"):
            return self.processor(*args, **kwargs)

    def _hook(self) -> None:
        """Time the stages where the reference passes from one to the next."""
        clock, model = self.clock, self.model

        def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with clock.stage(name):
                    return original(*args, **kwargs)

            return call

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                clock.forwards += 1
                return original(*args, **kwargs)

            return call

        model.forward = timed("forward", model.forward)
        model.model.forward = counted(timed("prompt", model.model.forward))
        model._run_ar_decode_step = counted(model._run_ar_decode_step)
        model._generate_depth_prefix = timed("depth", model._generate_depth_prefix)
        model.model.generate_actions_from_inputs = timed("flow", model.model.generate_actions_from_inputs)
        backbone = model.model.vision_backbone
        backbone.forward = timed("vision", backbone.forward)


@contextmanager
def _unended_named() -> Iterator[None]:
    """Give the reference's errors about sequences without an end, which only their text tells, a type of their own."""
    try:
        yield
    except RuntimeError as error:
        if "did not emit" in str(error):
            raise UnendedSequenceError(str(error)) from error
        raise


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


def _modeling() -> ModuleType:
    return reference_module("modeling_molmoact2")
