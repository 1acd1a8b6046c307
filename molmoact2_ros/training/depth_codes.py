"""Depth codes of a small checkpoint: a codebook of depth patches that also decodes them back to an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "depth_codebook.safetensors"


def learn_codebook(patches: NDArray[np.float32], num_codes: int, seed: int) -> NDArray[np.float32]:
    """Cluster depth patches (n, p, p) into `num_codes` (num_codes, p, p), ordered by mean depth, near to far.

    The order makes neighbouring codes look alike, which is kind to whoever looks at an image of codes.
    """
    from scipy.cluster.vq import kmeans2

    flat = patches.reshape(len(patches), -1).astype(np.float64)
    centres, _ = kmeans2(flat, num_codes, minit="++", iter=25, rng=np.random.default_rng(seed))
    centres = centres[np.argsort(centres.mean(axis=1))]
    return centres.reshape(num_codes, *patches.shape[1:]).astype(np.float32)


def encode(patches: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.int64]:
    """Nearest code of each patch (..., p, p)."""
    flat = patches.reshape(-1, codebook[0].size)
    centres = codebook.reshape(len(codebook), -1)
    distance = (centres**2).sum(1)[None] - 2.0 * flat @ centres.T
    return distance.argmin(axis=1).reshape(patches.shape[:-2])


def save_codebook(directory: Path, codebook: NDArray[np.float32]) -> None:
    """Write the codebook beside the checkpoint's other files."""
    from safetensors.numpy import save_file

    save_file({"codebook": codebook}, str(directory / FILE))
    (directory / FILE).chmod(0o644)
