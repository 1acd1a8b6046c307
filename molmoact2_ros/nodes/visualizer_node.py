"""Shows what the model believes and what it is about to do: path, overlays, depth. Nothing waits for it.

Images are drawn by a timer from the newest of everything, and only those that somebody looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.cameras.cell_cameras import calibrations_of
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.board_checks import BoardChecks
from molmoact2_ros.nodes.ros.complaints import Complaints
from molmoact2_ros.nodes.ros.depth_views import DepthViews
from molmoact2_ros.nodes.ros.joint_topics import MergedJoints
from molmoact2_ros.nodes.ros.latched_output import LatchedOutput
from molmoact2_ros.nodes.ros.messages import (
    chunk_from_trajectory,
    grid_from_image,
    image_message,
    nanoseconds,
    rgb_from_image,
)
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.scene_markers import RATE_HZ, SceneMarkers
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.nodes.ros.visualizer_parameters import PARAMETERS
from molmoact2_ros.rendering.forecast import Forecast
from molmoact2_ros.rendering.notices import legend
from molmoact2_ros.rendering.overlay import ImageHistory, ImagePath, Legend, overlay
from molmoact2_ros.rendering.projection import camera_pose, project, tip_paths

Array = NDArray[np.float64]
JOINTS_S = 1.0
"""A publisher of joint states that is silent for longer makes room for another."""
RENEW_S = 0.5


class VisualizerNode(MolmoNode):
    """Invariant: bad input (a garbage chunk, unknown codes) is reported once and leaves that part out."""

    PARAMETERS = PARAMETERS

    def __init__(self) -> None:
        super().__init__("visualizer")
        self._robot = embodiment("so101")
        self._calibrations: dict[str, CameraCalibration] = {}
        self._complaints = Complaints(self)
        self._forget()

    def _forget(self) -> None:
        self._images: dict[str, Image] = {}
        self._drawn: dict[str, int] = {}
        self._joints: deque[tuple[int, Array]] = deque(maxlen=100)
        self._updated: NDArray[np.bool_] | None = None
        self._task = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._robot = robot = embodiment(self.param("robot"))
        self._cameras = list(self.param("cameras"))
        self._calibrations = self._load_calibrations()
        main = self._cameras[0]
        self._boards = BoardChecks(robot, self._calibrations, self.param("calibration_file"), self._complaints)
        self._depth = DepthViews(
            self,
            robot,
            main,
            self._calibrations.get(main),
            self._joints_at,
            lambda: self._images.get(main),
            self._complaints,
        )
        self._scene = SceneMarkers(self, robot, self._joints_at, lambda: self._depth.note)
        self._overlays: dict[str, Publisher] = {
            camera: self.output(Image, f"visualization/overlay/{camera}", NEWEST) for camera in self._cameras
        }
        self._legend = LatchedOutput(self, Image, "visualization/legend")
        self._legend.publish(image_message(legend(), "rgb8", Header(stamp=self.get_clock().now().to_msg())))
        for camera in self._cameras:
            self.listen(Image, f"cameras/{camera}/image_raw", partial(self._on_image, camera), SENSOR)
        MergedJoints(self, robot, JOINTS_S, self._on_joints)
        guarded = self._complaints.guarded
        self.listen(JointTrajectory, "policy/action_chunk", guarded("action chunk", self._on_chunk), NEWEST)
        self.listen(Image, "policy/depth_codes", guarded("depth codes", self._depth.on_codes), NEWEST)
        self.listen(Image, "policy/depth_updated", guarded("updated cells", self._on_updated), NEWEST)
        self.listen(DiagnosticStatus, "executor/state", self._scene.on_state, LATCHED)
        self.hear(String, "task", self._on_task)

    def start(self) -> None:
        self.every(1.0 / self.param("max_rate_hz"), self._draw)
        self.every(1.0 / RATE_HZ, self._scene.draw)
        self.every(RENEW_S, self._renew, steady=True)
        if self._boards.present and self.param("board_check_s") > 0.0:
            self.every(self.param("board_check_s"), self._check_cameras)

    def teardown(self) -> None:
        self._forget()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._complaints.words:
            return DiagnosticStatus.WARN, self._complaints.words, {}
        return super().diagnose()

    def _load_calibrations(self) -> dict[str, CameraCalibration]:
        found = calibrations_of(self.param("calibration_file"), self._robot.name, self._cameras)
        for camera in set(self._cameras) - set(found):
            self.get_logger().warning(f"camera {camera!r} has no calibration; its overlay has no path")
        return found

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _on_image(self, camera: str, message: Image) -> None:
        self._images[camera] = message

    def _on_joints(self, joints: Array, stamp_ns: int) -> None:
        self._joints.append((stamp_ns, joints))
        self._scene.on_joints(joints, stamp_ns)

    def _joints_at(self, stamp_ns: int) -> Array | None:
        """The reading nearest to a time, or None while there is none."""
        return min(self._joints, key=lambda sample: abs(sample[0] - stamp_ns))[1] if self._joints else None

    def _on_task(self, heard: Heard) -> None:
        self._task = heard.message.data
        self._scene.forget()

    def _on_updated(self, message: Image) -> None:
        self._updated = grid_from_image(message) > 0

    def _on_chunk(self, message: JointTrajectory) -> None:
        try:
            rows, times = chunk_from_trajectory(message)
            paths = tip_paths(self._robot, np.array([self._robot.reorder(message.joint_names, row) for row in rows]))
        except ValueError:
            self._scene.forget()
            raise
        stamp_ns = nanoseconds(message.header.stamp)
        self._scene.on_chunk(Forecast(stamp_ns, times, paths, (self.now_ns() - stamp_ns) * 1e-9))
        self._depth.on_chunk()

    # -- images ---------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        self._legend.renew()
        self._depth.renew()

    def _check_cameras(self) -> None:
        self._boards.look(self._images, [joints for _, joints in self._joints])

    def _draw(self) -> None:
        for camera, output in self._overlays.items():
            image = self._images.get(camera)
            if image is None or not output.get_subscription_count():
                continue
            stamp_ns = nanoseconds(image.header.stamp)
            if self._drawn.get(camera) == stamp_ns:
                continue
            self._drawn[camera] = stamp_ns
            self._complaints.guarded(f"camera {camera}", partial(self._publish_overlay, camera))(image)

    def _publish_overlay(self, camera: str, image: Image) -> None:
        stamp_ns = nanoseconds(image.header.stamp)
        rgb = rgb_from_image(image)
        chunk = self._scene.forecasts.newest
        row = None if chunk is None else chunk.row_at(stamp_ns)
        paths, history = self._drawn_paths(camera, (rgb.shape[1], rgb.shape[0]), chunk, row, stamp_ns)
        state = Legend(
            task=self._task,
            state=self._scene.state,
            driven_by=self._scene.driven_by,
            chunk_age_s=None if row is None or chunk is None else (stamp_ns - chunk.stamp_ns) * 1e-9,
            latency_s=None if chunk is None else chunk.latency_s,
            horizon_s=None if chunk is None else float(chunk.times_s[-1]),
        )
        cells = self._updated if camera == self._cameras[0] and row is not None else None
        picture = overlay(rgb, paths, row or 0.0, cells, state, self.param("overlay_scale"), history)
        self._overlays[camera].publish(image_message(picture, "rgb8", image.header))

    def _drawn_paths(
        self, camera: str, size: tuple[int, int], chunk: Forecast | None, row: float | None, stamp_ns: int
    ) -> tuple[tuple[ImagePath, ...], ImageHistory]:
        """The paths in an image of `size` (width, height), and what lies around them."""
        calibration, joints = self._calibrations.get(camera), self._joints_at(stamp_ns)
        if calibration is None or (joints is None and calibration.mount != self._robot.base_link):
            return (), ImageHistory()
        pose = camera_pose(self._robot, calibration, joints)
        scale = np.array([size[0] / calibration.width, size[1] / calibration.height])

        def pixels(points: Array) -> Array:
            return project(points, calibration, pose)[0] * scale

        paths: tuple[ImagePath, ...] = ()
        if chunk is not None and row is not None:
            paths = tuple(ImagePath(pixels(path.points), path.openness) for path in chunk.paths)
        earlier = self._scene.forecasts.earlier(stamp_ns)
        return paths, ImageHistory(
            executed=tuple(pixels(way) for way in self._scene.executed.ways()),
            earlier=tuple((fresh, pixels(points)) for fresh, arms in earlier for points in arms),
        )


main = main_of(VisualizerNode)

if __name__ == "__main__":
    main()
