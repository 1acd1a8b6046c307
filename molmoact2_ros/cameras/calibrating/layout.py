"""Whether the board in the pictures is the one that was told: how many squares, and how large the markers are in
them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import LEAST_CORNERS, Board, Seen

Array = NDArray[np.float64]

_OFF = 0.3
"""Markers stand elsewhere than on the board told when they are off by this share of their side."""
_RATIO_OFF = 0.05
_MOST = 16
"""Columns and rows of the boards that are tried."""


def wrong_board(board: Board, pictures: Sequence[Seen]) -> str:
    """Why the pictures show another board than `board`, and what to say instead; empty when they do not, or when too
    little is seen to tell."""
    clear = sorted((seen for seen in pictures if len(seen.markers) >= 4), key=lambda seen: -len(seen.markers))[:8]
    if not clear:
        return ""
    errors = [_layout_error(board, seen) for seen in clear]
    beyond = [int(seen.markers.max()) for seen in clear if seen.markers.max() >= board.markers]
    if len(beyond) > len(clear) // 2 or float(np.median(errors)) > _OFF:
        what = f"the board in the pictures is not one of {board.squares} squares"
        if len(beyond) > len(clear) // 2:
            what += f": it has a marker {max(beyond)}, and {board.squares} has markers up to {board.markers - 1}"
        found = _fitting(board, clear)
        advice = f"; --squares {found} fits" if found else "; count its squares, and say them with --squares"
        return what + advice
    sides = [side for side in (_marker_side(board, seen) for seen in clear) if side]
    side = float(np.median(sides)) if sides else board.marker_mm
    if abs(side / board.marker_mm - 1.0) > _RATIO_OFF:
        return (
            f"in squares of {board.square_mm:g} mm the markers of the pictures are {side:.1f} mm, not "
            f"{board.marker_mm:g}: measure both, and say them with --square-mm and --marker-mm"
        )
    return ""


def _layout_error(board: Board, seen: Seen) -> float:
    """How far (median) the markers are from where one flat board would have them, share of a marker's side."""
    import cv2

    grid = {
        int(number): 1e3 * np.asarray(corners, np.float64)[:, :2]
        for number, corners in zip(board.opencv()[0].getIds().ravel(), board.opencv()[0].getObjPoints(), strict=True)
    }
    known = [i for i, number in enumerate(seen.markers) if int(number) in grid]
    if len(known) < 4:
        return float("inf")
    there = np.concatenate([grid[int(seen.markers[i])] for i in known])
    pixels = seen.marker_pixels[known].reshape(-1, 2)
    # Least squares over all: a robust fit would find the few markers that any two boards have in common.
    homography, _ = cv2.findHomography(pixels, there, 0)
    if homography is None:
        return float("inf")
    back = cv2.perspectiveTransform(pixels[:, None], homography)[:, 0]
    return float(np.median(np.linalg.norm(back - there, axis=1)) / board.marker_mm)


def _fitting(board: Board, pictures: Sequence[Seen]) -> str:
    """The squares of a board that fits, or nothing; the one that was told turned by a quarter comes first."""
    seen = pictures[0]
    most = int(max(seen.markers))
    sizes = [(columns, rows) for columns in range(3, _MOST) for rows in range(3, _MOST)]
    for columns, rows in sorted(sizes, key=lambda size: (size != (board.rows, board.columns), size[0] * size[1])):
        other = Board(columns, rows, board.square_mm, board.marker_mm)
        if other.markers > most and _layout_error(other, seen) < 0.5 * _OFF:
            return other.squares
    return ""


def _marker_side(board: Board, seen: Seen) -> float:
    """The markers' side (median), mm, by the squares around them; 0 where too few corners are seen."""
    import cv2

    if len(seen.ids) < LEAST_CORNERS:
        return 0.0
    homography, _ = cv2.findHomography(seen.pixels, 1e3 * board.corners[seen.ids, :2], 0)
    if homography is None:
        return 0.0
    corners = cv2.perspectiveTransform(seen.marker_pixels.reshape(-1, 1, 2), homography).reshape(-1, 4, 2)
    return float(np.median(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)))
