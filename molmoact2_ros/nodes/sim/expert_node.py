"""The scripted expert of the simulated cell in place of a policy: the same chunks topic, from the true place of the
cube."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.messages import chunk_message, nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.simulation.experts import expert_of


class ExpertNode(MolmoNode):
    """Publishes a chunk at a fixed rate while a task is set, its stamp being that of the joint reading it begins at."""

    PARAMETERS = (Parameter("rate_hz", 5.0, "Chunks a second.", 0.5, 20.0),)

    def __init__(self) -> None:
        super().__init__("expert")
        self._joints: JointState | None = None
        self._cube: PoseStamped | None = None
        self._task = ""
        self._latency_ms = 0.0
        self._chunks = 0

    def setup(self) -> None:
        self._robot = embodiment(self.param("robot"))
        self._expert = expert_of(self._robot.name)
        self._publisher = self.output(JointTrajectory, "policy/action_chunk", NEWEST)
        self.listen(JointState, "joint_states", self._on_joints, SENSOR)
        self.listen(PoseStamped, "sim/object_pose", self._on_cube, SENSOR)
        self.hear(String, "task", self._on_task)

    def start(self) -> None:
        self.every(1.0 / self.param("rate_hz"), self._plan)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        return (
            DiagnosticStatus.OK,
            "scripted expert" if self._task else "no task yet",
            {"latency_ms": round(self._latency_ms, 2), "chunks": self._chunks},
        )

    def _on_joints(self, message: JointState) -> None:
        self._joints = message

    def _on_cube(self, message: PoseStamped) -> None:
        self._cube = message

    def _on_task(self, heard: Heard) -> None:
        self._task = heard.message.data.strip()

    def _plan(self) -> None:
        if not self.active or not self._task or self._joints is None or self._cube is None:
            return
        stamp = nanoseconds(self._joints.header.stamp)
        if self.now_ns() - stamp > 500_000_000:
            return
        begun = time.perf_counter()
        joints = self._robot.reorder(self._joints.name, np.asarray(self._joints.position))
        cube, turn = self._cube.pose.position, self._cube.pose.orientation
        yaw = math.atan2(2.0 * (turn.w * turn.z + turn.x * turn.y), 1.0 - 2.0 * (turn.y**2 + turn.z**2))
        rows = self._expert(joints, np.array([cube.x, cube.y, cube.z]), yaw)
        message = chunk_message(rows.tolist(), self._robot.rate_hz, stamp, self._robot.joint_names)
        self._latency_ms = 1e3 * (time.perf_counter() - begun)
        self._publisher.publish(message)
        self._chunks += 1


main = main_of(ExpertNode)

if __name__ == "__main__":
    main()
