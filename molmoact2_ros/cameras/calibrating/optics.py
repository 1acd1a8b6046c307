"""The optics of a camera from its views of a board: focal lengths, centre, distortion, and how well they are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import LEAST_CORNERS, Board
from molmoact2_ros.cameras.calibrating.collection import HAND, CalibrationError, Optics, View

Array = NDArray[np.float64]

LEAST_VIEWS = 6
"""Views that differ; twelve and more are better."""
FOCAL_ROUGH = 0.05
"""Largest standard deviation of the focal length to begin with, share; the arm's kinematics make it better known."""
MOST_RMS = 2.0
"""Largest reprojection error, pixels at a width of 640: more is a bent board, a moved one, or pictures of two sizes."""
_ALIKE = 0.03
"""Views whose corners lie closer together than this share of the picture's width (median) count once."""
_GRID = (6, 4)
_STRAY, _STRAY_PIXELS = 3.0, 0.4
"""A corner is left out that is so many times further off than the median of its view, and as many pixels at 640."""


@dataclass(frozen=True, eq=False)
class OpticsFound:
    """What came out for one camera.

    Attributes:
        optics: intrinsics. own: they are what the camera says of itself, since the views were not enough.
        rms: reprojection error, pixels (NaN for `own`). views: how many different ones. focal_known: standard deviation
            of the focal length, share. covered: share of the picture's parts in which corners were seen.
        note: why the camera's own optics are used.
    """

    optics: Optics
    own: bool
    rms: float
    views: int
    focal_known: float
    covered: float
    note: str = ""


def parts_covered(pixels: Sequence[Array], size: tuple[int, int]) -> NDArray[np.bool_]:
    """In which parts (rows, columns) of a picture of `size` (width, height) there are corners, given as (n, 2) each."""
    out = np.zeros((_GRID[1], _GRID[0]), dtype=bool)
    for some in pixels:
        cells = np.clip((some / size * _GRID).astype(int), 0, np.array(_GRID) - 1)
        out[cells[:, 1], cells[:, 0]] = True
    return out


def different(views: Sequence[View]) -> list[View]:
    """The views without those that show the same as an earlier one: a camera that stands sees a board that lies still
    over and over, and learns nothing new."""
    kept: list[View] = []
    for view in sorted(views, key=lambda view: -len(view.seen.ids)):
        if not any(_alike(view, other) for other in kept):
            kept.append(view)
    return kept


def _alike(one: View, other: View) -> bool:
    _, a, b = np.intersect1d(one.seen.ids, other.seen.ids, return_indices=True)
    if len(a) < 4:
        return False
    apart = np.linalg.norm(one.seen.pixels[a] - other.seen.pixels[b], axis=1)
    return bool(np.median(apart) < _ALIKE * one.size[0])


def find_optics(camera: str, views: Sequence[View], board: Board, own: Optics | None = None) -> OpticsFound:
    """The optics of `camera`. Where the views are not enough for that, what it says of itself (`own`).

    Raises:
        CalibrationError: the views are not enough, and it says nothing; or they do not fit together.
    """
    sizes = {view.size for view in views}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise CalibrationError(
            f"camera {camera}: its pictures have several sizes ({shown}); take them again at one size"
        )
    useful = different(views)
    covered = float(parts_covered([view.seen.pixels for view in views], views[0].size).mean())
    advice = (
        f"hold the board in a hand in front of {camera} and tilt it to all sides, near and far, into every corner of "
        f"the picture (--board {HAND})"
    )
    if len(useful) < LEAST_VIEWS:
        problem = (
            f"{len(views)} views of the board, and {len(useful)} of them differ; its optics need {LEAST_VIEWS} "
            "different ones"
        )
    else:
        found = _fit(useful, board)
        scale = useful[0].size[0] / 640.0
        if found.rms > MOST_RMS * scale:
            raise CalibrationError(
                f"camera {camera}: the views do not fit one lens ({found.rms:.1f} px RMS over {len(useful)} views, "
                f"expected below {MOST_RMS * scale:.1f}): is the board flat and stiff, was it still, is the focus "
                "fixed? Take the pictures again"
            )
        if found.focal_known <= FOCAL_ROUGH:
            return OpticsFound(found.optics, False, found.rms, len(useful), found.focal_known, covered)
        problem = (
            f"from these {len(useful)} views its focal length is known to {100 * found.focal_known:.1f} % only "
            f"(expected {100 * FOCAL_ROUGH:g} %): the views are too much alike"
        )
    if own is not None and own.k[0, 0] > 0.0:
        note = f"its own optics are used, since {problem}"
        return OpticsFound(own, True, float("nan"), len(useful), float("nan"), covered, note)
    raise CalibrationError(f"camera {camera}: {problem}; {advice}")


def without_strays(views: Sequence[View], board: Board, lens: Optics) -> list[View]:
    """The views without corners that stand out from all others of their picture: a finger's edge that was taken for
    one, glare. A view that is odd as a whole stays as it is."""
    import cv2

    out = []
    for view in views:
        there, pixels = board.corners[view.seen.ids], view.seen.pixels
        _, turn, place = cv2.solvePnP(there, pixels, lens.k, lens.d, flags=cv2.SOLVEPNP_IPPE)
        turn, place = cv2.solvePnPRefineLM(there, pixels, lens.k, lens.d, turn, place)
        miss = np.linalg.norm(cv2.projectPoints(there, turn, place, lens.k, lens.d)[0][:, 0] - pixels, axis=1)
        kept = miss <= max(_STRAY * float(np.median(miss)), _STRAY_PIXELS * view.size[0] / 640.0)
        if kept.all() or np.count_nonzero(kept) < LEAST_CORNERS:
            out.append(view)
        else:
            out.append(replace(view, seen=replace(view.seen, ids=view.seen.ids[kept], pixels=pixels[kept])))
    return out


@dataclass(frozen=True, eq=False)
class _Fit:
    optics: Optics
    rms: float
    focal_known: float


def _fit(views: Sequence[View], board: Board) -> _Fit:
    """The fit without strays, and with the third radial term where that pays."""
    import cv2

    rough = _calibrate(views, board, cv2.CALIB_FIX_K3)
    clean = without_strays(views, board, rough.optics)
    plain = rough
    if any(before is not after for before, after in zip(views, clean, strict=True)):
        plain = _calibrate(clean, board, cv2.CALIB_FIX_K3, rough.optics)
    full = _calibrate(clean, board, 0, plain.optics)
    return full if full.rms < 0.9 * plain.rms and full.focal_known <= 1.5 * plain.focal_known else plain


def _calibrate(views: Sequence[View], board: Board, flags: int, guess: Optics | None = None) -> _Fit:
    import cv2

    there: list[Any] = [board.corners[view.seen.ids].astype(np.float32) for view in views]
    pixels: list[Any] = [view.seen.pixels.astype(np.float32) for view in views]
    calibrate: Any = cv2.calibrateCameraExtended
    begin: tuple[Any, Any] = (None, None)
    if guess is not None:
        begin, flags = (guess.k.copy(), guess.d.copy()), flags | cv2.CALIB_USE_INTRINSIC_GUESS
    found = calibrate(there, pixels, views[0].size, *begin, flags=flags)
    rms, k, d, deviations = found[0], found[1], found[2], np.ravel(found[5])
    known = float(np.max(deviations[:2] / np.array([k[0, 0], k[1, 1]])))
    return _Fit(Optics(np.asarray(k, float), np.ravel(d)[:5].astype(float)), float(rms), known)
