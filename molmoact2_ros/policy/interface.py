"""What goes into a policy and what comes out: the two calls that every backend offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import ModelFrame


@dataclass(frozen=True)
class Observation:
    """One moment of the cell.

    Attributes:
        images: by camera name, RGB uint8 (height, width, 3) at the camera's native size.
        image_stamps_ns: capture time of each image, ns of the ROS clock.
        joints: measured positions (dof,) in rad (m), ROS order.
        joints_stamp_ns: when they were measured.
        task: what to do, in words; never empty.
    """

    images: Mapping[str, NDArray[np.uint8]]
    image_stamps_ns: Mapping[str, int]
    joints: NDArray[np.float64]
    joints_stamp_ns: int
    task: str

    @property
    def stamp_ns(self) -> int:
        """Capture time of the oldest part."""
        return min(self.joints_stamp_ns, *self.image_stamps_ns.values())


@dataclass(frozen=True)
class Prediction:
    """An action chunk and how it came about.

    Row i is the target at `stamp_ns` + (i + 1) / `rate_hz`.

    Attributes:
        stamp_ns: of the oldest observation behind it.
        chunk_model: (horizon, dof) float32 in the checkpoint's units, as the model gave it.
        chunk_joints: (horizon, dof) float64, rad (m) in ROS order.
        rate_hz: rate of the rows.
        depth_codes: (g, g) uint8 codes of the main camera, row by row; None without depth reasoning.
        depth_updated: (g, g) bool, True where the cell was predicted anew and not replayed.
        timings_ms: wall time by stage: preprocess, vision, prefill, depth, flow (or action tokens), total.
        forwards: passes through the language model.
        guided_rows: rows that were drawn towards the last chunk (real-time chunking); 0 for a plain flow.
    """

    stamp_ns: int
    chunk_model: NDArray[np.float32]
    chunk_joints: NDArray[np.float64]
    rate_hz: float
    depth_codes: NDArray[np.uint8] | None
    depth_updated: NDArray[np.bool_] | None
    timings_ms: Mapping[str, float]
    forwards: int | None
    guided_rows: int = 0


class UnendedSequenceError(RuntimeError):
    """The model did not end a sequence of depth or action tokens: what it says of this image cannot be used."""


class Description(Protocol):
    """What a policy says of the checkpoint that it runs, here or on another machine; see `Checkpoint`."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def layout(self) -> str:
        """What kind of checkpoint it is, in words."""

    @property
    def norm_tag(self) -> str:
        """The tag in use."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """The camera of each picture of the prompt; the first is the depth image."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """In the words of `norm_stats.json`; `state_stats` at least."""

    @property
    def frame(self) -> ModelFrame:
        """Which joint frame its vectors are in."""

    @property
    def horizon(self) -> int:
        """Rows of a chunk."""

    @property
    def rate_hz(self) -> float:
        """Rate of the rows."""

    @property
    def depth_side(self) -> int | None:
        """Cells on a side of the depth grid, None without depth reasoning."""


class Policy(Protocol):
    """What the policy node calls. Not thread-safe: one caller at a time."""

    @property
    def checkpoint(self) -> Description:
        """What is being run."""

    def infer(self, observation: Observation) -> Prediction:
        """Predict a chunk.

        Raises:
            ValueError: the observation does not fit the checkpoint, or the task is empty.
            RuntimeError: the model gave no usable answer.
            UnendedSequenceError: of these, a depth or action sequence without an end.
        """

    def reset(self) -> None:
        """Forget the episode: what was seen before no longer counts."""

    def close(self) -> None:
        """Give back what is open; it is not used again."""
