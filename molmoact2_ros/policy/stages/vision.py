"""The vision stage: patches to picture features, one pass for all cameras, and none for a picture seen last time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True)
class Seen:
    """The last picture of a camera and its features (tokens, width)."""

    image: NDArray[np.uint8]
    features: torch.Tensor


class VisionStage(nn.Module):
    """The reference's vision backbone for several cameras.

    Invariant: features belong to exactly the picture kept beside them; a picture is reused only bit for bit.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self._seen: list[Seen | None] = []

    def forward(self, pixels: Sequence[torch.Tensor], pooling: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Features (tokens, width) of each picture; `pixels` (crops, patches, values), `pooling` (tokens, values)."""
        shapes = {(part.shape, part.dtype) for part in pixels}
        if len(shapes) > 1:
            return [self([part], [table])[0] for part, table in zip(pixels, pooling, strict=True)]
        crops, patches, _ = pixels[0].shape
        tables = [
            torch.where(table >= 0, table + index * crops * patches, table) for index, table in enumerate(pooling)
        ]
        features = self.backbone(torch.cat(list(pixels))[None], torch.cat(tables)[None])
        counts = [int((table >= 0).any(dim=-1).sum()) for table in pooling]
        return list(features.split(counts))

    def see(
        self,
        images: Sequence[NDArray[np.uint8]],
        pooling: Sequence[torch.Tensor],
        patches: Callable[[Sequence[NDArray[np.uint8]]], list[torch.Tensor]],
    ) -> tuple[list[torch.Tensor], bool]:
        """Features of `images` (one a camera), and whether every one was seen last time.

        Args:
            patches: prepares the pictures that are new.
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
