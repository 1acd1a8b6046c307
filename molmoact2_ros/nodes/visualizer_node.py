"""Shows what the model believes and what it is about to do: path, overlays, depth. Nothing waits for it.

Images are drawn by a timer from the newest of everything, and only those that somebody looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from molmoact2_ros.cameras.calibrating.result import standing_board
from molmoact2_ros.cameras.calibrating.watch import BoardWatch
from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.cell_cameras import CELL, calibrations_of
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.camera_info import depth_info
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS, MergedJoints
from molmoact2_ros.nodes.ros.messages import (
    chunk_from_trajectory,
    grid_from_image,
    image_message,
    nanoseconds,
    rgb_from_image,
)
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.nodes.ros.visual_messages import cloud_of, markers_of, path_message
from molmoact2_ros.rendering import depth as depths
from molmoact2_ros.rendering.overlay import ImagePath, Legend, overlay
from molmoact2_ros.rendering.projection import (
    TipPath,
    camera_pose,
    points_of_depth,
    project,
    tip_paths,
)

Array = NDArray[np.float64]
JOINTS_S = 1.0
"""A publisher of joint states that is silent for longer makes room for another."""


@dataclass(frozen=True)
class Shown:
    """The chunk that is drawn: its paths, the times of its rows after `stamp_ns`, the time from observation to here."""

    stamp_ns: int
    times_s: Array
    paths: tuple[TipPath, ...]
    latency_s: float

    def row_at(self, now_ns: int) -> float | None:
        """Row whose time is `now_ns`, or None when the horizon is over."""
        elapsed = (now_ns - self.stamp_ns) * 1e-9
        if elapsed > self.times_s[-1]:
            return None
        return float(np.interp(elapsed, self.times_s, np.arange(len(self.times_s))))


class VisualizerNode(MolmoNode):
    """Invariant: bad input (a garbage chunk, unknown codes) is reported once and leaves that part out."""

    PARAMETERS = (
        *JOINT_STATE_PARAMETERS,
        Parameter("cameras", ["front", "wrist"], "Cameras to draw into; the first is the one of the depth codes."),
        Parameter("checkpoint", "", "Where the depth decoder is: a checkpoint's directory; empty: no depth images."),
        Parameter(
            "calibration_file", "", "Where the cameras are (YAML); cell: as in the simulated one; empty: unknown."
        ),
        Parameter("max_rate_hz", 15.0, "Overlays a second for each camera, Hz.", 1.0, 60.0),
        Parameter("overlay_scale", 2, "Size of an overlay over the camera's image.", 1, 4),
        Parameter(
            "board_check_s",
            10.0,
            "How often cameras are held against the file's board, if any, s; 0: off.",
            0.0,
            3600.0,
        ),
        Parameter("base_frame", "base_link", "Frame of the path, the markers and the points."),
    )

    def __init__(self) -> None:
        super().__init__("visualizer")
        self._robot = embodiment("so101")
        self._calibrations: dict[str, CameraCalibration] = {}
        self._decoder: depths.DepthDecoder | None = None
        self._watch: BoardWatch | None = None
        self._reported: dict[str, str] = {}
        self._forget()

    def _forget(self) -> None:
        self._images: dict[str, Image] = {}
        self._drawn: dict[str, int] = {}
        self._joints: deque[tuple[int, Array]] = deque(maxlen=100)
        self._chunk: Shown | None = None
        self._updated: NDArray[np.bool_] | None = None
        self._state = ""
        self._task = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._robot = embodiment(self.param("robot"))
        self._cameras = list(self.param("cameras"))
        self._calibrations = self._load_calibrations()
        self._decoder = self._load_decoder()
        self._watch = self._load_watch()
        self._markers = self.output(MarkerArray, "visualization/markers", NEWEST)
        self._path = self.output(Path, "visualization/path", NEWEST)
        self._overlays: dict[str, Publisher] = {
            camera: self.output(Image, f"visualization/overlay/{camera}", SENSOR) for camera in self._cameras
        }
        self._depth = self.output(Image, "policy/depth/image", SENSOR)
        self._depth_info = self.output(CameraInfo, "policy/depth/camera_info", SENSOR)
        self._colour = self.output(Image, "visualization/depth_colour", SENSOR)
        self._points = self.output(PointCloud2, "visualization/depth_points", SENSOR)
        for camera in self._cameras:
            self.listen(Image, f"cameras/{camera}/image_raw", partial(self._on_image, camera), SENSOR)
        MergedJoints(self, self._robot, JOINTS_S, self._on_joints)
        self.listen(JointTrajectory, "policy/action_chunk", self._guarded("action chunk", self._on_chunk), NEWEST)
        self.listen(Image, "policy/depth_codes", self._guarded("depth codes", self._on_codes), NEWEST)
        self.listen(Image, "policy/depth_updated", self._guarded("updated cells", self._on_updated), NEWEST)
        self.listen(DiagnosticStatus, "executor/state", self._on_state, LATCHED)
        self.hear(String, "task", self._on_task)

    def start(self) -> None:
        self.every(1.0 / self.param("max_rate_hz"), self._draw)
        if self._watch is not None and self.param("board_check_s") > 0.0:
            self.every(self.param("board_check_s"), self._check_cameras)

    def teardown(self) -> None:
        self._forget()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._reported:
            return DiagnosticStatus.WARN, "; ".join(self._reported.values()), {}
        return super().diagnose()

    def _load_calibrations(self) -> dict[str, CameraCalibration]:
        found = calibrations_of(self.param("calibration_file"), self._robot.name, self._cameras)
        for camera in set(self._cameras) - set(found):
            self.get_logger().warning(f"camera {camera!r} has no calibration; its overlay has no path")
        return found

    def _load_decoder(self) -> depths.DepthDecoder | None:
        if not self.param("checkpoint"):
            return None
        try:
            return depths.load_depth_decoder(self.param("checkpoint"))
        except FileNotFoundError as error:
            self.get_logger().warning(str(error))
            return None

    def _load_watch(self) -> BoardWatch | None:
        file = self.param("calibration_file")
        standing = standing_board(file) if file not in ("", CELL) else None
        return None if standing is None else BoardWatch(self._robot, self._calibrations, standing)

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _guarded(self, what: str, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """`handle`, with a message that it refuses reported on the edge."""

        def guarded(message: Any) -> None:
            try:
                handle(message)
                self._reported.pop(what, None)
            except ValueError as error:
                if what not in self._reported:
                    self.get_logger().warning(f"{what} not shown: {error}")
                self._reported[what] = f"{what}: {error}"

        return guarded

    def _on_image(self, camera: str, message: Image) -> None:
        self._images[camera] = message

    def _on_joints(self, joints: Array, stamp_ns: int) -> None:
        self._joints.append((stamp_ns, joints))

    def _on_state(self, message: DiagnosticStatus) -> None:
        self._state = message.message

    def _on_task(self, heard: Heard) -> None:
        self._task = heard.message.data
        self._chunk = None

    def _on_updated(self, message: Image) -> None:
        self._updated = grid_from_image(message) > 0

    def _on_chunk(self, message: JointTrajectory) -> None:
        self._chunk = None
        rows, times = chunk_from_trajectory(message)
        chunk = np.array([self._robot.reorder(message.joint_names, row) for row in rows])
        stamp_ns = nanoseconds(message.header.stamp)
        shown = Shown(stamp_ns, times, tip_paths(self._robot, chunk), (self.now_ns() - stamp_ns) * 1e-9)
        self._chunk = shown
        header = Header(stamp=message.header.stamp, frame_id=self.param("base_frame"))
        if self._path.get_subscription_count():
            self._path.publish(path_message(shown.paths[0], header))
        if self._markers.get_subscription_count():
            self._markers.publish(markers_of(shown.paths, header, float(times[-1]) + 0.5))

    def _on_codes(self, message: Image) -> None:
        outputs = (self._depth, self._depth_info, self._colour, self._points)
        if self._decoder is None or not any(output.get_subscription_count() for output in outputs):
            return
        picture = self._decoder.decode(grid_from_image(message))
        camera = self._cameras[0]
        calibration = self._calibrations.get(camera)
        header = Header(stamp=message.header.stamp, frame_id=f"{camera}_optical_frame")
        self._depth.publish(image_message(picture, "32FC1", header))
        height, width = picture.shape
        if calibration is not None:
            self._depth_info.publish(depth_info(calibration, width, height, header))
        if self._colour.get_subscription_count():
            colours = depths.colourize(picture, self._decoder.near_is_small, self._decoder.limits)
            if calibration is not None:
                colours = depths.enlarged(colours, calibration.width, calibration.height)
            self._colour.publish(image_message(colours, "rgb8", header))
        if calibration is not None and self._decoder.metric and self._points.get_subscription_count():
            self._publish_points(picture, calibration, message)

    def _publish_points(self, picture: NDArray[np.float32], calibration: CameraCalibration, message: Image) -> None:
        pose = self._pose_of(calibration, nanoseconds(message.header.stamp))
        if pose is None:
            return
        points = points_of_depth(picture, calibration) @ pose[:3, :3].T + pose[:3, 3]
        image = self._images.get(self._cameras[0])
        rgb = None
        if image is not None:
            size = (picture.shape[1], picture.shape[0])
            rgb = np.asarray(cv2.resize(rgb_from_image(image), size, interpolation=cv2.INTER_AREA), np.uint8)
            rgb = rgb.reshape(-1, 3)
        header = Header(stamp=message.header.stamp, frame_id=self.param("base_frame"))
        self._points.publish(cloud_of(points.astype(np.float32), rgb, header))

    # -- images ---------------------------------------------------------------------------------------------------

    def _pose_of(self, calibration: CameraCalibration, stamp_ns: int) -> Array | None:
        """Pose of a camera when an image was taken, or None while the joints are unknown."""
        if not self._joints and calibration.mount != self._robot.base_link:
            return None
        joints = min(self._joints, key=lambda sample: abs(sample[0] - stamp_ns))[1] if self._joints else None
        return camera_pose(self._robot, calibration, joints)

    def _check_cameras(self) -> None:
        """Warn of a camera that does not see the board that stays in the cell where it should."""
        joints = np.array([values for _, values in self._joints]).reshape(-1, self._robot.dof)[-30:]
        for camera, image in self._images.items():
            key = f"calibration of {camera}"
            assert self._watch is not None
            said = self._watch.look(camera, rgb_from_image(image), joints)
            if said and key not in self._reported:
                self.get_logger().warning(said)
            if said:
                self._reported[key] = said
            elif said == "":
                self._reported.pop(key, None)

    def _draw(self) -> None:
        for camera, output in self._overlays.items():
            image = self._images.get(camera)
            if image is None or not output.get_subscription_count():
                continue
            stamp_ns = nanoseconds(image.header.stamp)
            if self._drawn.get(camera) == stamp_ns:
                continue
            self._drawn[camera] = stamp_ns
            self._guarded(f"camera {camera}", partial(self._publish_overlay, camera))(image)

    def _publish_overlay(self, camera: str, image: Image) -> None:
        stamp_ns = nanoseconds(image.header.stamp)
        rgb = rgb_from_image(image)
        chunk, calibration = self._chunk, self._calibrations.get(camera)
        row = None if chunk is None else chunk.row_at(stamp_ns)
        paths: tuple[ImagePath, ...] = ()
        if chunk is not None and row is not None and calibration is not None:
            pose = self._pose_of(calibration, stamp_ns)
            if pose is not None:
                size = np.array([rgb.shape[1] / calibration.width, rgb.shape[0] / calibration.height])
                paths = tuple(
                    ImagePath(project(path.points, calibration, pose)[0] * size, path.openness) for path in chunk.paths
                )
        legend = Legend(
            task=self._task,
            state=self._state,
            chunk_age_s=None if row is None or chunk is None else (stamp_ns - chunk.stamp_ns) * 1e-9,
            latency_s=None if chunk is None else chunk.latency_s,
            horizon_s=None if chunk is None else float(chunk.times_s[-1]),
        )
        cells = self._updated if camera == self._cameras[0] and row is not None else None
        picture = overlay(rgb, paths, row or 0.0, cells, legend, self.param("overlay_scale"))
        self._overlays[camera].publish(image_message(picture, "rgb8", image.header))


main = main_of(VisualizerNode)

if __name__ == "__main__":
    main()
