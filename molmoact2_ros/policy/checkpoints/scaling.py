"""How a checkpoint scales states and actions: what is known of it, and the bounds of the targets that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.policy.checkpoints.settings import CheckpointError

Array = NDArray[np.float64]

BOUNDED_MODES = {"q01_q99": ("q01", "q99"), "q10_q90": ("q10", "q90"), "min_max": ("min", "max")}
"""Modes that scale a range to -1 .. 1, and its ends."""
LEROBOT_MODES = {
    "QUANTILES": "q01_q99",
    "QUANTILE10": "q10_q90",
    "MIN_MAX": "min_max",
    "MEAN_STD": "mean_std",
    "IDENTITY": "none",
}
"""LeRobot's names of the same modes."""
NEEDED = {**BOUNDED_MODES, "mean_std": ("mean", "std"), "none": ()}
"""What each mode needs of the statistics."""


@dataclass(frozen=True)
class Scaling:
    """How states and actions become numbers between -1 and 1.

    Attributes:
        rules: whose arithmetic, "released" or "lerobot": they differ where a joint stands still, and LeRobot's clips
            actions to -1 .. 1 in every mode.
        state, action: modes, of `NEEDED`.
        eps: LeRobot's, for joints that stand still.
    """

    rules: str
    state: str
    action: str
    eps: float = 1e-8

    def mode(self, kind: str) -> str:
        """Of "state" or "action"."""
        return self.state if kind == "state" else self.action


def ends(stats: Mapping[str, Any], mode: str, kind: str, where: str, dof: int) -> Array:
    """What `mode` scales to -1 and to 1, (2, dof) in the checkpoint's units, from its statistics.

    For actions these are the bounds of every target: what the model gives is clipped to -1 .. 1 before.

    Raises:
        CheckpointError: a statistic is missing, of another width, not finite, or upside down.
    """
    found = [_vector(stats, key, kind, where, dof) for key in NEEDED[mode]]
    low: Array
    high: Array
    if mode == "none":
        low, high = -np.ones(dof), np.ones(dof)
    elif mode == "mean_std":
        if np.any(found[1] < 0.0):
            raise CheckpointError(f"{where}: {kind}_stats have a standard deviation below zero")
        low, high = found[0] - found[1], found[0] + found[1]
    else:
        low, high = found
    if np.any(low > high):
        raise CheckpointError(f"{where}: {kind}_stats have a lower bound above the upper one")
    mask = stats.get("mask")
    if mask is not None and mode in ("mean_std", "none"):
        # What is not scaled passes as it is, clipped like the rest.
        low, high = np.where(mask, low, -1.0), np.where(mask, high, 1.0)
    return np.stack((low, high))


def _vector(stats: Mapping[str, Any], key: str, kind: str, where: str, dof: int) -> Array:
    try:
        values = np.asarray(stats[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{where}: {kind}_stats have no numbers {key!r}") from None
    if values.ndim != 1:
        raise CheckpointError(f"{where}: {kind}_stats have no numbers {key!r}")
    if values.shape != (dof,):
        raise CheckpointError(f"{where}: {kind} has {values.size} dimensions, expected {dof}")
    if not np.all(np.isfinite(values)):
        raise CheckpointError(f"{where}: {key} of {kind}_stats contains NaN or infinity")
    return values


class LeRobotScaling:
    """One vector's scaling with the arithmetic of lerobot 0.6.1's processors, in float32 and in its order.

    Args:
        stats: of the vector. mode: of `NEEDED`. eps: of the processor.
    """

    def __init__(self, stats: Mapping[str, Any], mode: str, eps: float) -> None:
        self._mode = mode
        self._eps = np.float32(eps)
        self._ends = [np.asarray(stats[key], dtype=np.float32) for key in NEEDED[mode]]
        mask = stats.get("mask")
        self._mask = None if mask is None else np.asarray(mask, dtype=bool)

    def normalize(self, values: Any) -> NDArray[np.float32]:
        """Values (..., dof) in the checkpoint's units to the model's scale, clipped to -1 .. 1 where scaled."""
        raw = np.asarray(values, dtype=np.float32)
        if self._mode == "none":
            scaled = raw
        elif self._mode == "mean_std":
            scaled = (raw - self._ends[0]) / (self._ends[1] + self._eps)
        else:
            scaled = np.float32(2.0) * (raw - self._ends[0]) / self._span() - np.float32(1.0)
        return self._masked(np.clip(scaled, -1.0, 1.0), raw)

    def unnormalize(self, values: Any) -> NDArray[np.float32]:
        """The model's values (..., dof) to the checkpoint's units; all are clipped to -1 .. 1 first."""
        if hasattr(values, "detach"):  # torch's, perhaps on a GPU
            values = values.detach().float().cpu().numpy()
        clipped = np.clip(np.asarray(values, dtype=np.float32), -1.0, 1.0)
        one, two = np.float32(1.0), np.float32(2.0)
        if self._mode == "none":
            out = clipped
        elif self._mode == "mean_std":
            out = clipped * self._ends[1] + self._ends[0]
        elif self._mode == "min_max":
            out = (clipped + one) / two * self._span() + self._ends[0]
        else:
            out = (clipped + one) * self._span() / two + self._ends[0]
        return self._masked(out, clipped)

    def _span(self) -> NDArray[np.float32]:
        span = self._ends[1] - self._ends[0]
        return np.where(span == 0.0, self._eps, span)

    def _masked(self, scaled: NDArray[np.float32], raw: NDArray[np.float32]) -> NDArray[np.float32]:
        return scaled if self._mask is None else np.where(self._mask, scaled, raw)
