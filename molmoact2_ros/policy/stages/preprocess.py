"""The first stage: images to uint8 patches and the task and state to token ids, equal to the reference's processor.

What depends on the task alone is done once. Each short cut is held against the processor the first time that it is
used; where the two differ the processor does the work from then on, and the log says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from molmoact2_ros.policy.reference import prompt_text, require_room, state_bins

TEMPLATES = 4
"""How many tasks' prompts are kept."""


@dataclass(frozen=True)
class Template:
    """The prompt of one task at given image sizes.

    Attributes:
        ids: (n,) token ids, of which those in `state` are replaced at every call.
        is_image: (n,) bool, the tokens that attend to each other in both directions.
        patches: (m,) positions that take the image features, in order.
        state: the span of the state tokens; empty where they could not be told apart.
        pooling: for each camera (tokens, values) which of its patches make a feature, -1 for none.
    """

    ids: torch.Tensor
    is_image: torch.Tensor
    patches: torch.Tensor
    state: slice
    pooling: tuple[torch.Tensor, ...]


class Preprocess:
    """See the module.

    Invariant: ids and patches are those that the reference's processor gives.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        metadata: Any,
        depth: bool,
        device: torch.device,
        log: Callable[[str], None],
        room: int = 0,
    ) -> None:
        """`room` is what a prompt must leave of the model's positions, in tokens."""
        self._processor, self._config, self._metadata = processor, config, metadata
        self._depth, self._device, self._log = depth, device, log
        self._templates: OrderedDict[tuple[Any, ...], Template] = OrderedDict()
        self._exact: dict[tuple[int, ...], bool] = {}
        self._resizes = resizes(processor)
        if not self._resizes:
            log("pictures are cut into crops by this checkpoint: the reference's processor prepares them (slower)")
        self._said = False
        self._room = room

    def prompt(
        self, task: str, state: NDArray[np.float32], images: Sequence[NDArray[np.uint8]]
    ) -> tuple[Template, torch.Tensor]:
        """The template of the task and the ids (n,) of this call's prompt.

        Args:
            task: as the prompt says it. state: (dof,) scaled to -1 .. 1. images: uint8 (h, w, 3) in prompt order.
        """
        bins = state_bins(state, int(self._config.num_state_tokens))
        key: tuple[Any, ...] = (task, len(bins), *(image.shape for image in images))
        template = self._templates.get(key)
        if template is None:
            template = self._new_template(task, state, bins, images)
            if template.state.stop:
                self._templates[key] = template
                while len(self._templates) > TEMPLATES:
                    self._templates.popitem(last=False)
            return template, template.ids
        self._templates.move_to_end(key)
        return template, self._filled(template, bins)

    def patches(self, images: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
        """The patches of each image on the device, (crops, patches, values): uint8, or float where not resized."""
        together: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            together.setdefault(image.shape, []).append(index)
        found: dict[int, torch.Tensor] = {}
        for shape, indices in together.items():
            pictures = [images[index] for index in indices]
            if self._resizes and shape not in self._exact:
                self._compare(shape)
            if self._exact.get(shape, False):
                made = list(self._resized(np.stack(pictures))[:, None])
            else:
                made = [self._processor_patches(picture) for picture in pictures]
            found.update(zip(indices, (patches.to(self._device) for patches in made), strict=True))
        return [found[index] for index in range(len(images))]

    # -- prompt --------------------------------------------------------------------------------------------------------

    def _new_template(
        self, task: str, state: NDArray[np.float32], bins: list[int], images: Sequence[NDArray[np.uint8]]
    ) -> Template:
        made = self._processed(task, state, images)
        ids = made["input_ids"][0]
        config = self._config
        require_room(ids.shape[0], config, self._room)
        start = (ids == config.state_start_token_id).nonzero().flatten().tolist()
        is_image = made["token_type_ids"][0].bool()
        # What precedes the state is kept from call to call, so no image may follow it.
        told_apart = len(start) == 1 and not bool(is_image[start[0] :].any())
        span = slice(start[0] + 1, start[0] + 1 + len(bins)) if told_apart else slice(0, 0)
        template = Template(
            ids=ids.to(self._device),
            is_image=is_image.to(self._device),
            patches=(ids == config.image_patch_id).nonzero().flatten().to(self._device),
            state=span,
            pooling=tuple(part.to(self._device) for part in _pooling_by_camera(made)),
        )
        # Another state must give the processor's ids, too: so the span is right and nothing else depends on it.
        other = np.where(state > 0, state - 0.9, state + 0.9).astype(np.float32)
        if told_apart:
            wanted = self._processed(task, other, images)["input_ids"][0]
            guess = self._filled(template, state_bins(other, int(config.num_state_tokens))).cpu()
            told_apart = wanted.shape == guess.shape and torch.equal(wanted, guess)
        if told_apart:
            return template
        if not self._said:
            self._said = True
            self._log("the state tokens cannot be told apart in the prompt: it is tokenised anew every time (slower)")
        return replace(template, state=slice(0, 0))

    def _filled(self, template: Template, bins: list[int]) -> torch.Tensor:
        ids = template.ids.clone()
        first = int(self._config.state_token_start_id)
        ids[template.state] = torch.tensor([first + index for index in bins], device=ids.device, dtype=ids.dtype)
        return ids

    def _processed(self, task: str, state: NDArray[np.float32], images: Sequence[NDArray[np.uint8]]) -> Any:
        text = prompt_text(self._config, self._metadata, task, state, len(images), self._depth)
        return self._processor(text=text, images=list(images), return_tensors="pt")

    # -- images ------------------------------------------------------------------------------------------------------

    def _compare(self, shape: tuple[int, ...]) -> None:
        """Decide once for each size of image whether our resizing gives the processor's pixels: on noise, since any
        resizing of an even picture is the same."""
        image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        theirs = self._processor_patches(image)
        ours = self._resized(image[None])
        on_grid = torch.clamp(torch.round((theirs.float() + 1.0) * 0.5 * 255.0), 0.0, 255.0).to(torch.uint8)
        self._exact[shape] = on_grid.shape == ours.shape and torch.equal(on_grid, ours)
        if not self._exact[shape]:
            self._log(f"resizing {shape[1]} x {shape[0]} differs from the reference: its processor does it (slower)")

    def _processor_patches(self, image: NDArray[np.uint8]) -> torch.Tensor:
        patches: torch.Tensor = self._processor.image_processor([image], return_tensors="pt")["pixel_values"]
        return patches

    def _resized(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Bilinear without antialias to the model's size, cut into patches: (n, h, w, 3) -> (n, patches, values)."""
        image = self._processor.image_processor
        size, patch = (int(image.size["height"]), int(image.size["width"])), int(image.patch_size)
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
        if tuple(pictures.shape[2:]) != size:
            resized = functional.interpolate(pictures.float(), size=size, mode="bilinear", align_corners=False)
            pictures = resized.round_().to(torch.uint8)
        rows, columns = size[0] // patch, size[1] // patch
        cut = pictures.permute(0, 2, 3, 1).reshape(-1, rows, patch, columns, patch, 3)
        return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, patch * patch * 3)


def resizes(processor: Any) -> bool:
    """Whether images are resized as a whole and scaled as `VisionStage` does it, not cut into crops."""
    image, half = processor.image_processor, (0.5, 0.5, 0.5)
    return bool(
        image.crop_mode == "resize"
        and int(image.resample) == 2
        and tuple(image.image_mean) == half
        and tuple(image.image_std) == half
    )


def _pooling_by_camera(made: Any) -> list[torch.Tensor]:
    """The processor's pooling table, cut by image."""
    grids = made["image_grids"]
    counts = (grids[:, 0] * grids[:, 1] + grids[:, 2] * grids[:, 3]).tolist()
    return list(made["image_token_pooling"].split(counts))
