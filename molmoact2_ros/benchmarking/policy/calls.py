"""The calls that `molmoact2 bench policy` measures: images, states, and drafts that are wrong where they should be.

With random weights a change of the image says nothing about how many codes change. So the codes are made to differ:
first the answer for the changed image is computed; then the draft is that answer with every second changed cell's
code altered. Unchanged cells carry the same codes in draft and answer, so every backend gets the same answer again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASK = "pick up the red cube"
PICTURE = (240, 320)


@dataclass(frozen=True)
class Call:
    """What goes into one call: images and state, the main image and codes of the call before (None without depth),
    and the codes that belong to it (None without depth)."""

    images: list[NDArray[np.uint8]]
    state: NDArray[np.float64]
    before: NDArray[np.uint8]
    codes: NDArray[np.int64] | None
    answer: NDArray[np.int64] | None = None


def calls(
    model: Any, state: NDArray[np.float64], random: np.random.Generator, cameras: int, share: float, count: int
) -> list[Call]:
    """`count` calls whose images all differ by noise, and by `share` of the main image's cells from the one before.

    Args:
        model: a `StagedModel`, which says what the codes are.
    """
    scenes = [_scene(random) for _ in range(cameras)]
    side = model.checkpoint.depth_side
    changed = scenes[0].copy()
    replayed = None
    if side is not None:
        for cell in random.choice(side * side, round(share * side * side), replace=False):
            y, x = (np.array(PICTURE) / side * np.array(divmod(int(cell), side))).astype(int)
            height, width = (np.array(PICTURE) // side).tolist()
            changed[y + 2 : y + height - 2, x + 2 : x + width - 2] ^= 0xC3
        model.reset()
        replayed = answer(model, Call(scenes, state, scenes[0], None)).depth_bins
    made = []
    for index in range(count):
        before = _noisy(scenes[0], random)
        images = [_noisy(changed, random), *(_noisy(scene, random) for scene in scenes[1:])]
        # States differ, so that no prompt is the last one.
        made.append(_drafted(model, Call(images, state + 0.5 * (index % 5), before, replayed), random))
    return made


def answer(model: Any, call: Call) -> Any:
    """What `model` (of any backend) says to `call`, as if the call before had just been answered."""
    import torch

    from molmoact2_ros.policy.staged_model import StagedModel
    from molmoact2_ros.policy.stages.change import see

    cache: dict[str, Any] | None = None
    side = model.checkpoint.depth_side
    if call.codes is not None and side is not None:
        cache = {"image": call.before, "depth_bins": call.codes}
        if isinstance(model, StagedModel):
            # As after a call: the image's cells are kept, and the codes are the draft.
            cache["cells"] = see(call.before, side)
            model.episode.draft = [int(code) for code in call.codes]
    generator = torch.Generator(device=model.clock.device).manual_seed(0)
    return model.predict(call.images, TASK, call.state, depth_cache=cache, generator=generator)


def scenes(random: np.random.Generator, cameras: int) -> list[NDArray[np.uint8]]:
    """New images of so many cameras."""
    return [_scene(random) for _ in range(cameras)]


def _drafted(model: Any, call: Call, random: np.random.Generator) -> Call:
    """`call` with the draft of which every second changed cell's code is wrong; see the module."""
    if call.codes is None:
        return call
    found = answer(model, call)
    model.reset()
    codes = np.array(found.depth_bins)
    cells = np.flatnonzero(found.depth_updated)
    wrong = random.permutation(cells)[: (len(cells) + 1) // 2]
    codes[wrong] = (codes[wrong] + 1 + random.integers(0, 126, len(wrong))) % 128
    return Call(call.images, call.state, call.before, codes, np.array(found.depth_bins))


def _scene(random: np.random.Generator) -> NDArray[np.uint8]:
    coarse = random.integers(30, 220, (12, 16, 3)).astype(np.uint8)
    picture: NDArray[np.uint8] = np.kron(coarse, np.ones((20, 20, 1), np.uint8))
    return picture


def _noisy(picture: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of a camera: no image is bit for bit the last one, and no cell changes by it."""
    return np.clip(picture.astype(np.int16) + random.integers(-2, 3, picture.shape), 0, 255).astype(np.uint8)
