"""The one place that calls the reference model and its private functions; `loading.py` pins where they come from.

Nothing is changed in it: the stage times come from wrappers that call the original.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.checkpoints.scaling import LeRobotScaling
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.loading import load_model, modeling, open_processor, require_lerobot
from molmoact2_ros.policy.rtc import Prefix

CELL_PIXELS = 32
CELL_THRESHOLD = 0.996
"""A depth cell is this many pixels wide in the resized image, and counts as changed below this cosine similarity."""

DepthCache = Mapping[str, Any]
"""The reference's own cache of the last frame: `image` uint8 (h, w, 3) and `depth_bins` int64 (cells,)."""


def normalized_task(task: str) -> str:
    """The task as the prompt will say it: lower case, without prefixes and end punctuation; may be empty."""
    return str(modeling()._normalize_question_text(task))


def robot_stats(checkpoint: Checkpoint) -> Any:
    """The reference's own object that scales states and actions, of this checkpoint's tag alone.

    With LeRobot's arithmetic where the checkpoint was trained with it.
    """
    scaling, tag = checkpoint.scaling, checkpoint.norm_tag
    own = scaling.rules == "lerobot"
    payload = {"norm_mode": "none" if own else scaling.state, "metadata_by_tag": {tag: dict(checkpoint.metadata)}}
    stats = modeling()._RobotStats(payload)
    if own:
        for kind, places in (("state", stats.state_normalizers), ("action", stats.action_normalizers)):
            places[tag] = LeRobotScaling(checkpoint.metadata[f"{kind}_stats"], scaling.mode(kind), scaling.eps)
    return stats


def updated_cells(image: NDArray[np.uint8], cache: DepthCache, cells: int) -> NDArray[np.bool_]:
    """Which of the `cells` the reference re-predicts for `image`, given the cache of the last frame: bool (cells,)."""
    module = modeling()
    mask: NDArray[np.bool_] = module._compute_depth_update_mask(
        module._extract_first_image([image]), module._normalize_image_for_cache(cache["image"]), num_depth_codes=cells
    )
    return mask


def resized_for_depth(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`image` uint8 (h, w, 3) as the change of cells is judged on it, (size, size, 3): the reference's pixels, by torch
    where it gives them."""
    if _torch_resizes_alike(image.shape[0], image.shape[1], size):
        return _resized_by_torch(image, size)
    resized: NDArray[np.uint8] = modeling()._resize_depth_reasoning_image(image, size)
    return resized


@cache
def _torch_resizes_alike(height: int, width: int, size: int) -> bool:
    """Whether torch resizes images of this size to the reference's pixels, tried once on noise: at most sizes some
    pixels differ by one, at the usual ones of cameras none does, in a fraction of the time."""
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    resize = modeling()._resize_depth_reasoning_image
    return all(np.array_equal(_resized_by_torch(image, size), resize(image, size)) for image in noise)


def _resized_by_torch(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    picture = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = functional.interpolate(picture, size=(size, size), mode="bilinear", antialias=True)
    found: NDArray[np.uint8] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return found


def prompt_text(
    config: Any, metadata: Mapping[str, Any], task: str, state: NDArray[np.float32], cameras: int, depth: bool
) -> str:
    """The prompt of `predict_action`; `task` as `normalized_task` gives it, `state` (dof,) scaled to -1 .. 1."""
    module = modeling()
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


def steps_of(checkpoint: Checkpoint) -> int:
    """Tokens that a depth sequence may have; 0 without depth reasoning."""
    side = checkpoint.depth_side
    return 0 if side is None else side * side + max(8, int(checkpoint.config["max_action_horizon"])) + 1


def require_room(tokens: int, config: Any, room: int) -> None:
    """A prompt of so many `tokens` must leave `room` for what the model writes.

    Raises:
        ValueError: it does not.
    """
    most = int(config.text_config.max_position_embeddings) - room
    if tokens > most:
        raise ValueError(f"the task is too long: its prompt has {tokens} tokens, {most} fit; say it in fewer words")


def state_bins(state: NDArray[np.float32], num_state_tokens: int) -> list[int]:
    """The state tokens of a scaled state (dof,), as indices."""
    return [int(index) for index in modeling()._discretize_normalized_state(state, num_state_tokens).reshape(-1)]


def bins_of_sequence(tokens: list[int], start: int, end: int, first_code: int, num_codes: int) -> list[int]:
    """The codes between the first `start` and the `end` after it; other tokens are passed over, as by the reference."""
    bins: list[int] = modeling()._extract_discrete_token_bins(
        tokens, start, end, {first_code + code: code for code in range(num_codes)}
    )
    return bins


@dataclass
class StageClock:
    """Adds up time by stage, and counts passes through the language model.

    On a GPU the times are between events in its stream, so that no stage waits for the one before it.
    """

    device: torch.device
    forwards: int = 0
    _marks: list[tuple[str, Any, Any]] = field(default_factory=list)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to stage `name`."""
        start = self._mark()
        try:
            yield
        finally:
            self._marks.append((name, start, self._mark()))

    def reset(self) -> None:
        """Begin a call."""
        self._marks.clear()
        self.forwards = 0

    def seconds(self) -> dict[str, float]:
        """The time in each stage since `reset`, once the device has done what was asked of it."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
        found: dict[str, float] = {}
        for name, start, end in self._marks:
            taken = start.elapsed_time(end) * 1e-3 if on_gpu else end - start
            found[name] = found.get(name, 0.0) + taken
        return found

    def milliseconds(self) -> dict[str, float]:
        """Stage times without overlap: each stage less the stages that ran inside it."""
        raw = {name: 1e3 * value for name, value in self.seconds().items()}
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
            self.model = load_model(checkpoint, device, dtype)
        self.processor = open_processor(checkpoint, self.model.config)
        self.model._molmoact2_robot_stats = robot_stats(checkpoint)
        self.checkpoint = checkpoint
        self.clock = StageClock(device)
        self._room = steps_of(checkpoint)
        self.episode: object = None
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
        """One call of `predict_action` with the task as it is: continuous actions, adaptive depth where it has depth.

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
                normalize_language=False,
                enable_cuda_graph=self.clock.device.type == "cuda",
            )
            actions = output.actions[0].float().cpu().numpy()
        bins = None if output.depth_bins is None else output.depth_bins[0].cpu().numpy()
        updated = None
        if bins is not None:
            cells = bins.size
            updated = np.ones(cells, bool) if depth_cache is None else updated_cells(images[0], depth_cache, cells)
        return Answer(actions, bins, updated, output.depth_cache, self.clock.milliseconds(), self.clock.forwards)

    guidable = False

    def new_episode(self) -> object:
        """An episode's beginning; the reference keeps nothing of its own."""
        return None

    def reset(self) -> None:
        """Begin an episode."""

    def _timed_processor(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.stage("preprocess"):
            made = self.processor(*args, **kwargs)
        require_room(made["input_ids"].shape[1], self.model.config, self._room)
        return made

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
