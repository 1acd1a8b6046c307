"""The forms in which set-points leave the executor. Messages are made once; a tick fills and publishes them."""

from __future__ import annotations

from array import array
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.rolling_piece import RollingPiece
from molmoact2_ros.nodes.ros.messages import fill_time
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR

Array = NDArray[np.float64]


class CommandOutput(Protocol):
    """Publishes what was commanded."""

    def send(self, motion: Motion, now_ns: int) -> None:
        """Publish `motion` (dof,), commanded for `now_ns`. Called from the command loop."""


def view_of(message: Any, field: str, size: int) -> Array:
    """Give the message's `field` an array of `size`, and return the view (size,) through which it is filled.

    A message keeps a copy of the array that it is given, so the view is of what it has afterwards.
    """
    setattr(message, field, array("d", bytes(8 * size)))
    return np.frombuffer(getattr(message, field), dtype=np.float64)


class StampedCommand:
    """JointState on `executor/command`, always published: what was sent this tick, when, and for which arming; and a
    Header on `executor/driving` with the same stamp, whose frame_id says who drove: policy, teleop, ramp or nobody.

    This package's drivers take the first as their command. Its header.frame_id names the arming.
    """

    def __init__(self, node: MolmoNode, robot: Embodiment) -> None:
        self._message = JointState(name=list(robot.joint_names))
        self._position = view_of(self._message, "position", robot.dof)
        self._velocity = view_of(self._message, "velocity", robot.dof)
        self._publisher = node.output(JointState, "executor/command", NEWEST)
        self._driving = Header()
        self._driving_publisher = node.output(Header, "executor/driving", SENSOR)

    def send(self, motion: Motion, arming: str, drives: str, now_ns: int) -> None:
        """Publish `motion` (dof,), commanded at `now_ns`. Called from the command loop."""
        self._position[:], self._velocity[:] = motion.position, motion.velocity
        fill_time(self._message.header.stamp, now_ns)
        self._message.header.frame_id = arming
        self._publisher.publish(self._message)
        fill_time(self._driving.stamp, now_ns)
        self._driving.frame_id = drives
        self._driving_publisher.publish(self._driving)


class ForwardCommand:
    """Float64MultiArray in the order of the controller's joints, for a `forward_command_controller`. It bears no stamp:
    that controller knows none, and holds its last command whatever comes."""

    def __init__(self, node: MolmoNode, topic: str, joints: NDArray[np.int_]) -> None:
        self._joints = joints
        self._message = Float64MultiArray()
        self._view = view_of(self._message, "data", len(joints))
        self._publisher = node.output(Float64MultiArray, topic, NEWEST)

    def send(self, motion: Motion, now_ns: int) -> None:
        """See `CommandOutput`."""
        np.take(motion.position, self._joints, out=self._view)
        self._publisher.publish(self._message)


class TrajectoryCommand:
    """JointTrajectory pieces for a JointTrajectoryController; see `rolling_piece`."""

    def __init__(
        self, node: MolmoNode, topic: str, robot: Embodiment, joints: NDArray[np.int_], period_s: float, lead_s: float
    ) -> None:
        limits = robot.scaled_limits(node.param("speed_scale"))
        self._piece = RollingPiece(limits, joints, period_s, lead_s)
        names = JointNames(robot, node.param("joint_map")).theirs
        self._message = JointTrajectory(joint_names=[names[int(j)] for j in joints])
        self._views: list[tuple[Array, Array, Array]] = []
        for _ in range(len(self._piece.times_ns)):
            point = JointTrajectoryPoint()
            p, v, a = (view_of(point, field, len(joints)) for field in ("positions", "velocities", "accelerations"))
            self._views.append((p, v, a))
            self._message.points.append(point)
        self._publisher = node.output(JointTrajectory, topic, NEWEST)

    def send(self, motion: Motion, now_ns: int) -> None:
        """See `CommandOutput`."""
        piece, message = self._piece, self._message
        piece.update(motion, now_ns)
        fill_time(message.header.stamp, piece.start_ns)
        for i, (point, (p, v, a)) in enumerate(zip(message.points, self._views, strict=True)):
            p[:], v[:], a[:] = piece.positions[i], piece.velocities[i], piece.accelerations[i]
            fill_time(point.time_from_start, piece.times_ns[i])
        self._publisher.publish(message)


def command_output(node: MolmoNode, robot: Embodiment, period_s: float) -> CommandOutput | None:
    """The output that the node's parameters ask for beside `executor/command`; grippers that are commanded by actions
    are not in it. None where the driver takes `executor/command`."""
    if node.param("output") == "driver":
        return None
    joints: NDArray[np.int_] = np.arange(robot.dof)
    if node.param("gripper_output") != "in_array":
        joints = np.array([j for j in range(robot.dof) if j not in robot.gripper_indices])
    topic = node.param("command_topic")
    if node.param("output") == "joint_trajectory":
        return TrajectoryCommand(node, topic, robot, joints, period_s, float(node.param("trajectory_lead_s")))
    return ForwardCommand(node, topic, joints)
