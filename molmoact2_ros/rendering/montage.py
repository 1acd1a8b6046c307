"""One picture of the film: the overlay large, camera, wrist and depth beside it, and what the run is doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.rendering.colours import CHANGED, DARK, DIM, WHITE, Colour, state_colour
from molmoact2_ros.rendering.overlay import FONT, RgbImage, fitted, milliseconds, shade, text

WIDTH, HEIGHT = 1280, 520
_HEADER = 40
_LARGE = (640, 480)
_SMALL = (320, 240)
_BACK: Colour = (26, 28, 33)
_EPISODE_COLOURS: dict[str, Colour] = {
    "success": (70, 215, 110),
    "failure": (255, 95, 85),
    "running": WHITE,
    "waiting": DIM,
}


@dataclass(frozen=True)
class Caption:
    """What the film says beside its pictures; None and empty strings are left out.

    Attributes:
        title: name of the run, left in the header.
        task: the instruction.
        state, reason: of the executor.
        chunk_age_s, latency_s: age of the chunk in use, and from observation to chunk.
        episode: number of the episode, from 1; outcome: waiting, running, success or failure.
        successes, finished: counts of this run. elapsed_s: since the episode began.
        cameras: names of the two that are shown small.
        cube_height_m, gripper_distance_m: histories of this episode as (t_s, value), oldest first.
    """

    title: str = "MolmoAct2"
    task: str = ""
    state: str = ""
    reason: str = ""
    chunk_age_s: float | None = None
    latency_s: float | None = None
    episode: int | None = None
    outcome: str = ""
    successes: int = 0
    finished: int = 0
    elapsed_s: float | None = None
    cameras: tuple[str, str] = ("front", "wrist")
    cube_height_m: Sequence[tuple[float, float]] = field(default=())
    gripper_distance_m: Sequence[tuple[float, float]] = field(default=())


def montage(
    camera: RgbImage | None, overlay: RgbImage | None, depth: RgbImage | None, wrist: RgbImage | None, caption: Caption
) -> RgbImage:
    """RgbImage (520, 1280, 3): overlay | camera over wrist | depth over the run's figures.

    A picture that is None leaves a panel that says so.
    """
    canvas: RgbImage = np.full((HEIGHT, WIDTH, 3), _BACK, np.uint8)
    _draw_header(canvas[:_HEADER], caption)
    panels = (
        (overlay, (0, _HEADER), _LARGE, "predicted path"),
        (camera, (640, _HEADER), _SMALL, f"camera: {caption.cameras[0]}"),
        (wrist, (640, _HEADER + 240), _SMALL, f"camera: {caption.cameras[1]}"),
        (depth, (960, _HEADER), _SMALL, "depth the model predicts"),
    )
    for picture, (x, y), size, name in panels:
        _draw_panel(canvas[y : y + size[1], x : x + size[0]], picture, name)
    _draw_figures(canvas[_HEADER + 240 :, 960:], caption)
    for x in (640, 960):
        cv2.line(canvas, (x, _HEADER), (x, HEIGHT), _BACK, 2)
    cv2.line(canvas, (640, _HEADER + 240), (WIDTH, _HEADER + 240), _BACK, 2)
    return canvas


def _draw_header(region: RgbImage, caption: Caption) -> None:
    x = 12 + text(region, caption.title, (12, 26), 0.6, WHITE, 1) + 18
    if caption.task:
        text(region, fitted(f'"{caption.task}"', 820 - x, 0.55), (x, 26), 0.55, CHANGED)
    if caption.finished:
        count = f"{caption.successes} of {caption.finished} picked"
        width = cv2.getTextSize(count, FONT, 0.55, 1)[0][0]
        text(region, count, (WIDTH - 12 - width, 26), 0.55, WHITE)


def _draw_panel(region: RgbImage, picture: RgbImage | None, name: str) -> None:
    height, width = region.shape[:2]
    if picture is None:
        region[...] = (38, 41, 47)
        text(region, f"{name}: nothing yet", (14, height // 2), 0.45, DIM)
        return
    wanted = width * picture.shape[0] // picture.shape[1]
    if wanted < height - 1:  # a wide picture keeps its shape
        region[...] = (38, 41, 47)
        top = (height - wanted) // 2
        _draw_panel(region[top : top + wanted], picture, name)
        return
    if picture.shape[:2] == (height, width):
        region[...] = picture
    else:
        # Depth has few pixels and hard cells: interpolation would invent detail that the model did not predict.
        enlarged = picture.shape[0] * 2 <= height
        region[...] = cv2.resize(
            picture, (width, height), interpolation=cv2.INTER_NEAREST if enlarged else cv2.INTER_AREA
        )
    label = cv2.getTextSize(name, FONT, 0.42, 1)[0][0]
    shade(region, 0, 20, 0, label + 16)
    text(region, name, (8, 14), 0.42, WHITE)


def _draw_figures(region: RgbImage, caption: Caption) -> None:
    region[...] = _BACK
    y = 24
    if caption.episode is not None:
        colour = _EPISODE_COLOURS.get(caption.outcome, WHITE)
        elapsed = "" if caption.elapsed_s is None else f"   {caption.elapsed_s:.1f} s"
        text(region, f"episode {caption.episode}   {caption.outcome}{elapsed}", (14, y), 0.5, colour)
    y += 25
    if caption.state:
        cv2.circle(region, (19, y - 5), 5, state_colour(caption.state), -1, cv2.LINE_AA)
        words = caption.state.lower() + (f": {caption.reason}" if caption.reason else "")
        text(region, fitted(words, 275, 0.45), (32, y), 0.45, state_colour(caption.state))
    y += 23
    text(region, "chunk age", (14, y), 0.42, DIM)
    text(region, milliseconds(caption.chunk_age_s), (90, y), 0.42)
    text(region, "latency", (170, y), 0.42, DIM)
    text(region, milliseconds(caption.latency_s), (230, y), 0.42)
    _draw_plot(region[88:160, 14:306], caption.gripper_distance_m, "gripper to cube", (40, 170, 255), 0.05)
    _draw_plot(region[164:236, 14:306], caption.cube_height_m, "cube above table", (70, 215, 110), 0.05)


def _draw_plot(
    region: RgbImage, history: Sequence[tuple[float, float]], name: str, colour: Colour, least: float
) -> None:
    """A small curve of `history` in cm; the axis reaches at least `least` m."""
    height, width = region.shape[:2]
    region[...] = DARK
    if len(history) > 1:
        values = np.asarray(history, dtype=np.float64)
        values = values[:: max(1, len(values) // width)]
        span = max(values[-1, 0] - values[0, 0], 1e-3)
        top = max(float(values[:, 1].max()), least)
        x = (values[:, 0] - values[0, 0]) / span * (width - 4) + 2
        y = height - 4 - np.clip(values[:, 1] / top, 0.0, 1.0) * (height - 26)
        points = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(region, [points], False, colour, 1, cv2.LINE_AA)
    text(region, name, (6, 14), 0.4, DIM)
    if history:
        now = f"{100.0 * history[-1][1]:.1f} cm"
        text(region, now, (width - 6 - cv2.getTextSize(now, FONT, 0.42, 1)[0][0], 14), 0.42, WHITE)


def canvas_shape() -> tuple[int, int, int]:
    """Shape of every film picture; both sides are even, as yuv420p wants them."""
    return HEIGHT, WIDTH, 3


def blank() -> NDArray[np.uint8]:
    """An empty film picture."""
    return montage(None, None, None, None, Caption())
