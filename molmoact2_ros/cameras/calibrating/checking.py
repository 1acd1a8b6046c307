"""Whether cameras are where their calibration says: seen against predicted corners, in pixels and in mm.

Where the board is need not be known: it is somewhere, and only if every camera at every pose of the arm sees it at one
place do the calibrations agree with each other and with the arm. One camera that stands, or one pose, cannot show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.beginning import seen_poses
from molmoact2_ros.cameras.calibrating.board import Board
from molmoact2_ros.cameras.calibrating.bundle import BOARDS, Bundle, inverse
from molmoact2_ros.cameras.calibrating.collection import CalibrationError, Collection, Optics, View
from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

OFF_MM, OFF_DEG = 5.0, 0.5
"""Beyond both of them a calibration counts as off: what a gripper misses by, and what joints with backlash give."""
_LEAST_MOVE_M, _LEAST_TURN_RAD = 0.03, 0.15
"""Two views say something about each other when board and camera have moved this far against each other between
them."""


@dataclass(frozen=True)
class CameraCheck:
    """How one camera does.

    Attributes:
        views: how many. pixels: RMS of its corners; millimetres: the same at the board's distance.
        degrees: the same as an angle. by_view: pixels by picture.
    """

    views: int
    pixels: float
    millimetres: float
    degrees: float
    by_view: Mapping[str, float]

    @property
    def off(self) -> bool:
        """It is not where its calibration says."""
        return self.millimetres > OFF_MM and self.degrees > OFF_DEG


@dataclass(frozen=True)
class Check:
    """How all do: by camera, and what else there is to say."""

    cameras: Mapping[str, CameraCheck]
    notes: Sequence[str]

    @property
    def off(self) -> bool:
        """Something is not where the calibration says."""
        return any(camera.off for camera in self.cameras.values())


def check(
    robot: Embodiment,
    collection: Collection,
    calibrations: Mapping[str, CameraCalibration],
    standing: tuple[Board, str, Array] | None = None,
) -> Check:
    """Compare every view with what the calibrations predict.

    Args:
        standing: the board that stays in the cell, as the calibration file has it: then its place is known, too.

    Raises:
        CalibrationError: a camera has no calibration, or one of another size; or the views could not show an error.
    """
    views = [view for view in collection.views if view.mount]
    if not views:
        raise CalibrationError(
            "the pictures are of a board in a hand, which shows nothing about places; lay it into the cell"
        )
    for name in dict.fromkeys(view.camera for view in views):
        known = calibrations.get(name)
        if known is None:
            raise CalibrationError(f"camera {name} has no calibration; there are: {', '.join(calibrations) or 'none'}")
        size = next(view.size for view in views if view.camera == name)
        if size != (known.width, known.height):
            raise CalibrationError(
                f"camera {name} is calibrated at {known.width}x{known.height}, and its pictures are "
                f"{size[0]}x{size[1]}: set its format as it was, or calibrate it anew"
            )
    mounts = {name: one.mount for name, one in calibrations.items()}
    lenses = {name: Optics(one.k, one.d) for name, one in calibrations.items()}
    poses = {name: one.pose for name, one in calibrations.items()}
    bundle = Bundle(robot, collection.board, views, mounts, lenses, poses)
    seen = seen_poses(views, collection.board, lenses)
    between = bundle.between()
    boards: dict[str, Array] = {}
    for i, view in sorted(enumerate(views), key=lambda item: -len(item[1].seen.ids)):
        boards.setdefault(view.placement, inverse(between[i]) @ poses[view.camera] @ seen[i])
    fixed: list[str] = []
    notes: list[str] = []
    if standing is not None and standing[0] == collection.board:
        fixed = [name for name in boards if any(v.placement == name and v.mount == standing[1] for v in views)]
    telling = [name for name in boards if name in fixed or _tells(views, between, name)]
    if not telling:
        raise CalibrationError(
            "these pictures cannot show an error: the board must be seen by two cameras at once, or by one at two "
            "poses of the arm that differ"
        )
    notes += [f"{name}: one view of the board; it tells nothing" for name in boards if name not in telling]
    views = [view for view in views if view.placement in telling]
    bundle = replace(bundle, views=views, boards=boards)
    free, _ = bundle.solved({BOARDS})
    if fixed:
        if not any(one.off for one in _by_camera(free).values()):  # only where they agree with each other
            notes += _moved(free, fixed, standing)
        bundle = replace(free, boards={**free.boards, **dict.fromkeys(fixed, standing[2])}) if standing else free
    else:
        bundle = free
    found = _by_camera(bundle)
    if not fixed and any(one.off for one in found.values()):
        culprit = _culprit(bundle)
        if culprit is not None:
            found, note = culprit
            notes.append(note)
    return Check(found, notes)


def _culprit(bundle: Bundle) -> tuple[dict[str, CameraCheck], str] | None:
    """The one camera without which all others agree, and how all do by the board that those others see."""
    between = bundle.between()
    for name in bundle.names[0] if len(bundle.names[0]) > 1 else ():
        others = [view for view in bundle.views if view.camera != name]
        rows = [i for i, view in enumerate(bundle.views) if view.camera != name]
        placements = {view.placement for view in others}
        if placements != set(bundle.names[1]) or not all(_tells(others, between[rows], one) for one in placements):
            continue
        alone, _ = replace(bundle, views=others).solved({BOARDS})
        if not any(one.off for one in _by_camera(alone).values()):
            found = _by_camera(replace(bundle, boards={**bundle.boards, **alone.boards}))
            return found, f"without {name} the others agree with each other and with the arm"
    return None


def _tells(views: Sequence[View], between: Array, placement: str) -> bool:
    rows = [i for i, view in enumerate(views) if view.placement == placement]
    if len({views[i].camera for i in rows}) > 1:
        return True
    first = between[rows[0]]
    for i in rows[1:]:
        change = inverse(first) @ between[i]
        turn = np.arccos(np.clip((np.trace(change[:3, :3]) - 1.0) / 2.0, -1.0, 1.0))
        if np.linalg.norm(change[:3, 3]) > _LEAST_MOVE_M or turn > _LEAST_TURN_RAD:
            return True
    return False


def _moved(free: Bundle, fixed: Sequence[str], standing: tuple[Board, str, Array] | None) -> list[str]:
    if standing is None:
        return []
    out = []
    for name in fixed:
        change = inverse(standing[2]) @ free.boards[name]
        moved = 1e3 * float(np.linalg.norm(change[:3, 3]))
        if moved > OFF_MM:
            out.append(
                f"{name}: all cameras together see the board {moved:.0f} mm from its place in the file: it was moved, "
                "or the arm's base was"
            )
    return out


def _by_camera(bundle: Bundle) -> dict[str, CameraCheck]:
    out = {}
    distances = np.linalg.norm(_in_cameras(bundle)[:, :3, 3], axis=1)
    pixels, degrees = bundle.rms_by_view(), bundle.degrees_by_view()
    for name in bundle.names[0]:
        rows = [i for i, view in enumerate(bundle.views) if view.camera == name]
        by_view = {bundle.views[i].file: float(pixels[i]) for i in rows}
        rms, angle = (float(np.sqrt(np.mean(values[rows] ** 2))) for values in (pixels, degrees))
        away = 1e3 * float(np.sqrt(np.mean((np.radians(degrees[rows]) * distances[rows]) ** 2)))
        out[name] = CameraCheck(len(rows), rms, away, angle, by_view)
    return out


def _in_cameras(bundle: Bundle) -> Array:
    cameras = np.array([bundle.cameras[view.camera] for view in bundle.views])
    boards = np.array([bundle.boards[view.placement] for view in bundle.views])
    return inverse(cameras) @ bundle.between() @ boards


def told(result: Check, verbose: bool = False) -> str:
    """The check in words; with `verbose` every picture."""
    lines = [
        f"{name:<10} {one.pixels:6.2f} px  {one.millimetres:5.1f} mm  {one.degrees:.2f} degrees  over {one.views} "
        f"pictures{'   OFF: calibrate it anew' if one.off else ''}"
        for name, one in result.cameras.items()
    ]
    if verbose:
        lines += [f"  {px:6.2f} px  {file}" for one in result.cameras.values() for file, px in one.by_view.items()]
    lines += [f"note: {note}" for note in result.notes]
    if result.off:
        lines.append(
            f"A camera is off beyond {OFF_MM:g} mm and {OFF_DEG:g} degrees. Where all are, look at the arm first: its "
            "base, its calibration."
        )
    return "\n".join(lines)
