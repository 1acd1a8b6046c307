"""Depth codes as images and as a cloud; where there is no depth, a picture that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.nodes.ros.camera_info import depth_info
from molmoact2_ros.nodes.ros.complaints import Complaints
from molmoact2_ros.nodes.ros.latched_output import LatchedOutput
from molmoact2_ros.nodes.ros.messages import (
    grid_from_image,
    image_message,
    metres_from_image,
    nanoseconds,
    rgb_from_image,
)
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.visual_messages import cloud_of
from molmoact2_ros.nodes.ros.visualizer_parameters import ANCHORS
from molmoact2_ros.rendering import depth as depths
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.depth_fit import DepthFit, Known, arm_depth, camera_depth, fit_depth, table_depth
from molmoact2_ros.rendering.notices import captioned, notice
from molmoact2_ros.rendering.projection import camera_pose, points_of_depth, refined_depth

Array = NDArray[np.float64]

NO_CODES = 3
"""So many chunks without depth codes: this policy predicts none."""
DEPTH_CAMERA_S = 0.5
"""A depth image that is older than this, seen from the codes, is none."""


@dataclass(frozen=True)
class Note:
    """What is said of the cloud: `words` at `place` (3,) in the base frame, m."""

    words: str
    place: Array


class DepthViews:
    """Publishes what somebody listens to, from the depth codes of `camera`, the first of the robot.

    Args:
        joints_at: the joints (dof,) at a time in ns, or None where they are unknown.
        image: the camera's newest image.
    """

    def __init__(
        self,
        node: MolmoNode,
        robot: Embodiment,
        camera: str,
        calibration: CameraCalibration | None,
        joints_at: Callable[[int], Array | None],
        image: Callable[[], Image | None],
        complaints: Complaints,
    ) -> None:
        self._node, self._robot, self._camera, self._calibration = node, robot, camera, calibration
        self._joints_at, self._image, self._complaints = joints_at, image, complaints
        self._anchors = [name for name in node.param("depth_anchors") if name]
        if not set(self._anchors) <= set(ANCHORS):
            raise ValueError(f"depth_anchors are {self._anchors}, expected some of {', '.join(ANCHORS)}")
        self._body: Body | None = None
        self._seen: Image | None = None
        self._chunks, self._codes, self._said = 0, 0, ""
        self._base_frame = node.param("base_frame")
        self._depth = node.output(Image, "policy/depth/image", NEWEST)
        self._info = node.output(CameraInfo, "policy/depth/camera_info", NEWEST)
        self._points = node.output(PointCloud2, "visualization/depth_points", NEWEST)
        self._colour = LatchedOutput(node, Image, "visualization/depth_colour")
        self.note: Note | None = None
        """What the scene says of the newest cloud; None for a cloud that is metric by itself, or none at all."""
        self._decoder = self._load(node.param("depth_decoder") or node.param("checkpoint"))
        if self._decoder is not None:
            self._say("No depth yet", "nothing has come on policy/depth_codes")
            if not self._decoder.metric and "depth_camera" in self._anchors:
                node.listen(Image, f"cameras/{camera}/depth/image_raw", self._on_depth_camera, SENSOR)

    def _load(self, place: str) -> depths.DepthDecoder | None:
        try:
            if place:
                return depths.load_depth_decoder(place)
            self._say("No depth", f"the visualizer knows no checkpoint to decode it with. {depths.HOW_TO_GET}")
        except FileNotFoundError as error:
            self._node.get_logger().warning(str(error))
            self._say("No depth", str(error), log=False)
        return None

    def _say(self, title: str, words: str, log: bool = True) -> None:
        """Show a picture that says why there is none, once."""
        if words == self._said:
            return
        self._said = words
        if log:
            self._node.get_logger().info(f"{title}: {words}")
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=f"{self._camera}_optical_frame")
        self._colour.publish(image_message(notice(title, words), "rgb8", header))

    def renew(self) -> None:
        """For late subscribers; call it now and then."""
        self._colour.renew()

    def on_chunk(self) -> None:
        """A chunk has come: a policy that sends them without depth codes has none to show."""
        self._chunks += 1
        if self._decoder is not None and not self._codes and self._chunks == NO_CODES:
            self._say(
                "No depth",
                "this policy predicts none: it is an expert, or its checkpoint has no depth reasoning (or the policy's "
                "depth is off)",
            )

    def _on_depth_camera(self, message: Image) -> None:
        self._seen = message

    def on_codes(self, message: Image) -> None:
        """Decode and publish.

        Raises:
            ValueError: codes that the decoder does not know.
        """
        self._codes += 1
        self._said = ""
        others = (self._depth, self._info, self._points)
        if self._decoder is None or not (self._colour.wanted or any(one.get_subscription_count() for one in others)):
            return
        picture = self._decoder.decode(grid_from_image(message))
        calibration = self._calibration
        header = Header(stamp=message.header.stamp, frame_id=f"{self._camera}_optical_frame")
        metres, words = self._metres(picture, message)
        if self._depth.get_subscription_count():
            self._depth.publish(image_message(picture, "32FC1", header))
        if calibration is not None and self._info.get_subscription_count():
            self._info.publish(depth_info(calibration, picture.shape[1], picture.shape[0], header))
        if self._colour.wanted:
            colours = depths.colourize(picture, self._decoder.near_is_small, self._decoder.limits)
            if calibration is not None:
                colours = depths.enlarged(colours, calibration.width, calibration.height)
            self._colour.publish(image_message(captioned(colours, words) if words else colours, "rgb8", header))
        self.note = None
        if metres is not None and calibration is not None and self._points.get_subscription_count():
            self._publish_points(metres, calibration, message, words)

    def _metres(self, picture: NDArray[np.float32], message: Image) -> tuple[NDArray[np.float32] | None, str]:
        """The depth image in m, or None where it has no scale, and what is to be said of it."""
        assert self._decoder is not None
        if self._decoder.metric:
            return picture, ""
        if not (self._points.get_subscription_count() or self._colour.wanted):
            return None, ""
        try:
            fit = self._fit(picture, message)
        except ValueError as error:
            self._complaints.say("depth fit", f"relative depth, no cloud: {error}")
            return None, f"relative depth, no cloud: {error}"
        self._complaints.say("depth fit", "")
        return fit.metres(picture), fit.words

    def _fit(self, picture: NDArray[np.float32], message: Image) -> DepthFit:
        assert self._decoder is not None
        if not self._anchors:
            raise ValueError("depth_anchors names nothing to fit it to")
        if self._calibration is None:
            raise ValueError(f"camera {self._camera} has no calibration; docs/camera-calibration.md makes one")
        stamp_ns = nanoseconds(message.header.stamp)
        joints = self._joints_at(stamp_ns)
        if joints is None:
            raise ValueError("the joints are unknown; is the driver there?")
        if self._body is None:
            self._body = Body(self._robot)
        camera = camera_pose(self._robot, self._calibration, joints)
        known: list[Known] = []
        arm = arm_depth(self._body, joints, self._calibration, camera)
        if "arm" in self._anchors:
            known.append(arm)
        if "table" in self._anchors:
            height = float(self._node.param("table_height_m"))
            known.append(table_depth(height, self._robot.workspaces, arm, self._calibration, camera))
        if self._seen is not None and abs(nanoseconds(self._seen.header.stamp) - stamp_ns) < DEPTH_CAMERA_S * 1e9:
            known.append(camera_depth(metres_from_image(self._seen)))
        return fit_depth(picture, known, inverse=not self._decoder.near_is_small)

    def _publish_points(
        self, metres: NDArray[np.float32], calibration: CameraCalibration, message: Image, words: str
    ) -> None:
        joints = self._joints_at(nanoseconds(message.header.stamp))
        if joints is None and calibration.mount != self._robot.base_link:
            return
        pose = camera_pose(self._robot, calibration, joints)
        metres = refined_depth(metres, calibration, float(self._node.param("point_size_m")))
        points = points_of_depth(metres, calibration) @ pose[:3, :3].T + pose[:3, 3]
        image = self._image()
        if image is None:
            assert self._decoder is not None
            rgb = depths.colourize(metres)
        else:
            size = (metres.shape[1], metres.shape[0])
            rgb = np.asarray(cv2.resize(rgb_from_image(image), size, interpolation=cv2.INTER_AREA), np.uint8)
        good = np.isfinite(points).all(axis=1)
        cloud, rgb = points[good].astype(np.float32), rgb.reshape(-1, 3)[good]
        header = Header(stamp=message.header.stamp, frame_id=self._base_frame)
        self._points.publish(cloud_of(cloud, rgb, header))
        if words and len(cloud):
            place = np.median(cloud, axis=0).astype(np.float64)
            place[2] = float(np.percentile(cloud[:, 2], 99.0)) + 0.05
            self.note = Note(f"depth {words}", place)
