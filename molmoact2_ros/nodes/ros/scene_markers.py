"""The scene around the model: the chunk and those before it, what came of it, commands, limits, who drives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters
from rclpy.serialization import deserialize_message
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from molmoact2_ros.embodiments import Embodiment, Workspace
from molmoact2_ros.nodes.ros.depth_views import Note
from molmoact2_ros.nodes.ros.executor_parameters import workspaces_of
from molmoact2_ros.nodes.ros.messages import nanoseconds, stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.visual_messages import (
    executed_markers,
    ghost_markers,
    path_markers,
    path_message,
    spread_markers,
    text_marker,
    touched_markers,
    workspace_markers,
)
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.colours import DIM, state_colour
from molmoact2_ros.rendering.forecast import Executed, Forecast, Forecasts
from molmoact2_ros.rendering.touching import touched_joints, touched_sides, who_drives

Array = NDArray[np.float64]

COMMAND_S = 0.5
"""A command that is older says nothing of where the arm should be."""
RATE_HZ = 10.0
ASK_S = 10.0
ABOVE_M = 0.15
"""How far over the robot's highest link the words about it stand."""


class SceneMarkers:
    """Publishes the paths with every chunk, `visualization/markers` and `state_markers` by a timer; each only where
    somebody listens.

    Args:
        joints_at: the joints (dof,) measured at a time in ns, or None where they are unknown.
        note: what is to be said of the depth cloud.
    """

    def __init__(
        self,
        node: MolmoNode,
        robot: Embodiment,
        joints_at: Callable[[int], Array | None],
        note: Callable[[], Note | None],
    ) -> None:
        self._node, self._robot, self._joints_at, self._note = node, robot, joints_at, note
        self._frame = node.param("base_frame")
        self.forecasts, self.executed = Forecasts(), Executed()
        self.state, self.driven_by = "", ""
        self._body: Body | None = None
        self._command: bytes | None = None
        self._boxes: Sequence[Workspace] = robot.workspaces
        self._asked_ns = 0
        self._undrawn = False
        self._markers = node.output(MarkerArray, "visualization/markers", NEWEST)
        self._present = node.output(MarkerArray, "visualization/state_markers", NEWEST)
        self._paths = [node.output(Path, topic, NEWEST) for topic in path_topics(robot)]
        # Best effort: a reliable subscription more is work for the command loop.
        node.listen(JointState, "executor/command", self._on_command, SENSOR, raw=True)
        self._client = node.client(GetParameters, "executor/get_parameters")

    def forget(self) -> None:
        """A new task, or a chunk that cannot be read: what chunks said is over."""
        self.forecasts.clear()

    def on_state(self, message: DiagnosticStatus) -> None:
        """Take `executor/state`."""
        self.state = message.message
        self.driven_by = who_drives(message.message, {value.key: value.value for value in message.values})

    def on_joints(self, joints: Array, stamp_ns: int) -> None:
        """Take a reading (dof,)."""
        if self.executed.due(stamp_ns):
            tips = [chain.tip(joints[list(indices)])[:3, 3] for chain, indices in self._robot.chains]
            self.executed.add(stamp_ns, np.array(tips))

    def _on_command(self, data: bytes) -> None:
        self._command = data

    def on_chunk(self, chunk: Forecast) -> None:
        """Take a chunk."""
        self.forecasts.add(chunk)
        header = Header(stamp=stamp_of(chunk.stamp_ns), frame_id=self._frame)
        for output, path in zip(self._paths, chunk.paths, strict=True):
            if output.get_subscription_count():
                output.publish(path_message(path, header))
        self._undrawn = True

    def _draw_chunk(self, now_ns: int) -> None:
        """The newest chunk among the others: at the timer's rate, however fast chunks come."""
        chunk = self.forecasts.newest
        if chunk is None or not self._undrawn or not self._markers.get_subscription_count():
            return
        self._undrawn = False
        header = Header(stamp=stamp_of(chunk.stamp_ns), frame_id=self._frame)
        lifetime_s = float(chunk.times_s[-1]) + 0.5
        found = path_markers(chunk.paths, header, lifetime_s)
        found += spread_markers(
            chunk.paths, self.forecasts.spread(), self.forecasts.earlier(now_ns), header, lifetime_s
        )
        self._markers.publish(MarkerArray(markers=found))

    def draw(self) -> None:
        """Draw what is now."""
        now_ns = self._node.now_ns()
        self._draw_chunk(now_ns)
        if not self._present.get_subscription_count():
            return
        self._ask_boxes(now_ns)
        joints = self._joints_at(now_ns)
        if joints is None:
            return
        header = Header(stamp=stamp_of(now_ns), frame_id=self._frame)
        if self._body is None:
            self._body = Body(self._robot)
        measured = self._body.links(joints)
        sides = [touched_sides(self._robot, joints, self._boxes, arm) for arm in range(len(self._boxes))]
        touched = [*touched_joints(self._robot, joints), *(one for side in sides for one in side)]
        found = executed_markers(self.executed.ways(), header)
        found += workspace_markers(self._boxes, [bool(side) for side in sides], header)
        found += touched_markers(touched, self._robot.dof + 3 * len(sides), header)
        found += self._ghost(measured, now_ns, header)
        if self.state:
            words = f"{self.state.lower()}: {self.driven_by} drives"
            place = np.array([0.0, 0.0, max(pose[2, 3] for pose in measured.values()) + ABOVE_M])
            found.append(text_marker("who", 0, words, place, state_colour(self.state), header, 0.03))
        note = self._note()
        if note is not None:
            found.append(text_marker("depth", 0, note.words, note.place, DIM, header, 0.015))
        self._present.publish(MarkerArray(markers=found))

    def _ghost(self, measured: dict[str, Array], now_ns: int, header: Header) -> list[Marker]:
        if self._command is None or self._body is None:
            return []
        message: JointState = deserialize_message(self._command, JointState)
        if abs(now_ns - nanoseconds(message.header.stamp)) > COMMAND_S * 1e9:
            return []
        commanded = self._robot.reorder(message.name, np.asarray(message.position))
        return ghost_markers(self._body.shapes, self._body.links(commanded), measured, header)

    def _ask_boxes(self, now_ns: int) -> None:
        """Ask the executor which workspaces are in force, now and then: it may have been started anew with others.
        Until it answers they are the robot's own."""
        if abs(now_ns - self._asked_ns) > ASK_S * 1e9 and self._client.service_is_ready():
            self._asked_ns = now_ns
            names = ["workspace_lower", "workspace_upper"]
            self._client.call_async(GetParameters.Request(names=names)).add_done_callback(self._on_boxes)

    def _on_boxes(self, answer: Future) -> None:
        response = answer.result()
        values: list[ParameterValue] = [] if response is None else list(response.values)
        if len(values) == 2:
            lower, upper = (list(value.double_array_value) for value in values)
            self._boxes = workspaces_of(self._robot, lower, upper) or self._robot.workspaces


def path_topics(robot: Embodiment) -> tuple[str, ...]:
    """Where the path of each arm is published."""
    if len(robot.arms) == 1:
        return ("visualization/path",)
    return tuple(f"visualization/path/{arm}" for arm in robot.arm_names)
