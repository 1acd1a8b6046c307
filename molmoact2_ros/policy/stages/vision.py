"""The vision stage: patches to image features, one pass for all cameras, and none for an image seen last time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from molmoact2_ros.policy.stages.decoder import MASKED

KNOWN_TABLES = 16
"""Pooling tables that are remembered: those of a few tasks and cameras."""


@dataclass(frozen=True)
class Seen:
    """The last image of a camera and its features (tokens, width)."""

    image: NDArray[np.uint8]
    features: torch.Tensor


class VisionStage(nn.Module):
    """The reference's vision backbone for several cameras.

    Invariant: features belong to exactly the image kept beside them; an image is reused only bit for bit.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        # Of a tensor that no backend replaces.
        self.dtype = backbone.image_vit.positional_embedding.dtype
        self._seen: list[Seen | None] = []
        self._known: deque[tuple[torch.Tensor, torch.Tensor | None]] = deque(maxlen=KNOWN_TABLES)

    def forward(self, pixels: Sequence[torch.Tensor], pooling: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (tokens, width) of each image; `pixels` (crops, patches, values), `pooling` (tokens, values)."""
        shapes = {(part.shape, part.dtype) for part in pixels}
        if len(shapes) > 1:
            return [self([part], [table])[0] for part, table in zip(pixels, pooling, strict=True)]
        crops, patches, _ = pixels[0].shape
        tables = [
            torch.where(table >= 0, table + index * crops * patches, table) for index, table in enumerate(pooling)
        ]
        features = self.encode(torch.cat(list(pixels)), torch.cat(tables))
        parts = features.split([table.shape[0] for table in pooling])
        rows = [self._rows(table) for table in pooling]
        return [part if kept is None else part[kept] for part, kept in zip(parts, rows, strict=True)]

    def _rows(self, table: torch.Tensor) -> torch.Tensor | None:
        """Which rows of a pooling table pool anything, None for all. A task's tables are the same tensors at every
        call, so the device is waited for once a table."""
        for known, rows in self._known:
            if known is table:
                return rows
        valid = (table >= 0).any(dim=-1)
        found = None if bool(valid.all()) else valid.nonzero().flatten()
        self._known.append((table, found))
        return found

    def prepare(self, images: int) -> None:
        """Make ready, after `images` new images, what later calls with fewer may need: nothing."""

    def encode(self, pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Features (tokens, width) of every row of `table`: the one definition that every backend runs.

        Args:
            pixels: (crops, patches, values), uint8, or float of -1 .. 1 as the reference's processor scales it.
            table: (tokens, k) which patches of all crops make a token, -1 for none.
        """
        backbone = self.backbone
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255.0
        else:
            # The processor's floats, brought to the grid of whole pixel values.
            pixels = torch.round((pixels.float() + 1.0) * 0.5 * 255.0).clamp(0.0, 255.0) / 255.0
        features = backbone.encode_image((pixels * 2.0 - 1.0).to(self.dtype)[None]).flatten(0, 2)
        valid = table >= 0
        pooled = features[torch.where(valid, table, 0)] * valid[..., None].to(features.dtype)
        attention, mask = backbone.image_pooling_2d, None
        if backbone.adapter_config.pooling_attention_mask:
            query = pooled.sum(-2, keepdim=True) / valid.to(features.dtype).sum(-1).clamp(min=1)[:, None, None]
            kind = torch.float32 if attention.float32_attention else features.dtype
            mask = torch.where(valid, 0.0, MASKED).to(kind)[:, None, None]
        else:
            query = pooled.mean(-2, keepdim=True)
        return backbone.image_projector(attention(query, pooled, attn_mask=mask)).flatten(0, 1)

    def see(
        self,
        images: Sequence[NDArray[np.uint8]],
        pooling: Sequence[torch.Tensor],
        patches: Callable[[Sequence[NDArray[np.uint8]]], list[torch.Tensor]],
    ) -> tuple[list[torch.Tensor], bool]:
        """Features of `images` (one a camera), and whether every one was seen last time.

        Args:
            patches: prepares the images that are new.
        """
        if len(self._seen) != len(images):
            self._seen = [None] * len(images)
        new = [
            index
            for index, (image, seen) in enumerate(zip(images, self._seen, strict=True))
            if seen is None or not np.array_equal(image, seen.image)
        ]
        if new:
            pixels = patches([images[index] for index in new])
            for index, features in zip(new, self(pixels, [pooling[index] for index in new]), strict=True):
                self._seen[index] = Seen(images[index].copy(), features)
        return [seen.features for seen in self._seen if seen is not None], not new
