"""From a collection of pictures to calibrated cameras, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.beginning import begin, seen_poses
from molmoact2_ros.cameras.calibrating.board import Board
from molmoact2_ros.cameras.calibrating.bundle import BOARDS, CAMERAS, JOINTS, LENSES, Bundle, Uncertainty
from molmoact2_ros.cameras.calibrating.collection import HAND, CalibrationError, Collection, Optics, View
from molmoact2_ros.cameras.calibrating.optics import OpticsFound, different, find_optics, without_strays
from molmoact2_ros.cameras.calibrating.suspicion import EXPLAINED, exchanged, loose_fit, pairs_of_cameras, swapped_arms
from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.embodiments import EMBODIMENTS, Embodiment

Array = NDArray[np.float64]

GOOD_DEG = 0.3
"""Reprojection error, as an angle, up to which arm and cameras fit together well: 3 pixels at 640 and a common lens."""
MOST_DEG = 1.0
"""Nothing is written beyond this one."""
KNOWN_MM, KNOWN_DEG = 5.0, 1.0
"""Largest standard deviation of a camera's pose."""
LENS_KNOWN = 0.01
"""Largest standard deviation of a focal length and of the centre, share of the focal length."""
_OUTLIER, _OUTLIER_DEG = 4.0, 0.15
"""A view whose error is so many times the median of its camera's, and more than this, is left out."""
_NOISE = 0.1
_STRAY_RAD = (5e-4, 2e-2)
"""Bounds of what a joint is taken to be off its reading."""
_MOST_LEFT_OUT = 0.2
_SCALE_OFF, _SCALE_WRONG = 0.01, 0.03


@dataclass(frozen=True, eq=False)
class CameraFound:
    """A calibrated camera.

    Attributes:
        calibration: what the calibration file gets.
        optics: how its optics came about.
        rms: reprojection error of its pose over all its views, pixels. by_view: the same by picture.
        left_out: pictures that do not fit the others.
        place_mm, turn_deg: standard deviations of its pose along and about the worst axis.
    """

    calibration: CameraCalibration
    optics: OpticsFound
    rms: float
    by_view: Mapping[str, float]
    left_out: Mapping[str, float]
    place_mm: float
    turn_deg: float


@dataclass(frozen=True, eq=False)
class Solution:
    """What the pictures give.

    Attributes:
        cameras: those that are calibrated. refused: why others are not. notes: what the user should know.
        boards: placement -> the link that the board was fixed to, and its pose (4, 4) in it.
        board: as measured.
    """

    cameras: Mapping[str, CameraFound]
    refused: Mapping[str, str]
    notes: Sequence[str]
    boards: Mapping[str, tuple[str, Array]]
    board: Board


def usual_mounts(robot: Embodiment, cameras: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The link that each camera is fixed to: as `given`, or as the cell has it for cameras of the usual names.

    Raises:
        CalibrationError: a camera's name says nothing, or `given` names no link of the robot.
    """
    links = (robot.base_link, *robot.wrist_links)
    # A robot without a cell (another gripper) has the cameras of its family.
    cell = robot.name if robot.name in EMBODIMENTS else robot.family
    own = {name: camera_calibration(cell, name).mount for name in camera_names(cell)}
    out = {}
    for camera in cameras:
        mount = given.get(camera) or own.get(camera, "")
        if mount not in links:
            said = f"{mount!r} is no link for it" if mount else "its name does not say what it is fixed to"
            raise CalibrationError(f"camera {camera}: {said}; --mounts {camera}=LINK, one of {', '.join(links)}")
        out[camera] = mount
    return out


@dataclass(frozen=True, eq=False)
class _Fit:
    """Poses by the readings as they are, and what was left over on the way."""

    bundle: Bundle
    refused: Mapping[str, str]
    left_out: Mapping[str, float]

    @property
    def degrees(self) -> float:
        """Reprojection error of the views that move with the arm."""
        rows = self.bundle.moving()
        errors, weights = self.bundle.degrees_by_view()[rows], self.bundle.counts[rows]
        return float(np.sqrt(np.average(errors**2, weights=weights)))


def solve(robot: Embodiment, collection: Collection, mounts: Mapping[str, str]) -> Solution:
    """Calibrate every camera of the collection that its views suffice for.

    Args:
        mounts: what each camera is fixed to, see `usual_mounts`.

    Raises:
        CalibrationError: the views contradict each other: swapped arms or cameras, joint readings or a board that do
            not match.
    """
    found: dict[str, OpticsFound] = {}
    refused: dict[str, str] = {}
    for camera in collection.cameras:
        views = collection.of(camera)
        try:
            if not views:
                raise CalibrationError(
                    f"camera {camera}: none of its {collection.blind[camera]} pictures shows the board; look at them"
                )
            found[camera] = find_optics(camera, views, collection.board, collection.optics.get(camera))
        except CalibrationError as error:
            refused[camera] = str(error)
    optics = {camera: one.optics for camera, one in found.items()}
    clean = [
        view
        for camera, lens in optics.items()
        for view in without_strays(collection.of(camera), collection.board, lens)
    ]
    views = [view for view in clean if view.mount]
    for camera in optics:
        if not any(view.camera == camera for view in views):
            refused[camera] = (
                f"camera {camera}: its optics are known, its place is not: all its views are of a board in a hand; "
                "lay the board into the cell (--board cell) or let a gripper hold it (--board gripper, or left, right)"
            )
    if not views:
        return Solution({}, refused, [], {}, collection.board)
    views, moved = _without_repetition(views, mounts)
    fit = _fit(robot, collection.board, views, optics, mounts)
    refused |= {camera: f"camera {camera}: {reason}" for camera, reason in fit.refused.items()}
    if not fit.bundle.views:
        return Solution({}, refused, [], {}, collection.board)
    notes = [f"camera {camera}: {one.note}" for camera, one in found.items() if one.note]
    _doubt(fit, optics, moved)
    notes += _warnings(fit)
    by_hand = [view for view in clean if not view.mount and view.camera in fit.bundle.cameras]
    bundle, known = _refined(fit, by_hand, found)
    cameras = {}
    for name in fit.bundle.names[0]:
        cameras[name] = _camera(name, bundle, known, fit, found[name])
        problem = _unknown(cameras[name], known.lens(name))
        if problem:
            refused[name] = f"camera {name}: {problem}"
            del cameras[name]
    boards = {view.placement: (view.mount, bundle.boards[view.placement]) for view in bundle.views if view.mount}
    return Solution(cameras, refused, notes, boards, collection.board)


def _without_repetition(views: Sequence[View], mounts: Mapping[str, str]) -> tuple[list[View], str]:
    """One view of a camera that stands for each place of a board that stands: the others are the same picture, and its
    small errors, which a detector makes with every picture of a kind, would count as often. And what speaks against
    that both stood; empty when nothing does."""
    kept: list[View] = []
    still: dict[tuple[str, str], list[View]] = {}
    moved = ""
    for view in views:
        if view.mount == mounts[view.camera]:
            still.setdefault((view.camera, view.placement), []).append(view)
        else:
            kept.append(view)
    for (camera, placement), same in still.items():
        places = different(same)
        kept += places
        if len(places) > 1:
            moved = (
                f"{placement}: camera {camera} stands, and sees the board at several places ({places[0].file}, "
                f"{places[1].file}): it was moved, or the camera was; take these pictures again"
            )
    return kept, moved


def _fit(
    robot: Embodiment, board: Board, views: Sequence[View], optics: Mapping[str, Optics], mounts: Mapping[str, str]
) -> _Fit:
    """Begin and solve, then once more without the views that do not fit the others."""
    start = begin(robot, board, views, optics, mounts)
    kept = [view for view in views if view.camera in start.cameras]
    bundle = Bundle(robot, board, kept, mounts, optics, start.cameras, start.boards)
    if not kept:
        return _Fit(bundle, start.refused, {})
    bundle, _ = bundle.solved({CAMERAS, BOARDS})
    degrees, pixels = bundle.degrees_by_view(), bundle.rms_by_view()
    left: dict[str, float] = {}
    for camera in bundle.names[0]:
        rows = [i for i, view in enumerate(kept) if view.camera == camera]
        bad = [i for i in rows if degrees[i] > max(_OUTLIER_DEG, _OUTLIER * float(np.median(degrees[rows])))]
        if len(bad) <= _MOST_LEFT_OUT * len(rows):
            left |= {kept[i].file: float(pixels[i]) for i in bad}
    good = [view for view in kept if view.file not in left]
    if left and {view.placement for view in good} == {view.placement for view in kept}:
        bundle, _ = replace(bundle, views=good).solved({CAMERAS, BOARDS})
    else:
        left = {}
    return _Fit(bundle, start.refused, left)


def _refined(fit: _Fit, by_hand: Sequence[View], found: Mapping[str, OpticsFound]) -> tuple[Bundle, Uncertainty]:
    """All at once: poses, lenses, and how far the joints were from their readings at each moment.

    The views of a board in a hand help the lenses; the arm's motion helps them, too. What the corners of one view have
    in common with its joints' error does not count as many observations.
    """
    bundle = fit.bundle
    single = [replace(view, placement=view.file) for view in by_hand]
    held = dict(zip((view.file for view in by_hand), seen_poses(by_hand, bundle.board, bundle.lenses), strict=True))
    # The readings' error is about what the plain fit misses by.
    stray = float(np.clip(np.radians(fit.degrees), *_STRAY_RAD))
    noise = {name: 0.3 if one.own else max(_NOISE, one.rms / np.sqrt(2.0)) for name, one in found.items()}
    whole = replace(bundle, views=[*bundle.views, *single], boards={**bundle.boards, **held})
    return whole.solved(
        {CAMERAS, BOARDS, LENSES, JOINTS},
        pixels=noise,
        priors={JOINTS: stray},
        held_lenses=[name for name, one in found.items() if one.own],
    )


def _unknown(one: CameraFound, lens_px: float) -> str:
    """Why a camera that came out is not known well enough; empty when it is."""
    focal = one.calibration.k[0, 0]
    if lens_px > LENS_KNOWN * focal:
        return (
            f"its focal length or its centre is known to {100 * lens_px / focal:.1f} % only (expected "
            f"{100 * LENS_KNOWN:g} %): hold the board in a hand in front of it, tilted to all sides, near and far, "
            f"into every corner of the picture (--board {HAND})"
        )
    if one.place_mm > KNOWN_MM or one.turn_deg > KNOWN_DEG:
        return (
            f"its place is known to +-{one.place_mm:.1f} mm and {one.turn_deg:.2f} degrees only (expected "
            f"{KNOWN_MM:g} mm, {KNOWN_DEG:g} degrees): take more pictures, nearer to the board, with the gripper "
            "turned to all sides"
        )
    return ""


def _doubt(fit: _Fit, optics: Mapping[str, Optics], moved: str) -> None:
    """Raise CalibrationError where something explains that the views do not fit together, or nothing does and they do
    not fit at all."""
    bundle, angle = fit.bundle, fit.degrees
    robot, limit = bundle.robot, EXPLAINED * angle
    if angle > GOOD_DEG:
        if len(robot.arms) == 2:
            swapped = [replace(view, joints=swapped_arms(robot, view.joints)) for view in bundle.views]
            if _angle(robot, bundle.board, swapped, optics, bundle.mounts) < limit:
                raise CalibrationError(
                    "the pictures fit when the joints of the left and the right arm are exchanged, and not as they "
                    "are: the arms are swapped; exchange their channels"
                )
        for pair in pairs_of_cameras(bundle):
            crossed = dict(zip(pair, pair[::-1], strict=True))
            lenses = {crossed.get(name, name): lens for name, lens in optics.items()}
            if _angle(robot, bundle.board, exchanged(bundle.views, pair), lenses, bundle.mounts) < limit:
                raise CalibrationError(
                    f"the pictures fit when the cameras {pair[0]} and {pair[1]} are exchanged, and not as they are: "
                    "their sources are swapped"
                )
    if moved:
        raise CalibrationError(moved)
    free = loose_fit(bundle, zeros=False)
    off = abs(free.scale - 1.0)
    if off > _SCALE_WRONG and off > 3.0 * free.scale_deviation and free.rms < 0.8 * bundle.rms():
        raise CalibrationError(
            f"by the motion of the arm a square of the board has {free.scale * bundle.board.square_mm:.1f} mm, and "
            f"{bundle.board.square_mm:g} was said: measure a row of squares, and say --square-mm and --marker-mm"
        )
    if angle > GOOD_DEG:
        loose = loose_fit(bundle, zeros=True)
        if loose.rms < EXPLAINED * bundle.rms() and np.max(np.abs(loose.offsets_deg)) > 1.0:
            worst = np.argsort(-np.abs(loose.offsets_deg))[:3]
            which = ", ".join(
                f"{robot.joint_names[j]} {loose.offsets_deg[j]:+.1f}" for j in worst if abs(loose.offsets_deg[j]) > 0.5
            )
            raise CalibrationError(
                f"the joint readings do not match the pictures ({angle:.2f} degrees): they would with other zeros of "
                f"the joints, about {which} degrees; calibrate the arm anew, then take the pictures again"
            )
    if angle > MOST_DEG:
        worst_views = np.argsort(-bundle.degrees_by_view())[:3]
        named = ", ".join(f"{bundle.views[i].file} {bundle.rms_by_view()[i]:.0f} px" for i in worst_views)
        raise CalibrationError(
            f"arm and pictures do not fit together ({bundle.rms():.1f} px RMS, {angle:.2f} degrees; expected below "
            f"{MOST_DEG:g}; worst: {named}): was the board fixed, did arm and board stand still, are the joints those "
            "of this arm, is every camera on the link that --mounts says?"
        )


def _angle(
    robot: Embodiment, board: Board, views: Sequence[View], optics: Mapping[str, Optics], mounts: Mapping[str, str]
) -> float:
    fit = _fit(robot, board, views, optics, mounts)
    return fit.degrees if fit.bundle.views and not fit.refused else float("inf")


def _warnings(fit: _Fit) -> list[str]:
    out = []
    bundle = fit.bundle
    if fit.degrees > GOOD_DEG:
        out.append(
            f"arm and pictures fit to {fit.degrees:.2f} degrees only (good is below {GOOD_DEG:g}): backlash, or "
            "joints whose zeros are a little off; the cameras are as exact as the arm"
        )
    free = loose_fit(bundle, zeros=False)
    off = abs(free.scale - 1.0)
    if off > _SCALE_OFF and off > 3.0 * free.scale_deviation and free.rms < 0.95 * bundle.rms():
        out.append(
            f"by the motion of the arm a square has {free.scale * bundle.board.square_mm:.2f} mm, and "
            f"{bundle.board.square_mm:g} was said: measure a row of squares"
        )
    out += [f"{file} does not fit the others ({px:.0f} px) and was left out" for file, px in fit.left_out.items()]
    return out


def _camera(name: str, bundle: Bundle, known: Uncertainty, fit: _Fit, optics: OpticsFound) -> CameraFound:
    rows = [i for i, view in enumerate(bundle.views) if view.camera == name and view.mount]
    by_view, counts = bundle.rms_by_view()[rows], bundle.counts[rows]
    place, turn = known.pose(name)
    lens = bundle.lenses[name]
    size = bundle.views[rows[0]].size
    return CameraFound(
        CameraCalibration(*size, lens.k, bundle.mounts[name], bundle.cameras[name], lens.d),
        optics,
        float(np.sqrt(np.average(by_view**2, weights=counts))),
        {bundle.views[i].file: float(px) for i, px in zip(rows, by_view, strict=True)},
        {file: px for file, px in fit.left_out.items() if file.endswith(f"_{name}.png")},
        1e3 * place,
        float(np.degrees(turn)),
    )
