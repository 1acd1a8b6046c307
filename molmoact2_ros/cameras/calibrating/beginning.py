"""Where the fit of poses begins: hand-eye calibration of every camera and board that move against each other, and from
there to those that stand still together. What the views cannot tell is refused here, with what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import Board
from molmoact2_ros.cameras.calibrating.bundle import Bundle, inverse
from molmoact2_ros.cameras.calibrating.collection import CELL, Optics, View
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

LEAST_POSES = 8
"""Moments of one camera with one board that moves against it; three would do on paper."""
LEAST_TURN_DEG = 8.0
"""How far (standard deviation) the board must have been turned against the camera about two axes at least: without the
second one the camera may be anywhere along the first."""
_LEAST_OF_ONE = 5
"""Moments of one placement to begin with, when others add to them."""
_METHODS = ("PARK", "TSAI", "HORAUD", "DANIILIDIS", "ANDREFF")


@dataclass
class Beginning:
    """Poses to begin with, by camera and by placement, and why a camera has none."""

    cameras: dict[str, Array] = field(default_factory=dict)
    boards: dict[str, Array] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def seen_poses(views: Sequence[View], board: Board, optics: Mapping[str, Optics]) -> Array:
    """Pose (views, 4, 4) of the board in the camera, of each view by itself."""
    import cv2
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    out = np.empty((len(views), 4, 4))
    for i, view in enumerate(views):
        lens = optics[view.camera]
        there, pixels = board.corners[view.seen.ids], view.seen.pixels
        # Two poses of a flat board look nearly the same: the one that fits better.
        _, turns, places, _ = cv2.solvePnPGeneric(there, pixels[:, None], lens.k, lens.d, flags=cv2.SOLVEPNP_IPPE)
        turn, place = cv2.solvePnPRefineLM(there, pixels, lens.k, lens.d, turns[0], places[0])
        out[i] = pose_of(Rotation.from_rotvec(turn.ravel()), place.ravel())
    return out


def turns_deg(poses: Array) -> Array:
    """How far `poses` (n, 4, 4) are turned against each other about their three main axes: standard deviations (3,),
    degrees, the largest first."""
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_matrix(poses[:, :3, :3])
    vectors = (turns.mean().inv() * turns).as_rotvec()
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    out = np.zeros(3)
    out[: len(values)] = values
    return np.degrees(out / np.sqrt(len(poses)))


def begin(
    robot: Embodiment,
    board: Board,
    views: Sequence[View],
    optics: Mapping[str, Optics],
    mounts: Mapping[str, str],
) -> Beginning:
    """Where the cameras of `views` and their boards are, roughly."""
    out = Beginning()
    between = Bundle(robot, board, views, mounts, optics).between()
    seen = seen_poses(views, board, optics)
    problems: dict[str, str] = {}
    pairs: dict[tuple[str, str], list[int]] = {}
    for i, view in enumerate(views):
        pairs.setdefault((view.camera, view.placement), []).append(i)
    best_first = sorted(pairs.items(), key=lambda item: -len(item[1]))
    for (camera, placement), rows in best_first:
        if mounts[camera] == views[rows[0]].mount or camera in out.cameras or placement in out.boards:
            continue
        all_rows = [i for (name, _), some in pairs.items() if name == camera for i in some]
        total = sum(mounts[camera] != views[i].mount for i in all_rows)
        problem = _too_little(between[rows], total)
        if problem:
            problems.setdefault(camera, problem)
            continue
        out.cameras[camera], out.boards[placement] = _hand_eye(between[rows], seen[rows])
    _spread(out, best_first, between, seen)
    for camera in dict.fromkeys(view.camera for view in views):
        if camera not in out.cameras:
            out.refused[camera] = problems.get(camera) or _standing(robot, camera, mounts[camera])
            seen_by = {name for name, placement in pairs if (camera, placement) in pairs and name in problems}
            if camera not in problems and seen_by:
                other = sorted(seen_by)[0]
                out.refused[camera] = f"its place comes from that of {other}, of which: {problems[other]}"
    return out


def _spread(out: Beginning, pairs: Sequence[tuple[tuple[str, str], list[int]]], between: Array, seen: Array) -> None:
    """From a camera whose place is known to the boards that it has seen, from a board to the cameras that saw it."""
    for _ in range(2 * len(pairs)):
        for (camera, placement), rows in pairs:
            i = rows[0]
            if camera in out.cameras and placement not in out.boards:
                out.boards[placement] = inverse(between[i]) @ out.cameras[camera] @ seen[i]
            elif placement in out.boards and camera not in out.cameras:
                out.cameras[camera] = between[i] @ out.boards[placement] @ inverse(seen[i])


def _too_little(between: Array, total: int) -> str:
    """What is wrong with the views of one camera and one placement, as a beginning; `total`: with all placements."""
    if total < LEAST_POSES or len(between) < _LEAST_OF_ONE:
        return (
            f"the board was seen in {total} poses of the arm; it takes {LEAST_POSES}, and 15 are better: move "
            "the arm on, and turn the gripper each time"
        )
    first, second, _ = turns_deg(between)
    if first < LEAST_TURN_DEG:
        return (
            f"the {len(between)} poses of the arm are all alike (turned by {first:.1f} degrees about their mean, "
            f"expected {LEAST_TURN_DEG:g} or more): turn the gripper by 20 degrees and more between pictures"
        )
    if second < LEAST_TURN_DEG:
        return (
            f"the arm was turned about one axis only ({first:.0f} degrees, and {second:.1f} about any other, expected "
            f"{LEAST_TURN_DEG:g} or more): the camera could be anywhere along that axis; roll and pitch the wrist, too"
        )
    return ""


def _standing(robot: Embodiment, camera: str, mount: str) -> str:
    if mount == robot.base_link:
        return (
            "it stands, and the board that it saw did not move with the arm: let a gripper hold the board "
            f"(--board gripper, or left, right), or lay it (--board {CELL}) where {camera} and a wrist camera see it"
        )
    return (
        "the board that it saw moved with it: lay the board into the cell "
        f"(--board {CELL}), where the wrist camera sees it while the arm moves"
    )


def _hand_eye(between: Array, seen: Array) -> tuple[Array, Array]:
    """Pose of the camera in its link and of the board in its own: the best of the closed solutions."""
    import cv2

    solve: Any = cv2.calibrateHandEye
    links = inverse(between)  # the camera's link in the board's
    given: list[Any] = [list(part) for p in (links, seen) for part in (p[:, :3, :3], p[:, :3, 3])]
    best: tuple[float, Array, Array] | None = None
    for method in _METHODS:
        try:
            turn, place = solve(*given, method=getattr(cv2, f"CALIB_HAND_EYE_{method}"))
        except cv2.error:  # some methods need more than others
            continue
        camera = np.eye(4)
        camera[:3, :3], camera[:3, 3] = turn, np.ravel(place)
        # Some give mirrors where views clash.
        if not np.all(np.isfinite(camera)) or np.linalg.det(camera[:3, :3]) < 0.5:
            continue
        boards = links @ camera @ seen
        board = _mean(boards)
        error = float(np.median(np.linalg.norm(boards[:, :3, 3] - board[:3, 3], axis=1)))
        if best is None or error < best[0]:
            best = error, camera, board
    if best is None:  # the fit begins where the first view has it, and what comes of it is judged there
        best = 0.0, np.eye(4), links[0] @ seen[0]
    return best[1], best[2]


def _mean(poses: Array) -> Array:
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    return pose_of(Rotation.from_matrix(poses[:, :3, :3]).mean(), np.median(poses[:, :3, 3], axis=0))
