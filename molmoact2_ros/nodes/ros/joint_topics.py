"""Joint states as drivers publish them: on one topic or more, under their own names, in whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sensor_msgs.msg import JointState

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.execution.chunk import Refusal
from molmoact2_ros.execution.config import UNSTAMPED
from molmoact2_ros.execution.joint_states import Array
from molmoact2_ros.execution.merged_readings import MergedReadings
from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import SENSOR
from molmoact2_ros.nodes.ros.subscriptions import UNKNOWN, Heard

QUIET_NS = 10_000_000_000
"""A complaint is told again when it was not heard for so long."""
LOOK_NS = 200_000_000

JOINT_STATE_TOPICS = Parameter(
    "joint_state_topics", ["joint_states"], "Where joint states come from; arm and fingers may have their own."
)
JOINT_STATE_PARAMETERS = (
    JOINT_STATE_TOPICS,
    Parameter(
        "joint_map", [""], "Joint names of the driver, theirs=ours, one * each for the same part: fr3v2_*=fr3_*."
    ),
    Parameter(
        "unstamped_joint_states", "refuse", f"Joint states with stamp 0: {' or '.join(UNSTAMPED)}, as if read then."
    ),
)


class Take(Protocol):
    """What becomes of a message; why it is refused, if it is. See `JointStates.take`."""

    def __call__(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int, publisher: str
    ) -> Refusal | None: ...


class JointTopics:
    """Hears all `joint_state_topics` until teardown, and tells each kind of complaint once.

    Args:
        publishers: where the names of the publishers' nodes are put, by their id.
        namespace: of the robot; the node's own where it is empty.
    """

    def __init__(
        self, node: MolmoNode, robot: Embodiment, take: Take, publishers: dict[str, str], namespace: str = ""
    ) -> None:
        self._node, self._take, self._publishers = node, take, publishers
        self._names = JointNames(robot, node.param("joint_map"))
        self._look_ns = 0
        self._told: dict[str, int] = {}
        topics = list(dict.fromkeys(topic for topic in node.param("joint_state_topics") if topic))
        if not topics:
            raise ValueError("joint_state_topics is empty, expected one topic at least, for instance joint_states")
        if namespace:
            topics = [topic if topic.startswith("/") else f"{namespace.rstrip('/')}/{topic}" for topic in topics]
        self._topics = [node.resolve_topic_name(topic) for topic in topics]
        for topic in topics:
            node.hear(JointState, topic, self._on_message, SENSOR)

    def _on_message(self, heard: Heard) -> None:
        message = heard.message
        now_ns = self._node.steady.now().nanoseconds
        if heard.publisher not in self._publishers and heard.publisher != UNKNOWN and now_ns > self._look_ns:
            self._look_up()
            self._look_ns = now_ns + LOOK_NS  # the graph may come to know it later
        names = self._names.ours(message.name)
        stamp_ns = nanoseconds(message.header.stamp)
        refusal = self._take(names, message.position, stamp_ns, self._node.now_ns(), heard.publisher)
        if refusal is not None:
            last_ns, self._told[refusal.kind] = self._told.get(refusal.kind), now_ns
            if last_ns is None or now_ns - last_ns > QUIET_NS:
                self._node.get_logger().error(f"joint states ignored: {refusal.reason}")

    def _look_up(self) -> None:
        for topic in self._topics:
            for info in self._node.get_publishers_info_by_topic(topic):
                name = f"{info.node_namespace.rstrip('/')}/{info.node_name}"
                self._publishers[bytes(info.endpoint_gid).hex()] = f"{name} on {topic}"


class MergedJoints:
    """Joint states merged by joint, for who wants the newest position of all.

    Args:
        timeout_s: oldest reading of a joint that counts.
        use: called with the position (dof,), rad or m, ROS order, and the stamp of the arm joint that was read longest
            ago, ns; the array is the caller's.
        complain: called with why there is no position now, or with nothing where there is one.
        namespace: of the robot; the node's own where it is empty.
    """

    def __init__(
        self,
        node: MolmoNode,
        robot: Embodiment,
        timeout_s: float,
        use: Callable[[Array, int], None],
        complain: Callable[[str], None] = lambda reason: None,
        namespace: str = "",
    ) -> None:
        self._merged = MergedReadings(robot, timeout_s, node.param("unstamped_joint_states"))
        self._use, self._complain = use, complain
        JointTopics(node, robot, self._on_message, self._merged.publishers, namespace)

    def _on_message(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int, publisher: str
    ) -> Refusal | None:
        merged = self._merged.take(names, positions, stamp_ns, now_ns, publisher)
        self._complain(merged.problem)
        if merged.position is not None:
            self._use(merged.position, merged.stamp_ns)
        return merged.refusal
