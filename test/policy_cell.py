"""A cell around the policy node: what it listens to, and a listener to what it says."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from ros_process import Companion, wait_until
from sensor_msgs.msg import Image, JointState
from small_checkpoints import ROBOT
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR

START_S = 180.0
"""Importing torch and transformers takes seconds, on a busy machine a minute or two."""


def arguments(**parameters: object) -> list[str]:
    found = ["--ros-args", "-r", "__ns:=/so101"]
    for name, value in {"norm_tag": ROBOT.norm_tag, "threads": 1, "max_rate_hz": 10.0, **parameters}.items():
        found += ["-p", f"{name}:={value}"]
    return found


class Cell:
    """Plays the robot: cameras and joint states at 20 Hz, and a listener to what the policy says."""

    def __init__(self, companion: Companion) -> None:
        node = companion.node
        self.companion, self.node = companion, node
        self.silent: set[str] = set()
        self.captured: set[int] = set()
        self.chunks: list[JointTrajectory] = []
        self.codes: list[Image] = []
        self.updated: list[Image] = []
        self.status: dict[str, Any] = {}
        self._images = {
            name: node.create_publisher(Image, f"cameras/{name}/image_raw", SENSOR) for name in ROBOT.camera_names
        }
        self.position = ROBOT.rest_position
        self._joints = node.create_publisher(JointState, "joint_states", SENSOR)
        self._task = node.create_publisher(String, "task", LATCHED)
        node.create_subscription(JointTrajectory, "policy/action_chunk", self.chunks.append, NEWEST)
        node.create_subscription(Image, "policy/depth_codes", self.codes.append, NEWEST)
        node.create_subscription(Image, "policy/depth_updated", self.updated.append, NEWEST)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        node.create_timer(0.05, self._capture)

    def task(self, text: str) -> int:
        """Publish a task; returns the time just before, ns."""
        now = self.node.get_clock().now().nanoseconds
        self._task.publish(String(data=text))
        return int(now)

    def _capture(self) -> None:
        stamp = self.node.get_clock().now()
        self.captured.add(stamp.nanoseconds)
        for name, publisher in self._images.items():
            if name in self.silent:
                continue
            image = Image(height=24, width=32, encoding="rgb8", step=96)
            image.header.stamp = stamp.to_msg()
            pixels = np.full(24 * 96, 90, np.uint8)
            # As from a camera, no image is bit for bit the last one (such a one would not be encoded again).
            pixels[0] += len(self.captured) % 3
            image.data = array("B", pixels.tobytes())
            publisher.publish(image)
        joints = JointState(name=list(reversed(ROBOT.joint_names)), position=self.position[::-1].tolist())
        joints.header.stamp = stamp.to_msg()
        self._joints.publish(joints)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/so101/policy":
                self.status = {"level": status.level, "message": status.message}
                self.status |= {item.key: item.value for item in status.values}


def settled(cell: Cell, what: str) -> None:
    """Wait for three chunks from now on."""
    start = len(cell.chunks)
    wait_until(lambda: len(cell.chunks) >= start + 3, lambda: f"{what}; diagnostics: {cell.status}")
