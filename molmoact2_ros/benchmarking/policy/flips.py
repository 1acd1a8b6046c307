"""How often a cheaper kind of product says another depth code than float32, and how clear the choice was there.

Both models see the same cells before each cell (those of float32), so that every cell is a choice of its own: a code
that differs in a free run changes what all later ones are asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.policy.calls import TASK, Call, answer, scenes


@dataclass(frozen=True)
class Flips:
    """What was found.

    Attributes:
        cells, differing: choices asked, and those that came out another way.
        median_margin, largest_margin: of the best code over the second in float32's logits: the median of all, and the
            largest at which a code differed (0 when none did).
        frames, frames_differing: whole calls, and those whose codes differ.
        action_error: over the other calls, the largest difference of an action, as a share of what its joint's actions
            span; None: no such call.
    """

    cells: int
    differing: int
    median_margin: float
    largest_margin: float
    frames: int
    frames_differing: int
    action_error: float | None = None


def count_flips(half: Any, whole: Any, state: NDArray[np.float64], cameras: int, frames: int, seed: int = 1) -> Flips:
    """Compare `half`, the model of cheaper products, with `whole` (the same weights in float32) on new scenes."""
    random = np.random.default_rng(seed)
    margins, errors, differing, largest, apart = [], [], 0, 0.0, 0
    for _ in range(frames):
        call = Call(scenes(random, cameras), state, np.zeros((1, 1, 3), np.uint8), None)
        right, found = answer(whole, call), answer(half, call)
        codes = np.array(right.depth_bins)
        if (np.array(found.depth_bins) != codes).any():
            apart += 1
        else:
            spans = np.ptp(right.actions, axis=0)
            errors.append(float((np.abs(found.actions - right.actions).max(axis=0) / spans).max()))
        exact, rough = (model.depth_logits(call.images, TASK, state, codes) for model in (whole, half))
        best = exact.topk(2, dim=-1).values
        margin = best[:, 0] - best[:, 1]
        flipped = exact.argmax(dim=-1).cpu() != rough.argmax(dim=-1).cpu()
        differing += int(flipped.sum())
        largest = max([largest, *margin.cpu()[flipped].tolist()])
        margins += margin.tolist()
    error = max(errors, default=None)
    return Flips(len(margins), differing, float(np.median(margins)), largest, frames, apart, error)
