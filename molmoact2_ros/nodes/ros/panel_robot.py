"""One robot of the panel: its desk, what the page shows of it, its place in the 3D view, its cameras."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, PointCloud2
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import most_rows
from molmoact2_ros.nodes.ros.joint_topics import MergedJoints
from molmoact2_ros.nodes.ros.messages import chunk_from_trajectory, grid_from_image
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.operator_desk import OperatorDesk
from molmoact2_ros.nodes.ros.operator_requests import Asked
from molmoact2_ros.nodes.ros.panel_pictures import PanelPictures
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.visual_messages import points_of
from molmoact2_ros.panel.scene import RobotScene
from molmoact2_ros.panel.view import RobotView
from molmoact2_ros.rendering.projection import tip_paths

JOINTS_S = 1.0
OVER_S = 0.5
"""A path stays so long after the end of its chunk."""
LIST_S = 20.0
"""The recorder is asked for its episodes so often, and whenever one has ended or was labelled."""
CLOUD_TOPIC = "visualization/depth_points"


@dataclass(frozen=True)
class Tell:
    """Where the robot's news go.

    Attributes:
        answer: page (0: none asked), request, whether it was done, words.
        picture: camera, whether with an overlay, JPEG.
        changed: the executor's state has changed.
    """

    answer: Callable[[int, Asked, bool, str], None]
    picture: Callable[[str, bool, bytes], None]
    changed: Callable[[], None]


class PanelRobot:
    """See the module. For the node's `setup`; but for `desk.stop` and `desk.ask`, for the spinning thread.

    Args:
        image_hz: images a second of each camera.
    """

    def __init__(
        self, node: MolmoNode, namespace: str, robot: Embodiment, scene: RobotScene, image_hz: float, tell: Tell
    ) -> None:
        self._node, self._robot, self._scene, self._tell = node, robot, scene, tell
        self.view = RobotView(namespace, robot.name)
        self.desk = OperatorDesk(
            node, self._on_answer, tell.changed, namespace=namespace, me="this panel", asks_policy=None
        )
        self.pictures = PanelPictures(node, namespace, image_hz, tell.picture)
        self._watched = False
        self._position: NDArray[np.float64] | None = None
        self._path_until = 0.0
        self._cloud: Subscription | None = None
        self._cloud_at = 0.0
        self._asked_list = -1e9
        self._was_recording = ""
        name = self.desk.watch.name
        self._problems: dict[str, str] = {}
        MergedJoints(node, robot, JOINTS_S, self._on_joints, namespace=namespace)
        chunk = self._guarded("action chunk", self._on_chunk)
        node.listen(JointTrajectory, name("policy/action_chunk"), chunk, NEWEST)
        cells = self._guarded("updated cells", self._on_updated)
        node.listen(Image, name("policy/depth_updated"), cells, NEWEST)

    def close(self) -> None:
        """Give back what the node does not; safe to call twice."""
        self.desk.close()
        self.pictures.close()
        self._look_at_cloud(False)

    # -- timers -----------------------------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """What the page shows of the robot now."""
        self.view.hear(self.desk.state(), time.monotonic())
        self.view.cameras = self.pictures.cameras
        self.view.problem = "; ".join(filter(None, (*self._problems.values(), self.pictures.problem)))
        return self.view.shown()

    def look(self, watched: bool) -> None:
        """Once a second: subscribe to what is expensive while somebody looks, and ask for the episodes."""
        self._watched = watched
        self.pictures.look(watched)
        self._look_at_cloud(watched)
        now, recording = time.monotonic(), self.view.recording
        ended, self._was_recording = bool(self._was_recording) and not recording, recording
        there = "episodes" in self.view.state.get("ready", [])
        if watched and there and (ended or now - self._asked_list > LIST_S):
            self._asked_list = now
            self.desk.ask({"ask": "episodes", "page": 0})

    def draw(self) -> None:
        """Move the robot in the 3D view, and remove what is over."""
        if not self._watched:
            return
        position, self._position = self._position, None
        if position is not None:
            self._scene.pose(position)
        now = time.monotonic()
        if self._path_until and now > self._path_until:
            self._path_until = 0.0
            self._scene.path(())
        if self._cloud_at and now - self._cloud_at > 3.0:
            self._cloud_at = 0.0
            self._scene.cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))

    # -- what is heard ----------------------------------------------------------------------------------------------

    def _guarded(self, what: str, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """`handle`, with a message that it refuses shown on the page."""

        def guarded(message: Any) -> None:
            try:
                handle(message)
                self._problems.pop(what, None)
            except ValueError as error:
                self._problems[what] = f"{what} not shown: {error}"

        return guarded

    def _on_answer(self, asked: Asked, ok: bool, message: str) -> None:
        ask, page = asked["ask"], int(asked.get("page", 0))
        if ask == "episodes":
            if ok:
                self.view.listed(message)
            return
        if ok and ask in ("end", "label"):
            self._asked_list = -1e9
        self._tell.answer(page, asked, ok, message)

    def _on_joints(self, positions: NDArray[np.float64], stamp_ns: int) -> None:
        self._position = positions.copy()

    def _on_chunk(self, message: JointTrajectory) -> None:
        if not self._watched:
            return
        if len(message.points) > most_rows(self._robot):
            raise ValueError(f"{len(message.points)} rows, expected at most {most_rows(self._robot)}")
        rows, times = chunk_from_trajectory(message)
        chunk = np.array([self._robot.reorder(message.joint_names, row) for row in rows])
        self._scene.path(tip_paths(self._robot, chunk))
        self._path_until = time.monotonic() + min(max(float(times[-1]), 0.0), 60.0) + OVER_S

    def _on_updated(self, message: Image) -> None:
        self.view.reused(float(np.mean(grid_from_image(message) == 0)))

    def _look_at_cloud(self, watched: bool) -> None:
        """The visualizer computes a cloud for who looks at it only."""
        topic = self.desk.watch.name(CLOUD_TOPIC)
        wanted = watched and self._node.count_publishers(topic) > 0
        if wanted and self._cloud is None:
            handle = self._guarded("depth cloud", self._on_cloud)
            self._cloud = self._node.create_subscription(PointCloud2, topic, handle, SENSOR)
        elif not wanted and self._cloud is not None:
            self._node.destroy_subscription(self._cloud)
            self._cloud = None

    def _on_cloud(self, message: PointCloud2) -> None:
        self._scene.cloud(*points_of(message))
        self._cloud_at = time.monotonic()
