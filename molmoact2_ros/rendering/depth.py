"""Depth codes back to depth images, and depth images to colours.

A checkpoint names each cell of its depth grid by a code. Two things decode them: a small checkpoint carries a codebook
of depth patches; the released ones were trained on codes of a VQ-VAE whose weights are published apart from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

CODEBOOK_FILE = "depth_codebook.safetensors"
VQVAE_FILE = "vae-final.pt"
VQVAE_SOURCE = "allenai/MolmoAct-7B-D-0812"
HOW_TO_GET = (
    f"Released checkpoints need {VQVAE_FILE} of {VQVAE_SOURCE}: hf download {VQVAE_SOURCE} {VQVAE_FILE} --local-dir "
    f"DIR, and in a parameter file for the visualizer depth_decoder: DIR/{VQVAE_FILE}"
)
"""For people whose depth cannot be decoded."""
NEAREST_M = 0.01
"""A distance below this counts as this."""


class DepthDecoder(ABC):
    """Turns a grid of codes into a depth image.

    Attributes:
        num_codes: how many codes there are; a code is in 0..num_codes - 1.
        metric: True when an image is in metres from the camera; else it is relative and its scale may jump.
        near_is_small: True when a smaller value is nearer to the camera.
        limits: (lowest, highest) value worth a colour of its own, or None where every image has its own scale.
    """

    num_codes: int
    metric: bool
    near_is_small: bool
    limits: tuple[float, float] | None

    def decode(self, codes: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Depth image (h, w) of `codes` (g, g).

        Raises:
            ValueError: the grid is not square, or a code is outside 0..num_codes - 1.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[0] != codes.shape[1] or codes.size == 0:
            raise ValueError(f"depth codes must be a square grid (g, g), got shape {codes.shape}")
        if codes.min() < 0 or codes.max() >= self.num_codes:
            raise ValueError(
                f"depth codes must be in 0..{self.num_codes - 1}, got {codes.min()}..{codes.max()}; "
                "are the decoder and the policy's checkpoint of one training?"
            )
        return self._decode(codes.astype(np.int64))

    @abstractmethod
    def _decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """RgbImage of codes that are known to be good."""


class CodebookDecoder(DepthDecoder):
    """Lays out one depth patch a code: the image of (g, g) codes is (g * p, g * p), in metres from the camera."""

    metric = True
    near_is_small = True

    def __init__(self, codebook: NDArray[np.float32]) -> None:
        """Take `codebook` (num_codes, p, p), m."""
        if codebook.ndim != 3 or codebook.shape[1] != codebook.shape[2]:
            raise ValueError(f"a depth codebook must have shape (num_codes, p, p), got {codebook.shape}")
        if not np.all(np.isfinite(codebook)):
            raise ValueError("the depth codebook contains NaN or infinity; train it again")
        self._codebook = np.ascontiguousarray(codebook, dtype=np.float32)
        self.num_codes = int(codebook.shape[0])
        low, high = np.percentile(self._codebook, (0.5, 99.5))
        self.limits = (float(low), float(high))

    def _decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        grid, patch = codes.shape[0], self._codebook.shape[1]
        return self._codebook[codes].transpose(0, 2, 1, 3).reshape(grid * patch, grid * patch)


class VqVaeDecoder(DepthDecoder):
    """The decoder half of the released VQ-VAE: (10, 10) codes to an image of (320, 320).

    The images are relative inverse depth as Depth-Anything gives it, scaled to 0..1 a frame: larger is nearer, and
    the scale may jump between frames. Architecture as in AiT (the VQ-VAE's origin): hidden 16, five factors of two, two
    residual blocks, transposed convolutions of kernel 4.
    """

    metric = False
    near_is_small = False
    limits = None

    def __init__(self, weights: dict[str, Any]) -> None:
        """Take the state dict of the whole VQ-VAE (tensors by name; a `module.` prefix is allowed).

        Raises:
            ValueError: a tensor of the decoder or of the codebook is missing, left over or of another shape.
        """
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        codebook = weights.get("_vq_vae._embedding", weights.get("_vq_vae._embedding.weight"))
        if codebook is None or codebook.ndim != 2:
            raise ValueError(f"the VQ-VAE has no codebook `_vq_vae._embedding`; it has {sorted(weights)[:8]} ...")
        self._codebook = codebook.detach().float().clone()
        self.num_codes = int(codebook.shape[0])
        self._network = _vqvae_decoder(int(codebook.shape[1]))
        own = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
        try:
            self._network.load_state_dict(own, strict=True)
        except RuntimeError as error:
            raise ValueError(f"the VQ-VAE's decoder is not the published one: {error}") from None
        self._network.eval()

    def _decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            latent = self._codebook[torch.from_numpy(codes)].permute(2, 0, 1)[None]
            picture: NDArray[np.float32] = self._network(latent)[0, 0].float().numpy()
        return picture


def _vqvae_decoder(codebook_dim: int) -> nn.Sequential:
    """The decoder with random weights; the numbering of its layers is that of the published state dict."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.net(x) + x)

    width = 256
    layers: list[nn.Module] = [nn.Conv2d(codebook_dim, width, 1), nn.ReLU(), Residual(width), Residual(width)]
    for out in (256, 128, 64, 32, 16):
        layers += [nn.ConvTranspose2d(width, out, 4, stride=2, padding=1), nn.ReLU()]
        width = out
    layers.append(nn.Conv2d(width, 1, 1))
    return nn.Sequential(*layers)


def load_depth_decoder(checkpoint_dir: str | Path) -> DepthDecoder:
    """Load the decoder that belongs to a checkpoint.

    Takes `depth_codebook.safetensors` of a small checkpoint first, else `vae-final.pt` (the published VQ-VAE).
    `checkpoint_dir` may also be one of these files. Loads torch for the VQ-VAE only.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: the file is not what its name says.
    """
    path = Path(checkpoint_dir)
    codebook = path if path.name == CODEBOOK_FILE else path / CODEBOOK_FILE
    vqvae = path if path.suffix == ".pt" else path / VQVAE_FILE
    if codebook.is_file():
        from safetensors.numpy import load_file

        tensors = load_file(codebook)
        if "codebook" not in tensors:
            raise ValueError(f"{codebook}: expected one tensor `codebook`, got {sorted(tensors)}")
        return CodebookDecoder(tensors["codebook"])
    if vqvae.is_file():
        import torch

        content = torch.load(vqvae, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "weights" not in content:
            raise ValueError(
                f"{vqvae}: expected a dictionary with the key `weights`; is this the file of {VQVAE_SOURCE}?"
            )
        return VqVaeDecoder(content["weights"])
    raise FileNotFoundError(
        f"no depth decoder in {path}: expected {CODEBOOK_FILE} (small checkpoints) or {VQVAE_FILE} "
        f"(released checkpoints). {HOW_TO_GET}. Codes are recorded all the same"
    )


def colourize(
    depth: NDArray[np.floating[Any]], near_is_small: bool = True, limits: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Colour image (h, w, 3), RGB, of `depth` (h, w): near is bright yellow, far is dark, not finite is grey.

    Distances (`near_is_small`) are coloured by their inverse: what the arm works on gets most of the colours, and the
    far wall few. The colour map (inferno) is even to the eye and readable without colour vision. Without `limits` the
    image's own 2nd and 98th percentile are its ends.
    """
    depth = np.asarray(depth, dtype=np.float32)
    if depth.ndim != 2:
        raise ValueError(f"a depth image must have shape (h, w), got {depth.shape}")
    good = np.isfinite(depth)
    if near_is_small:  # distances to inverse distances, as the other decoder gives them
        depth = 1.0 / np.maximum(depth, NEAREST_M)
        limits = None if limits is None else (1.0 / max(limits[1], NEAREST_M), 1.0 / max(limits[0], NEAREST_M))
    if not good.any():
        return np.full((*depth.shape, 3), 128, np.uint8)
    low, high = limits if limits is not None else np.percentile(depth[good], (2.0, 98.0))
    scaled = np.clip((np.where(good, depth, low) - low) / max(high - low, 1e-9), 0.0, 1.0)
    # The darkest tenth of the map is lost on most screens.
    bgr = cv2.applyColorMap((25.0 + 225.0 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    rgb[~good] = 128
    return np.asarray(rgb, dtype=np.uint8)


def enlarged(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """`picture` (h, w, 3) stretched to (height, width, 3) without smoothing: what the model predicted, and no more."""
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
