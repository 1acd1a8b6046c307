"""Pictures of words: why there is no picture, what the colours mean."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from molmoact2_ros.rendering import colours
from molmoact2_ros.rendering.overlay import FONT, RgbImage, shade, text

_BACK = (26, 28, 33)
_MARGIN = 24
_SWATCH = 72


def notice(title: str, words: str, width: int = 640, height: int = 480) -> RgbImage:
    """Picture (height, width, 3) that says `title` and, in smaller letters and as many lines as they need, `words`."""
    picture: RgbImage = np.full((height, width, 3), _BACK, np.uint8)
    lines = _lines(words, width - 2 * _MARGIN, 0.7)
    y = max(60, height // 2 - 17 * len(lines))
    text(picture, title, (_MARGIN, y), 0.95, colours.WHITE, 2)
    for line in lines:
        y += 34
        text(picture, line, (_MARGIN, y), 0.7, colours.DIM)
    return picture


def captioned(picture: RgbImage, words: str) -> RgbImage:
    """`picture` (h, w, 3) with one line of words, or as many as it needs, along its lower edge; a new picture."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    size = 0.36 if width < 480 else 0.5
    step = round(40 * size)
    lines = _lines(words, width - 12, size)
    shade(picture, max(0, height - step * len(lines) - 6), height, 0, width, 0.7)
    for i, line in enumerate(lines):
        text(picture, line, (6, height - 6 - step * (len(lines) - 1 - i)), size)
    return picture


def legend(width: int = 400) -> RgbImage:
    """Picture (h, width, 3) of what each colour and shape stands for, in images and in the scene."""
    entries: list[tuple[Callable[[RgbImage, int], None], str]] = [
        (_ramp, "predicted path of the tip, now to end"),
        (_balls, "gripper there: closed small, open large"),
        (_line(colours.EXECUTED), "way that the tip has come"),
        (_line(colours.EARLIER), "earlier chunks, the older the fainter"),
        (_tube, "how far the chunks lie apart"),
        (_patch(colours.COMMANDED), "arm as commanded, where it is not yet"),
        (_box(colours.WORKSPACE), "workspace of the tip"),
        (_patch(colours.LIMIT), "limit that is touched"),
        (_box(colours.CHANGED), "depth cell that was predicted again"),
        (_states, "tracking, holding, stopping, fault"),
    ]
    step = 24
    picture: RgbImage = np.full((step * len(entries) + 12, width, 3), _BACK, np.uint8)
    for i, (draw, words) in enumerate(entries):
        y = 6 + step * i
        draw(picture[y : y + step, 8 : 8 + _SWATCH], step)
        text(picture, words, (_SWATCH + 20, y + step // 2 + 5), 0.44, colours.WHITE)
    return picture


def _lines(words: str, width: int, size: float) -> list[str]:
    """`words` in lines that are at most `width` pixels wide, broken between words."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and cv2.getTextSize(longer, FONT, size, 1)[0][0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _ramp(region: RgbImage, step: int) -> None:
    width = region.shape[1]
    for x in range(width):
        cv2.line(region, (x, step // 2 - 2), (x, step // 2 + 2), colours.ramp(x / (width - 1)), 1)


def _balls(region: RgbImage, step: int) -> None:
    for i, radius in enumerate((3, 5, 8)):
        x = 12 + 24 * i
        cv2.circle(region, (x, step // 2), radius, colours.ramp(i / 2), -1, cv2.LINE_AA)


def _line(colour: colours.Colour) -> Callable[[RgbImage, int], None]:
    def draw(region: RgbImage, step: int) -> None:
        cv2.line(region, (0, step // 2), (region.shape[1] - 1, step // 2), colour, 2, cv2.LINE_AA)

    return draw


def _tube(region: RgbImage, step: int) -> None:
    shape = np.array([[0, 9], [_SWATCH - 1, 4], [_SWATCH - 1, step - 4], [0, step - 9]], np.int32)
    drawn = region.copy()
    cv2.fillPoly(drawn, [shape], colours.EARLIER, cv2.LINE_AA)
    region[...] = cv2.addWeighted(drawn, 0.5, region, 0.5, 0.0)


def _patch(colour: colours.Colour) -> Callable[[RgbImage, int], None]:
    def draw(region: RgbImage, step: int) -> None:
        cv2.rectangle(region, (20, 6), (_SWATCH - 20, step - 6), colour, -1, cv2.LINE_AA)

    return draw


def _box(colour: colours.Colour) -> Callable[[RgbImage, int], None]:
    def draw(region: RgbImage, step: int) -> None:
        cv2.rectangle(region, (20, 5), (_SWATCH - 20, step - 5), colour, 1, cv2.LINE_AA)

    return draw


def _states(region: RgbImage, step: int) -> None:
    for i, state in enumerate(("TRACKING", "HOLDING", "STOPPING", "FAULT")):
        cv2.circle(region, (8 + 18 * i, step // 2), 6, colours.state_colour(state), -1, cv2.LINE_AA)
