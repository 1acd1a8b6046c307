"""Depth codes decode to the image that they stand for, and a wrong or missing decoder says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from molmoact2_ros.rendering.depth import (
    CODEBOOK_FILE,
    VQVAE_FILE,
    CodebookDecoder,
    VqVaeDecoder,
    colourize,
    load_depth_decoder,
)


@pytest.fixture
def codebook() -> np.ndarray:
    """Eight patches of 4 x 4; patch c holds c + row / 10 + column / 100."""
    row, column = np.mgrid[:4, :4]
    return (np.arange(8)[:, None, None] + row / 10 + column / 100).astype(np.float32)


def test_codebook_lays_out_patches_in_the_order_of_the_grid(tmp_path: Path, codebook: np.ndarray) -> None:
    save_file({"codebook": codebook}, tmp_path / CODEBOOK_FILE)
    decoder = load_depth_decoder(tmp_path)
    codes = np.array([[1, 2, 3], [4, 5, 6], [7, 0, 1]], dtype=np.uint8)
    picture = decoder.decode(codes)
    assert picture.shape == (12, 12)
    assert picture.dtype == np.float32
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(picture[4 * i : 4 * i + 4, 4 * j : 4 * j + 4], codebook[codes[i, j]])


def test_codes_that_the_decoder_does_not_know_are_refused(codebook: np.ndarray) -> None:
    decoder = CodebookDecoder(codebook)
    with pytest.raises(ValueError, match=r"0\.\.7.*got 8\.\.8"):
        decoder.decode(np.full((2, 2), 8, np.uint8))
    with pytest.raises(ValueError, match=r"square grid.*\(2, 3\)"):
        decoder.decode(np.zeros((2, 3), np.uint8))


def test_a_checkpoint_without_a_decoder_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{CODEBOOK_FILE}.*{VQVAE_FILE}"):
        load_depth_decoder(tmp_path)


def test_wrong_files_are_refused(tmp_path: Path, codebook: np.ndarray) -> None:
    save_file({"patches": codebook}, tmp_path / CODEBOOK_FILE)
    with pytest.raises(ValueError, match="one tensor `codebook`"):
        load_depth_decoder(tmp_path)
    with pytest.raises(ValueError, match="num_codes, p, p"):
        CodebookDecoder(codebook[0])
    codebook[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        CodebookDecoder(codebook)


def vqvae_weights(seed: int = 0) -> dict[str, object]:
    """A random VQ-VAE in the published layout: names and shapes as the state dict of AiT's depth VQ-VAE has them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "_vq_vae._embedding": (128, 512),
        "_vq_vae._ema_cluster_size": (128,),
        "encoder.0.weight": (16, 1, 4, 4),
        "decoder.0.weight": (256, 512, 1, 1),
        "decoder.0.bias": (256,),
    }
    for block in (2, 3):
        for layer, size in ((0, 3), (2, 3), (4, 1)):
            shapes[f"decoder.{block}.net.{layer}.weight"] = (256, 256, size, size)
            shapes[f"decoder.{block}.net.{layer}.bias"] = (256,)
    for layer, (before, after) in zip(
        (4, 6, 8, 10, 12), ((256, 256), (256, 128), (128, 64), (64, 32), (32, 16)), strict=True
    ):
        shapes[f"decoder.{layer}.weight"] = (before, after, 4, 4)
        shapes[f"decoder.{layer}.bias"] = (after,)
    shapes["decoder.14.weight"] = (1, 16, 1, 1)
    shapes["decoder.14.bias"] = (1,)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference_decode(weights: dict[str, object], codes: np.ndarray) -> np.ndarray:
    """The published architecture written out with functional calls, layer by layer."""
    import torch
    from torch.nn.functional import conv2d, conv_transpose2d, relu

    w: dict[str, torch.Tensor] = weights  # type: ignore[assignment]
    x = w["_vq_vae._embedding"][torch.from_numpy(codes.astype(np.int64))].permute(2, 0, 1)[None]
    x = relu(conv2d(x, w["decoder.0.weight"], w["decoder.0.bias"]))
    for block in ("decoder.2.net", "decoder.3.net"):
        y = relu(conv2d(x, w[f"{block}.0.weight"], w[f"{block}.0.bias"], padding=1))
        y = relu(conv2d(y, w[f"{block}.2.weight"], w[f"{block}.2.bias"], padding=1))
        x = x + conv2d(y, w[f"{block}.4.weight"], w[f"{block}.4.bias"])
    for layer in (4, 6, 8, 10, 12):
        x = relu(conv_transpose2d(x, w[f"decoder.{layer}.weight"], w[f"decoder.{layer}.bias"], stride=2, padding=1))
    return conv2d(x, w["decoder.14.weight"], w["decoder.14.bias"])[0, 0].numpy()


def test_vqvae_decodes_as_the_published_architecture(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    weights = vqvae_weights()
    torch.save(
        {"weights": {f"module.{name}": value for name, value in weights.items()}, "epoch": 19}, tmp_path / VQVAE_FILE
    )
    decoder = load_depth_decoder(tmp_path)
    assert isinstance(decoder, VqVaeDecoder)
    assert decoder.num_codes == 128
    codes = np.random.default_rng(1).integers(0, 128, (10, 10), dtype=np.uint8)
    picture = decoder.decode(codes)
    assert picture.shape == (320, 320)
    np.testing.assert_allclose(picture, reference_decode(weights, codes), atol=1e-5)
    assert np.std(picture) > 0.0


def test_vqvae_of_another_shape_is_refused(tmp_path: Path) -> None:
    import torch

    weights = vqvae_weights()
    del weights["decoder.14.bias"]
    torch.save({"weights": weights}, tmp_path / VQVAE_FILE)
    with pytest.raises(ValueError, match=r"(?s)not the published one.*14\.bias"):
        load_depth_decoder(tmp_path)


def test_near_is_bright_in_either_sense_of_depth() -> None:
    metres = np.linspace(0.2, 1.0, 64, dtype=np.float32).reshape(8, 8)
    brightness = colourize(metres, near_is_small=True, limits=(0.2, 1.0)).astype(int).sum(axis=2).ravel()
    assert np.all(np.diff(brightness) <= 0)
    assert brightness[0] > 2 * brightness[-1]
    assert brightness[0] - brightness[16] > brightness[-17] - brightness[-1], "most colours go to what is near"
    other = colourize(1.0 / metres, False, (1.0, 5.0)).astype(int)
    assert np.abs(other - colourize(metres, True, (0.2, 1.0))).max() <= 3, "rounding to 8 bit apart"


def test_what_is_not_finite_is_grey() -> None:
    depth = np.ones((4, 4), np.float32)
    depth[0, 0] = np.nan
    assert tuple(colourize(depth)[0, 0]) == (128, 128, 128)
    assert (colourize(np.full((2, 2), np.inf)) == 128).all()
