"""Images of other people's drivers become RGB: every layout, padding, and what cannot be taken is named."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact2_ros.cameras.encodings import ENCODINGS, rgb_of, rgb_of_compressed

HEIGHT, WIDTH = 24, 32
RGB = np.random.default_rng(5).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
SMOOTH = np.stack([40 + 5 * COLUMNS, 60 + 4 * ROWS, 200 - 3 * COLUMNS], axis=2).astype(np.uint8)
"""Survives colour at half the resolution."""


def yuv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ITU-R BT.601 with 16..235, as cameras send it, each (height, width)."""
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    y = 16.0 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128.0 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128.0 + 0.439 * r - 0.368 * g - 0.071 * b
    y, u, v = (np.clip(np.round(plane), 0, 255).astype(np.uint8) for plane in (y, u, v))
    return y, u, v


def packed(rgb: np.ndarray, order: str) -> np.ndarray:
    """4:2:2 in one plane: two pixels are four bytes in `order`."""
    y, u, v = yuv(rgb)
    out = np.zeros((HEIGHT, WIDTH // 2, 4), np.uint8)
    for place, name in enumerate(order):
        out[..., place] = {"0": y[:, ::2], "1": y[:, 1::2], "u": u[:, ::2], "v": v[:, ::2]}[name]
    return out.reshape(HEIGHT, -1)


def planar(rgb: np.ndarray, order: str) -> np.ndarray:
    """4:2:0: the luminance, then colour pairs in `order` for every four pixels."""
    y, u, v = yuv(rgb)
    pairs = np.stack([{"u": u, "v": v}[name][::2, ::2] for name in order], axis=2)
    return np.concatenate([y, pairs.reshape(HEIGHT // 2, WIDTH)])


def mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor behind colour filters sees; `pattern` is of the first two rows."""
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, name in enumerate(pattern):
        row, column = divmod(place, 2)
        out[row::2, column::2] = rgb[row::2, column::2, "rgb".index(name)]
    return out


def wide(values: np.ndarray, big: bool = False) -> np.ndarray:
    """Sixteen bits a value, with something in the lower eight."""
    return (values.astype(">u2" if big else "<u2") * 256 + 99).astype(">u2" if big else "<u2").view(np.uint8)


ALPHA = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
GREY = np.repeat(RGB[..., :1], 3, axis=2)
EXACT = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, ALPHA], 2), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "8UC4": (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    "mono8": (RGB[..., 0], GREY),
    "8UC1": (RGB[..., 0], GREY),
    "mono16": (wide(RGB[..., 0]), GREY),
    "rgb16": (wide(RGB), RGB),
    "bgr16": (wide(RGB[..., ::-1]), RGB),
    "rgba16": (wide(np.concatenate([RGB, ALPHA], 2)), RGB),
    "bgra16": (wide(np.concatenate([RGB[..., ::-1], ALPHA], 2)), RGB),
}
CLOSE = {
    "yuv422_yuy2": packed(SMOOTH, "0u1v"),
    "yuyv": packed(SMOOTH, "0u1v"),
    "yuv422": packed(SMOOTH, "u0v1"),
    "uyvy": packed(SMOOTH, "u0v1"),
    "nv12": planar(SMOOTH, "uv"),
    "nv21": planar(SMOOTH, "vu"),
    **{f"bayer_{pattern}8": mosaic(SMOOTH, pattern) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{pattern}16": wide(mosaic(SMOOTH, pattern)) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
}


def test_every_encoding_is_tried_here():
    assert set(EXACT) | set(CLOSE) == set(ENCODINGS)


def laid_out(values: np.ndarray, padding: int | None, cut: bool) -> tuple[np.ndarray, int]:
    """Bytes and step of rows with `padding` bytes after each, not after the last with `cut`; None is a step of 0."""
    rows = np.ascontiguousarray(values).reshape(values.shape[0], -1)
    padded = np.pad(rows, ((0, 0), (0, padding or 0)))
    data = padded.ravel()[: -padding if cut and padding else None]
    return np.ascontiguousarray(data), 0 if padding is None else padded.shape[1]


@pytest.mark.parametrize("padding", [None, 0, 6])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("encoding", [*EXACT, *CLOSE])
def test_every_encoding_becomes_rgb_with_any_padding(encoding: str, padding: int | None, cut: bool):
    sent, wanted = EXACT[encoding] if encoding in EXACT else (CLOSE[encoding], SMOOTH)
    data, step = laid_out(sent, padding, cut)
    found = rgb_of(data, encoding, HEIGHT, WIDTH, step)
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    if encoding in EXACT:
        np.testing.assert_array_equal(found, wanted)
    else:  # the border of a mosaic is guessed
        apart = np.abs(found.astype(int) - wanted.astype(int))[2:-2, 2:-2]
        assert apart.max() <= 8, (encoding, apart.max())


def test_big_endian_values_are_read_as_such():
    found = rgb_of(wide(RGB[..., 0], big=True).ravel(), "mono16", HEIGHT, WIDTH, 0, big_endian=True)
    np.testing.assert_array_equal(found, GREY)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "no such"])
def test_what_is_no_image_is_named(encoding: str):
    with pytest.raises(ValueError, match=f"encoding is '{encoding}', expected one of rgb8"):
        rgb_of(np.zeros(4 * HEIGHT * WIDTH, np.uint8), encoding, HEIGHT, WIDTH, 0)


@pytest.mark.parametrize(
    ("size", "height", "width", "step"),
    [
        (0, HEIGHT, WIDTH, 0),
        (100, HEIGHT, WIDTH, 96),
        (3 * HEIGHT * WIDTH, HEIGHT, WIDTH, 50),
        (9, 0, 3, 9),
        (9, 3, 0, 3),
    ],
)
@pytest.mark.parametrize("encoding", ["rgb8", "yuyv", "nv12", "bayer_rggb8", "mono16"])
def test_a_size_that_does_not_fit_is_refused_whatever_the_encoding(encoding, size, height, width, step):
    with pytest.raises(ValueError, match=r"do not fit|even size"):
        rgb_of(np.zeros(size, np.uint8), encoding, height, width, step)


@pytest.mark.parametrize(
    ("described", "suffix", "swap"),
    [
        ("jpeg", ".jpg", False),
        ("png", ".png", False),
        ("rgb8; jpeg compressed bgr8", ".jpg", False),
        ("bgr8; png compressed bgr8", ".png", False),
        ("bgr8; jpeg compressed ", ".jpg", False),
        ("rgb8; png compressed rgb8", ".png", True),
    ],
)
def test_compressed_images_become_rgb(described: str, suffix: str, swap: bool):
    import cv2

    stored = SMOOTH if swap else SMOOTH[..., ::-1]
    data = cv2.imencode(suffix, np.ascontiguousarray(stored))[1].ravel()
    found = rgb_of_compressed(data, described)
    assert np.abs(found.astype(int) - SMOOTH.astype(int)).max() <= (0 if suffix == ".png" else 12)


def test_what_cannot_be_decoded_is_said():
    with pytest.raises(ValueError, match="cannot be decoded"):
        rgb_of_compressed(np.zeros(50, np.uint8), "jpeg")
    with pytest.raises(ValueError, match="cannot be decoded"):
        rgb_of_compressed(np.zeros(0, np.uint8), "jpeg")
    with pytest.raises(ValueError, match="a depth image"):
        rgb_of_compressed(np.zeros(50, np.uint8), "16UC1; compressedDepth png")
