"""Takes the pictures of a calibration board, with the joints, whenever arm and board stand still at a new view.

Says what it does, and what it waits for, as JSON lines on standard output: `molmoact2 calibrate` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image

from molmoact2_ros.cameras.calibrating.board import Board, Detector
from molmoact2_ros.cameras.calibrating.collection import CELL, HAND, CollectionWriter, Optics, places
from molmoact2_ros.cameras.calibrating.optics import parts_covered
from molmoact2_ros.cameras.calibrating.taking import Glance, Taker
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.camera_info import intrinsics_of
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS, MergedJoints
from molmoact2_ros.nodes.ros.messages import nanoseconds, rgb_from_image
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import SENSOR

LOOK_S = 0.25
SILENT_S = 2.0
JOINTS_S = 0.5
"""Oldest reading of a joint that counts."""


class CalibrationNode(MolmoNode):
    """Invariant: moves nothing; a moment is either whole in the folder or not there at all."""

    PARAMETERS = (
        *JOINT_STATE_PARAMETERS,
        Parameter("cameras", ["front", "wrist"], "Cameras to take pictures of."),
        Parameter("mounts", ["base_link", "gripper_link"], "The link that each of them is fixed to."),
        Parameter("place", CELL, "Where the board is: cell, hand, gripper; left or right gripper of two arms."),
        Parameter("folder", "", "Where the pictures go; each run makes a folder in it."),
        Parameter("squares", "7x5", "Columns and rows of the board."),
        Parameter("square_mm", 30.0, "Side of a square as measured, mm.", 1.0, 500.0),
        Parameter("marker_mm", 22.0, "Side of a marker as measured, mm.", 1.0, 500.0),
        Parameter("count", 20, "The node ends after so many moments.", 1, 500),
    )

    def __init__(self) -> None:
        super().__init__("calibration")
        self._reset()

    def _reset(self) -> None:
        self._images: dict[str, Image] = {}
        self._infos: dict[str, CameraInfo] = {}
        self._seen_stamps: dict[str, int] = {}
        self._told = ""
        self._complaint = ""
        self._idle = 0
        self._pixels: dict[str, list[NDArray[np.float64]]] = {}

    def setup(self) -> None:
        self._reset()
        self._robot = embodiment(self.param("robot"))
        cameras, mounts, place = list(self.param("cameras")), list(self.param("mounts")), self.param("place")
        if len(cameras) != len(mounts) or not cameras:
            raise ValueError(f"parameters cameras {cameras} and mounts {mounts} must have one entry for each camera")
        if not self.param("folder"):
            raise ValueError("parameter folder is empty; say where the pictures go")
        board = Board.of(self.param("squares"), self.param("square_mm"), self.param("marker_mm"))
        self._writer = CollectionWriter(Path(self.param("folder")).expanduser(), self._robot, board, place)
        fixed_to = places(self._robot)[place]
        moving = frozenset(name for name, mount in zip(cameras, mounts, strict=True) if mount != fixed_to)
        if place != HAND and not moving:
            raise ValueError(
                f"no camera of {cameras} moves against a board that is fixed to {fixed_to}: let a gripper hold it, or "
                "a hand"
            )
        self._taker = Taker(self._robot, moving, place == HAND)
        self._detector = Detector(board)
        for camera in cameras:
            self.listen(Image, f"cameras/{camera}/image_raw", partial(self._images.__setitem__, camera), SENSOR)
            self.listen(CameraInfo, f"cameras/{camera}/camera_info", partial(self._infos.__setitem__, camera), SENSOR)
        MergedJoints(self, self._robot, JOINTS_S, self._on_joints, self._on_complaint)
        self._cameras = cameras

    def start(self) -> None:
        self.every(LOOK_S, self._look, steady=True)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        taken = self._writer.count if self.active else 0
        return DiagnosticStatus.OK, self._told or "waiting for pictures", {"taken": taken}

    def _on_joints(self, joints: NDArray[np.float64], stamp_ns: int) -> None:
        self._taker.heard(stamp_ns, joints)

    def _on_complaint(self, reason: str) -> None:
        self._complaint = reason

    def _look(self) -> None:
        fresh = {
            camera: image
            for camera, image in self._images.items()
            if nanoseconds(image.header.stamp) != self._seen_stamps.get(camera)
        }
        self._idle = 0 if fresh else self._idle + 1
        if not fresh:
            if self._idle * LOOK_S < SILENT_S:
                return
            silent = [camera for camera in self._cameras if camera not in self._images]
            self._tell("waiting", f"no pictures of {', '.join(silent)}" if silent else "no new pictures")
            return
        pictures, glances = {}, {}
        for camera, image in fresh.items():
            stamp_ns = nanoseconds(image.header.stamp)
            self._seen_stamps[camera] = stamp_ns
            pictures[camera] = rgb_from_image(image)
            glances[camera] = Glance(stamp_ns, int(image.width), self._detector.find(pictures[camera]))
        taken, joints, reason = self._taker.look(glances)
        if not taken:
            self._tell("waiting", "; ".join(filter(None, (reason, self._complaint))))
            return
        # What a camera sees without a board says nothing, and costs a look when the folder is read.
        optics = {camera: own for camera in taken if (own := self._optics(camera, pictures[camera])) is not None}
        stamps = {camera: glance.stamp_ns for camera, glance in taken.items()}
        self._writer.add({camera: pictures[camera] for camera in taken}, stamps, joints, optics)
        self._taker.took(taken, joints)
        covered = {}
        for camera, glance in taken.items():
            self._pixels.setdefault(camera, []).append(glance.seen.pixels)
            size = pictures[camera].shape[1], pictures[camera].shape[0]
            covered[camera] = round(float(parts_covered(self._pixels[camera], size).mean()), 2)
        corners = {camera: len(glance.seen.ids) for camera, glance in taken.items()}
        self._tell("taken", f"picture {self._writer.count}", corners=corners, covered=covered)
        if self._writer.count >= self.param("count"):
            self.finished = 0

    def _optics(self, camera: str, picture: NDArray[np.uint8]) -> Optics | None:
        """What the camera says of itself, where that is a lens that this package knows."""
        info = self._infos.get(camera)
        if info is None:
            return None
        try:
            own = intrinsics_of(info, picture.shape[1], picture.shape[0], rectified=False)
        except ValueError as error:
            self.get_logger().warning(f"camera_info of {camera} is not used: {error}", once=True)
            return None
        if own is None or (any(own.d) and (own.model != "plumb_bob" or len(own.d) != 5)):
            return None
        d = np.array(own.d) if len(own.d) == 5 else np.zeros(5)
        return Optics(np.reshape(own.k, (3, 3)), d)

    def _tell(self, kind: str, message: str, **more: object) -> None:
        """A line for whoever started this node, when it says something new."""
        if kind == "waiting" and message == self._told:
            return
        self._told = message
        print(json.dumps({"type": kind, "message": message, "count": self._writer.count, **more}), flush=True)


main = main_of(CalibrationNode)

if __name__ == "__main__":
    main()
