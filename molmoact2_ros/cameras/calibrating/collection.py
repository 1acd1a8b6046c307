"""The folder of pictures that a calibration is made of: written while they are taken, read to solve.

One JSON file a moment names its pictures (PNG), the joints, and what the board was fixed to. Everything that belongs
together lies together, so that a run that was broken off, or a picture that was thrown away, spoils nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import LEAST_CORNERS, Board, Detector, Seen, board_from
from molmoact2_ros.cameras.calibrating.layout import wrong_board
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

HAND, CELL, GRIPPER = "hand", "cell", "gripper"
"""Where the board is: held in a hand (which shows the optics only), lying still in the cell, held by a gripper."""


class CalibrationError(ValueError):
    """The pictures do not give a calibration that can be trusted; the message says what to do."""


@dataclass(frozen=True)
class Optics:
    """What a camera says of its own optics: `k` (3, 3) and `d` (5,) as `CameraCalibration` has them."""

    k: Array
    d: Array


@dataclass(frozen=True, eq=False)
class View:
    """One picture that shows the board.

    Attributes:
        file: the picture's path, for messages. camera: its name. size: width and height.
        moment: what pictures of one moment share. placement: what moments share between which the board was not put
            elsewhere. mount: the link that the board is fixed to meanwhile; empty for a hand.
        joints: (dof,), ROS order; NaN where nobody knew them, which a board in a hand does not need.
        seen: the board.
    """

    file: str
    camera: str
    size: tuple[int, int]
    moment: str
    placement: str
    mount: str
    joints: Array
    seen: Seen


@dataclass(frozen=True)
class Collection:
    """All that was taken: the views, the pictures without a board (camera -> how many), the cameras' own optics."""

    robot: str
    board: Board
    views: tuple[View, ...]
    blind: Mapping[str, int] = field(default_factory=dict)
    optics: Mapping[str, Optics] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that have taken pictures, with a board or without."""
        return tuple(dict.fromkeys([*(view.camera for view in self.views), *self.blind]))

    def of(self, camera: str) -> list[View]:
        """The views of one camera."""
        return [view for view in self.views if view.camera == camera]


def places(robot: Embodiment) -> dict[str, str]:
    """Where the board may be -> the link that it is fixed to. A robot with two arms has a gripper each: `left`,
    `right`, as its wrist links are called."""
    if len(robot.wrist_links) == 1:
        grippers = {GRIPPER: robot.wrist_links[0]}
    else:
        grippers = {link.partition("_")[0]: link for link in robot.wrist_links}
    return {CELL: robot.base_link, HAND: "", **grippers}


class CollectionWriter:
    """Adds moments to a folder. A moment is there as soon as `add` has returned, and whole."""

    def __init__(self, folder: Path, robot: Embodiment, board: Board, place: str) -> None:
        known = places(robot)
        if place not in known:
            raise ValueError(f"the board of {robot.name} can be at {', '.join(known)}; got {place!r}")
        folder.mkdir(parents=True, exist_ok=True)
        before = [path.name for path in folder.iterdir() if path.is_dir()]
        number = 1 + max((int(name[:2]) for name in before if name[:2].isdigit()), default=0)
        self.placement = f"{number:02d}_{place}"
        self.count = 0
        self._folder, self._robot, self._board, self._mount = folder, robot, board, known[place]

    def add(
        self,
        pictures: Mapping[str, Picture],
        stamps_ns: Mapping[str, int],
        joints: Array | None,
        optics: Mapping[str, Optics] | None = None,
    ) -> Path:
        """Write one moment and return its file.

        Args:
            pictures: by camera, (height, width, 3) RGB. stamps_ns: when they were taken. joints: (dof,), ROS order.
            optics: what the cameras say of themselves.

        Raises:
            OSError: it could not be written; nothing of it is there then.
        """
        import cv2

        folder = self._folder / self.placement
        folder.mkdir(exist_ok=True)
        number = self.count + 1
        entries: dict[str, Any] = {}
        for camera, picture in pictures.items():
            name = f"{number:03d}_{camera}.png"
            if not cv2.imwrite(str(folder / name), np.ascontiguousarray(picture[..., ::-1])):
                raise OSError(f"cannot write {folder / name}")
            entries[camera] = {"file": name, "stamp_ns": int(stamps_ns[camera])}
            own = (optics or {}).get(camera)
            if own is not None:
                entries[camera]["optics"] = {"k": np.ravel(own.k).tolist(), "d": np.ravel(own.d).tolist()}
        moment = {
            "robot": self._robot.name,
            "board": self._board.as_dict(),
            "fixed_to": self._mount,
            "joints": None if joints is None else dict(zip(self._robot.joint_names, map(float, joints), strict=True)),
            "pictures": entries,
        }
        path = folder / f"{number:03d}.json"
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(moment, indent=1))
        os.replace(draft, path)
        self.count = number
        return path


def read_collection(
    folder: Path, robot: Embodiment, board: Board | None = None, cameras: Sequence[str] = ()
) -> Collection:
    """Find the board in every picture of `folder`.

    Args:
        board: what it really is; None for what was told when the pictures were taken.
        cameras: only these; empty for all.

    Raises:
        CalibrationError: there are no pictures, they are of another robot, none shows the board, or they show another.
    """
    files = _files(folder)
    views: list[View] = []
    blind: dict[str, int] = {}
    optics: dict[str, Optics] = {}
    everything: list[Seen] = []
    detector: Detector | None = None
    for file in files:
        moment = _moment(file, robot)
        detector = detector or Detector(board or board_from(moment["board"]))
        joints = _joints(file, robot, moment)
        for camera, entry in moment["pictures"].items():
            if cameras and camera not in cameras:
                continue
            picture = _picture(file.parent / entry["file"])
            if "optics" in entry:
                own = entry["optics"]
                optics[camera] = Optics(np.reshape(own["k"], (3, 3)).astype(float), np.asarray(own["d"], dtype=float))
            seen = detector.find(picture)
            everything.append(seen)
            if len(seen.ids) < LEAST_CORNERS:
                blind[camera] = blind.get(camera, 0) + 1
                continue
            name = str((file.parent / entry["file"]).relative_to(folder))
            size = picture.shape[1], picture.shape[0]
            key = str(file.relative_to(folder))
            views.append(View(name, camera, size, key, file.parent.name, moment["fixed_to"], joints, seen))
    assert detector is not None
    told = wrong_board(detector.board, everything)
    if told:
        raise CalibrationError(told)
    if not everything:
        raise CalibrationError(f"no pictures of {', '.join(cameras)} in {folder}")
    if not views:
        raise CalibrationError(
            f"none of {len(everything)} pictures shows the board ({detector.board.said()}) with {LEAST_CORNERS} "
            "corners or more: look at them; is it in view, lit, sharp, and the board of molmoact2 calibrate board?"
        )
    return Collection(robot.name, detector.board, tuple(views), blind, optics)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*/[0-9]*.json"))
    if not files:
        raise CalibrationError(f"no pictures in {folder}: take some first (molmoact2 calibrate cameras --out {folder})")
    return files


def board_told(folder: Path) -> Board:
    """The board that was told when the pictures of `folder` were taken.

    Raises:
        CalibrationError: there are none, or the first one's file is damaged.
    """
    first = _files(folder)[0]
    try:
        return board_from(json.loads(first.read_text())["board"])
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{first} is damaged ({error!r}); remove it, the others can be used") from None


def _moment(file: Path, robot: Embodiment) -> dict[str, Any]:
    try:
        moment = json.loads(file.read_text())
        missing = {"robot", "board", "fixed_to", "joints", "pictures"} - set(moment)
    except (ValueError, TypeError) as error:
        raise CalibrationError(f"{file} is damaged ({error}); remove it, the other pictures can be used") from None
    if missing:
        raise CalibrationError(f"{file} lacks {', '.join(sorted(missing))}; remove it, the other pictures can be used")
    if moment["robot"] != robot.name:
        raise CalibrationError(f"{file} was taken with a {moment['robot']}, and --robot says {robot.name}")
    return moment


def _joints(file: Path, robot: Embodiment, moment: Mapping[str, Any]) -> Array:
    given = moment["joints"]
    if given is None:
        if moment["fixed_to"]:
            raise CalibrationError(f"{file} has no joints, and a board that is no hand's needs them; remove it")
        return np.full(robot.dof, np.nan)
    try:
        return robot.reorder(list(given), np.array(list(given.values()), dtype=np.float64))
    except ValueError as error:
        raise CalibrationError(f"{file}: {error}; remove it, the other pictures can be used") from None


def _picture(path: Path) -> Picture:
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise CalibrationError(f"{path} cannot be read; remove it from its .json file, or take the pictures again")
    return np.asarray(picture, dtype=np.uint8)
