"""The predicted path, the re-predicted depth cells and a short legend, drawn into a camera's image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.rendering.colours import CHANGED, DARK, DIM, EARLIER, EXECUTED, WHITE, Colour, ramp, state_colour

Array = NDArray[np.float64]
RgbImage = NDArray[np.uint8]

FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUBPIXEL = 4
"""Fractional bits of the coordinates that OpenCV draws at."""


@dataclass(frozen=True)
class ImagePath:
    """A chunk's path in an image.

    Attributes:
        pixels: (rows, 2) x, y in the camera's own pixels; NaN where a row is behind the camera.
        openness: of the gripper, (rows,), 0 closed to 1 open.
    """

    pixels: Array
    openness: Array


@dataclass(frozen=True)
class ImageHistory:
    """What lies around the path in an image; pixels (n, 2) as those of an `ImagePath`.

    Attributes:
        executed: where each tip has been, the oldest first.
        earlier: what earlier chunks said of the time to come, each with its freshness, 0 to 1; the oldest first.
    """

    executed: tuple[Array, ...] = ()
    earlier: tuple[tuple[float, Array], ...] = ()


@dataclass(frozen=True)
class Legend:
    """What the corner of an overlay says; None stands for not known."""

    task: str = ""
    state: str = ""
    driven_by: str = ""
    chunk_age_s: float | None = None
    latency_s: float | None = None
    horizon_s: float | None = None


def _fixed(picture: RgbImage, pixels: Array, scale: float) -> tuple[list[tuple[int, int]], NDArray[np.bool_]]:
    """`pixels` (n, 2) in OpenCV's fixed-point coordinates, and which can be drawn."""
    pixels = np.asarray(pixels, dtype=np.float64).reshape(-1, 2) * scale
    # Far outside, OpenCV's fixed-point coordinates overflow into the image.
    drawable = np.all(np.isfinite(pixels), axis=1) & np.all(
        np.abs(np.nan_to_num(pixels)) < 8.0 * max(picture.shape), axis=1
    )
    fixed = np.where(drawable[:, None], pixels * (1 << _SUBPIXEL), 0.0).astype(np.int32)
    return [(int(x), int(y)) for x, y in fixed], drawable


def draw_history(picture: RgbImage, history: ImageHistory, scale: float = 1.0) -> None:
    """Draw the earlier chunks, fading with age, and the way come, in place."""

    def line(pixels: Array, colour: Colour, strength: float) -> None:
        whole, drawable = _fixed(picture, pixels, scale)
        kept = [whole[i] for i in np.flatnonzero(drawable)]
        if len(kept) < 2:
            return
        # Only the part of the image with the line in it is blended: most lines are short.
        corners = np.array([np.min(kept, axis=0), np.max(kept, axis=0)]) >> _SUBPIXEL
        left, top = np.maximum(corners[0] - 3, 0)
        right, bottom = np.minimum(corners[1] + 4, (picture.shape[1], picture.shape[0]))
        if left >= right or top >= bottom:
            return
        region = picture[top:bottom, left:right]
        drawn = region.copy()
        moved = [(x - (int(left) << _SUBPIXEL), y - (int(top) << _SUBPIXEL)) for x, y in whole]
        for i in range(len(moved) - 1):
            if drawable[i] and drawable[i + 1]:
                cv2.line(drawn, moved[i], moved[i + 1], colour, 2, cv2.LINE_AA, _SUBPIXEL)
        region[...] = cv2.addWeighted(drawn, strength, region, 1.0 - strength, 0.0)

    for freshness, pixels in history.earlier:
        line(pixels, EARLIER, 0.15 + 0.5 * freshness)
    for pixels in history.executed:
        line(pixels, EXECUTED, 0.6)


def draw_path(picture: RgbImage, path: ImagePath, now_row: float, scale: float = 1.0) -> None:
    """Draw `path` into `picture` (h, w, 3), in place.

    `now_row` is the row whose time is now: what lies before it is faded. The size of the dots is the opening of the
    gripper. `scale` is the image's size over the camera's. Rows behind the camera leave a gap.
    """
    whole, drawable = _fixed(picture, path.pixels, scale)
    rows = len(whole)
    first = int(np.clip(np.ceil(now_row), 0, rows))
    span = max(rows - 1 - first, 1)

    def segments(begin: int, end: int) -> list[int]:
        return [i for i in range(begin, end) if drawable[i] and drawable[i + 1]]

    if first > 0:
        faded = picture.copy()
        for i in segments(0, min(first, rows - 1)):
            cv2.line(faded, whole[i], whole[i + 1], WHITE, 2, cv2.LINE_AA, _SUBPIXEL)
        cv2.addWeighted(faded, 0.45, picture, 0.55, 0.0, dst=picture)
    future = segments(first, rows - 1)
    for i in future:
        cv2.line(picture, whole[i], whole[i + 1], DARK, 6, cv2.LINE_AA, _SUBPIXEL)
    for i in future:
        cv2.line(picture, whole[i], whole[i + 1], ramp((i - first) / span), 3, cv2.LINE_AA, _SUBPIXEL)
    step = max(1, rows // 6)
    for i in range(rows - 1, first - 1, -step):
        if drawable[i]:
            radius = int((2.5 + 6.0 * float(path.openness[i])) * (1 << _SUBPIXEL))
            cv2.circle(picture, whole[i], radius + (2 << _SUBPIXEL) // 2, DARK, -1, cv2.LINE_AA, _SUBPIXEL)
            cv2.circle(picture, whole[i], radius, ramp((i - first) / span), -1, cv2.LINE_AA, _SUBPIXEL)


def draw_updated_cells(picture: RgbImage, updated: NDArray[np.bool_], strength: float = 0.65) -> None:
    """Outline the cells of `updated` (g, g) that are True over the whole image, in place; `strength` is 0 to 1."""
    grid = updated.shape[0]
    if updated.shape != (grid, grid):
        raise ValueError(f"updated cells must be a square grid (g, g), got shape {updated.shape}")
    if not updated.any():
        return
    height, width = picture.shape[:2]
    drawn = picture.copy()
    for row, column in np.argwhere(updated):
        corner = (int(column * width / grid) + 2, int(row * height / grid) + 2)
        opposite = (int((column + 1) * width / grid) - 3, int((row + 1) * height / grid) - 3)
        cv2.rectangle(drawn, corner, opposite, CHANGED, 1, cv2.LINE_AA)
    cv2.addWeighted(drawn, strength, picture, 1.0 - strength, 0.0, dst=picture)


def shade(picture: RgbImage, top: int, bottom: int, left: int, right: int, strength: float = 0.6) -> None:
    """Darken a rectangle of `picture`, in place, so that text on it can be read."""
    region = picture[top:bottom, left:right]
    region[...] = (region * (1.0 - strength) + np.array(DARK) * strength).astype(np.uint8)


def text(
    picture: RgbImage, words: str, at: tuple[int, int], size: float = 0.45, colour: Colour = WHITE, weight: int = 1
) -> int:
    """Write one line with its baseline's left end `at` (x, y), in place; return its width. Non-ASCII becomes '?'."""
    words = words.encode("ascii", "replace").decode("ascii")
    cv2.putText(picture, words, at, FONT, size, colour, weight, cv2.LINE_AA)
    return int(cv2.getTextSize(words, FONT, size, weight)[0][0])


def fitted(words: str, width: int, size: float, weight: int = 1) -> str:
    """`words`, cut with dots where they are wider than `width` pixels."""
    if cv2.getTextSize(words, FONT, size, weight)[0][0] <= width:
        return words
    while words and cv2.getTextSize(words + "...", FONT, size, weight)[0][0] > width:
        words = words[:-1]
    return words.rstrip() + "..."


def milliseconds(seconds: float | None) -> str:
    """A duration as the legends show it."""
    return "-" if seconds is None else f"{1000.0 * seconds:.0f} ms"


def draw_legend(picture: RgbImage, legend: Legend) -> None:
    """Write `legend` along the lower edge and the colours of the horizon above it, in place."""
    height, width = picture.shape[:2]
    bar = 44
    shade(picture, height - bar, height, 0, width)
    text(picture, fitted(legend.task or "no task", width - 16, 0.5), (10, height - 26), 0.5)
    x = 10
    if legend.state:
        cv2.circle(picture, (x + 4, height - 11), 4, state_colour(legend.state), -1, cv2.LINE_AA)
        words = legend.state.lower() + (f", {legend.driven_by} drives" if legend.driven_by else "")
        x += 14 + text(picture, words, (x + 14, height - 7), 0.42, state_colour(legend.state)) + 16
    ages = f"chunk {milliseconds(legend.chunk_age_s)}   latency {milliseconds(legend.latency_s)}"
    text(picture, ages, (x, height - 7), 0.42, DIM)
    if legend.horizon_s is not None:
        _draw_ramp(picture, legend.horizon_s, right=width - 10, y=height - 12)


def _draw_ramp(picture: RgbImage, horizon_s: float, right: int, y: int) -> None:
    label = f"+{horizon_s:.1f} s"
    label_width = cv2.getTextSize(label, FONT, 0.42, 1)[0][0]
    length = 80
    left = right - label_width - 6 - length
    if left < picture.shape[1] // 2:
        return
    for i in range(length):
        cv2.line(picture, (left + i, y - 2), (left + i, y + 2), ramp(i / (length - 1)), 1)
    text(picture, "now", (left - 34, y + 5), 0.42, DIM)
    text(picture, label, (right - label_width, y + 5), 0.42, DIM)


def overlay(
    rgb: RgbImage,
    paths: tuple[ImagePath, ...],
    now_row: float,
    updated: NDArray[np.bool_] | None = None,
    legend: Legend | None = None,
    scale: int = 2,
    history: ImageHistory | None = None,
) -> RgbImage:
    """New image (h * scale, w * scale, 3) of `rgb` (h, w, 3) with the paths and what lies around them, the outlined
    cells and the legend."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"a camera image must be uint8 (h, w, 3), got {rgb.dtype} {rgb.shape}")
    height, width = rgb.shape[:2]
    size = (width * scale, height * scale)
    picture: RgbImage = np.asarray(
        cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR) if scale != 1 else rgb.copy(), np.uint8
    )
    if updated is not None:
        draw_updated_cells(picture, updated)
    if history is not None:
        draw_history(picture, history, float(scale))
    for path in paths:
        draw_path(picture, path, now_row, float(scale))
    if legend is not None:
        draw_legend(picture, legend)
    return picture
