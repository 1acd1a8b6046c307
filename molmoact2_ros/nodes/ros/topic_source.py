"""Pictures that another driver publishes (realsense-ros, zed-ros2-wrapper), as a camera of this package."""

from __future__ import annotations

import threading

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from molmoact2_ros.cameras.source import CameraError, Frame, Intrinsics
from molmoact2_ros.nodes.ros.messages import nanoseconds, rgb_from_image

NEWEST_PICTURE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Best effort hears reliable publishers too."""


class TopicSource:
    """Hears `topic` and the `camera_info` beside it; a thread of the camera reads what the node's thread hears.

    The stamps are those of the other driver. Closing leaves the subscription in place until the node goes: this is
    called from the camera's thread, and subscriptions belong to the node's.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self._fresh = threading.Condition()
        self._newest: Image | None = None
        self._intrinsics: Intrinsics | None = None
        info = topic.rpartition("/")[0] + "/camera_info"
        self._subscriptions = [
            node.create_subscription(Image, topic, self._on_image, NEWEST_PICTURE),
            node.create_subscription(CameraInfo, info, self._on_info, NEWEST_PICTURE),
        ]

    def _on_image(self, message: Image) -> None:
        with self._fresh:
            self._newest = message
            self._fresh.notify()

    def _on_info(self, message: CameraInfo) -> None:
        k, d = tuple(float(v) for v in message.k), tuple(float(v) for v in message.d)
        self._intrinsics = Intrinsics(message.width, message.height, k, message.distortion_model, d)

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image that was not returned yet, or None after `timeout_s`."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None, timeout_s)
            message, self._newest = self._newest, None
        if message is None:
            return None
        try:
            rgb = np.ascontiguousarray(rgb_from_image(message))
        except ValueError as error:
            raise CameraError(str(error)) from None
        return Frame(rgb, nanoseconds(message.header.stamp), None, self._intrinsics)

    def close(self) -> None:
        """See the class."""
