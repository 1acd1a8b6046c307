"""Images that another driver publishes (realsense-ros, zed-ros2-wrapper, usb_cam), as a camera of this package."""

from __future__ import annotations

import threading

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from molmoact2_ros.cameras.source import BadImageError, Frame, Intrinsics
from molmoact2_ros.nodes.ros.camera_info import intrinsics_of, is_rectified
from molmoact2_ros.nodes.ros.messages import nanoseconds, rgb_from_compressed, rgb_from_image

NEWEST_PICTURE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Best effort hears reliable publishers too."""


def info_topic(topic: str) -> str:
    """Where the camera_info of an image topic is: beside it, and beside the raw topic of a compressed one."""
    base = topic.rpartition("/")[0] if topic.rpartition("/")[2] == "compressed" else topic
    folder, slash, _ = base.rpartition("/")
    return f"{folder}{slash}camera_info"


class TopicSource:
    """Hears `topic` and the `camera_info` beside it; a thread of the camera reads what the node's thread hears.

    A topic that ends in `/compressed` holds JPEG or PNG images. The stamps are those of the other driver. Closing
    leaves the subscription in place until the node goes: this is called from the camera's thread, and subscriptions
    belong to the node's.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self._fresh = threading.Condition()
        self._newest: Image | CompressedImage | None = None
        self._info: CameraInfo | None = None
        self._topic, self._info_topic = topic, info_topic(topic)
        self._rectified = is_rectified(topic)
        self.info_problem = ""
        """Why the camera_info beside the images is not used; empty when it is, or when there is none."""
        kind = CompressedImage if topic.rpartition("/")[2] == "compressed" else Image
        self._subscriptions = [
            node.create_subscription(kind, topic, self._on_image, NEWEST_PICTURE),
            node.create_subscription(CameraInfo, self._info_topic, self._on_info, NEWEST_PICTURE),
        ]

    def _on_image(self, message: Image | CompressedImage) -> None:
        with self._fresh:
            self._newest = message
            self._fresh.notify()

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image that was not returned yet, or None after `timeout_s`.

        Raises:
            BadImageError: the image is malformed, or of an encoding that cannot be taken.
        """
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None, timeout_s)
            message, self._newest = self._newest, None
        if message is None:
            return None
        try:
            rgb = rgb_from_image(message) if isinstance(message, Image) else rgb_from_compressed(message)
        except ValueError as error:
            raise BadImageError(f"{self._topic}: {error}") from None
        rgb = np.ascontiguousarray(rgb)
        return Frame(rgb, nanoseconds(message.header.stamp), None, self._intrinsics(rgb.shape[1], rgb.shape[0]))

    def _intrinsics(self, width: int, height: int) -> Intrinsics | None:
        if self._info is None:
            return None
        try:
            found = intrinsics_of(self._info, width, height, self._rectified)
        except ValueError as error:
            self.info_problem = f"{self._info_topic} is not used: {error}"
            return None
        self.info_problem = ""
        return found

    def close(self) -> None:
        """See the class."""
