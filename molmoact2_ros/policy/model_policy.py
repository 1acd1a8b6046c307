"""A policy around a model that answers like `predict_action`: what every backend checks, keeps and converts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.agreement import trained_range
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.checkpoints.special_tokens import added_tokens, token_in
from molmoact2_ros.policy.interface import Observation, Prediction
from molmoact2_ros.policy.options import MAX_GAP_S
from molmoact2_ros.policy.reference import Answer, DepthCache, normalized_task
from molmoact2_ros.policy.rtc import ChunkGuide, Prefix, RTCOptions
from molmoact2_ros.policy.tensors import MIXED, WeightTypes

DTYPES: dict[str, torch.dtype | WeightTypes] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "mixed": MIXED,
}


class Model(Protocol):
    """What a backend's model offers.

    Attributes:
        episode: what it keeps of the present episode; whoever alternates between episodes sets it before a call.
    """

    episode: Any

    @property
    def guidable(self) -> bool:
        """Whether a prefix can guide it."""

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
        """One call, guided by `bound`; a failed one leaves no trace."""

    def new_episode(self) -> Any:
        """What it keeps of an episode that begins."""


class ModelPolicy:
    """Runs a checkpoint with the model that a backend makes of it.

    Invariant: the depth cache belongs to the last prediction of the present task; `reset`, another task, another image
    size and a gap in time drop it. A failed call leaves it as it was, and also the chunk that guides the next one.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        robot: Embodiment,
        open_model: Callable[[torch.device, torch.dtype | WeightTypes], Model],
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        seed: int = 0,
        log: Callable[[str], None],
        rtc: RTCOptions | None = None,
        max_gap_s: float = MAX_GAP_S,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if threads > 0:
            torch.set_num_threads(threads)
        where = _device(device)
        self._checkpoint = checkpoint
        self._robot = robot
        self._model = open_model(where, _dtype(dtype, where))
        self._now_ns = now_ns
        self._tokens = added_tokens(checkpoint.processor)
        self._device = where
        self._begin(seed, rtc or RTCOptions(), max_gap_s, log)

    def _begin(self, seed: int, rtc: RTCOptions, max_gap_s: float, log: Callable[[str], None]) -> None:
        """Set all that is not shared with the policies beside this one."""
        self._log = log
        self._generator = torch.Generator(device=self._device).manual_seed(seed)
        self._guide = ChunkGuide(rtc, self._checkpoint.rate_hz, _ranges(self._checkpoint, self._robot))
        self._max_gap_s = max_gap_s
        self._episode = self._model.new_episode()
        self._cache: DepthCache | None = None
        self._cache_task = ""
        self._cache_stamp_ns = 0
        self._outside: tuple[str, ...] = ()

    def beside(self, *, seed: int, rtc: RTCOptions, max_gap_s: float, log: Callable[[str], None]) -> Self:
        """A policy with the same weights and an episode of its own, for another robot; see `open_policy` for the
        arguments. One of them infers at a time.

        Raises:
            ValueError: `rtc` is asked for, and the model cannot be guided.
        """
        if rtc.enabled and not self._model.guidable:
            raise ValueError("rtc guides the flow, which this model or its action mode has not; switch rtc.enabled off")
        other = copy.copy(self)
        other._begin(seed, rtc, max_gap_s, log)
        return other

    @property
    def checkpoint(self) -> Checkpoint:
        """What is being run."""
        return self._checkpoint

    def reset(self) -> None:
        """Begin an episode: the next call predicts every cell, and no chunk before it guides it."""
        self._cache = None
        self._guide.reset()
        self._episode = self._model.new_episode()

    def close(self) -> None:
        """The model goes with the last policy that has it."""

    def infer(self, observation: Observation, latency_s: float | None = None) -> Prediction:
        """Predict a chunk; see `Policy.infer`.

        Args:
            latency_s: capture to chunk of the call before this one, s, where only the caller can know it; None: it is
                measured here, up to the answer's end. A negative one is passed over.
        """
        task = normalized_task(observation.task)
        if task and not self._checkpoint.normalize_language:
            task = observation.task
        if not task:
            raise ValueError(
                f"the task {observation.task!r} is empty: without words the model moves confidently and wrongly; say "
                "what to do, for example 'pick up the red cube'"
            )
        token = token_in(observation.task, self._tokens)
        if token:
            raise ValueError(
                f"the task {observation.task[:200]!r} contains {token}, which means something else to the model than "
                "words; leave it out"
            )
        images = self._images(observation)
        joints = self._robot.checked(observation.joints, "joint positions")
        if joints.ndim != 1:
            raise ValueError(f"{self._robot.name}: one state of {self._robot.dof} joints expected, got {joints.shape}")
        state = self._robot.model_from_joints(joints, self._checkpoint.frame)
        self._report_outside(state)
        cache = self._usable_cache(task, images[0], observation)
        if latency_s is not None:
            self._guide.latencies.add(latency_s)
        bound = self._guide.prefix(observation.stamp_ns, task, self._checkpoint.horizon, state)
        self._model.episode = self._episode
        answer = self._model.predict(images, task, state, depth_cache=cache, generator=self._generator, bound=bound)
        size = (self._checkpoint.horizon, self._robot.dof)
        if answer.actions.shape != size or not np.all(np.isfinite(answer.actions)):
            raise RuntimeError(
                f"the model gave a chunk of shape {answer.actions.shape} with "
                f"{int(np.sum(~np.isfinite(answer.actions)))} non-finite values, expected "
                f"{size} finite ones"
            )
        codes, updated = self._depth(answer)
        self._cache, self._cache_task = answer.depth_cache, task
        self._cache_stamp_ns = observation.stamp_ns
        measured_s = None if latency_s is not None else (self._now_ns() - observation.stamp_ns) * 1e-9
        self._guide.published(answer.actions, observation.stamp_ns, task, measured_s)
        return Prediction(
            stamp_ns=observation.stamp_ns,
            chunk_model=answer.actions,
            chunk_joints=self._robot.joints_from_model(answer.actions.astype(np.float64), self._checkpoint.frame),
            rate_hz=self._checkpoint.rate_hz,
            depth_codes=codes,
            depth_updated=updated,
            timings_ms=answer.timings_ms,
            forwards=answer.forwards,
            guided_rows=0 if bound is None else int(np.count_nonzero(bound.weights)),
        )

    def _images(self, observation: Observation) -> list[NDArray[np.uint8]]:
        """The images in the order of the prompt."""
        wanted, got = self._checkpoint.cameras, set(observation.images)
        if got != set(wanted) or set(observation.image_stamps_ns) != got:
            raise ValueError(
                f"the checkpoint needs the cameras {', '.join(wanted)}, got {', '.join(sorted(got)) or 'none'}; "
                "start the missing ones and leave out the others"
            )
        images = [np.ascontiguousarray(observation.images[name]) for name in wanted]
        for name, image in zip(wanted, images, strict=True):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(
                    f"camera {name!r}: expected RGB uint8 (height, width, 3), got {image.dtype} {image.shape}"
                )
        return images

    def _usable_cache(self, task: str, image: NDArray[np.uint8], observation: Observation) -> DepthCache | None:
        cache = self._cache
        if cache is None or self._checkpoint.depth_side is None:
            return None
        if task != self._cache_task:
            return None
        gap = observation.stamp_ns - self._cache_stamp_ns
        if not 0 <= gap <= self._max_gap_s * 1e9:
            self._log(f"depth cache dropped: {gap / 1e9:.2f} s since the last prediction; every cell is predicted anew")
            return None
        if np.shape(cache["image"]) != image.shape:
            self._log(f"depth cache dropped: the main camera changed from {np.shape(cache['image'])} to {image.shape}")
            return None
        cells = self._checkpoint.depth_side**2
        if np.size(cache["depth_bins"]) != cells:
            self._log(
                f"depth cache unusable: it has {np.size(cache['depth_bins'])} codes instead of {cells}; every cell is "
                "predicted anew"
            )
            return None
        return cache

    def _depth(self, answer: Answer) -> tuple[NDArray[np.uint8] | None, NDArray[np.bool_] | None]:
        side, bins, updated = self._checkpoint.depth_side, answer.depth_bins, answer.depth_updated
        if side is None or bins is None or updated is None:
            return None, None
        if bins.size != side * side:
            raise RuntimeError(f"the model gave {bins.size} depth codes, expected {side} x {side}")
        return bins.reshape(side, side).astype(np.uint8), updated.reshape(side, side)

    def _report_outside(self, state: NDArray[np.float64]) -> None:
        """Say, when it changes, which joints have left the range of the training states (they are clipped to it)."""
        low, high = trained_range(self._checkpoint.metadata["state_stats"], self._checkpoint.state_bounds)
        margin = 0.05 * (high - low)
        outside = tuple(
            name
            for name, value, a, b in zip(self._robot.joint_names, state, low - margin, high + margin, strict=True)
            if not a <= value <= b
        )
        if outside and outside != self._outside:
            self._log(
                f"{', '.join(outside)} outside the range of the training states: the policy may stall there; move the "
                "arm towards its rest pose"
            )
        self._outside = outside


def _ranges(checkpoint: Checkpoint, robot: Embodiment) -> NDArray[np.float64]:
    """What the training's actions span, (dof,) in the checkpoint's units; infinite for grippers and joints that stood
    still."""
    ranges = checkpoint.action_bounds[1] - checkpoint.action_bounds[0]
    ranges[ranges <= 0.0] = np.inf
    ranges[list(robot.gripper_indices)] = np.inf
    return ranges


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU; use auto or cpu")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | WeightTypes:
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        # Half precision is emulated on most CPUs, and a small model fits in float32.
        return torch.float32
    # Whatever the file holds: the released ones are float32, which nobody runs.
    return MIXED
