"""How a leader and the person at it reach the executor: `teleop/command` and the two services of a handover."""

from __future__ import annotations

from collections.abc import Callable

from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from molmoact2_ros.execution.handover import Handover
from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import SENSOR
from molmoact2_ros.nodes.ros.subscriptions import UNKNOWN, Heard

TOPIC = "teleop/command"


class HandoverTopics:
    """Hears `teleop/command` and offers `executor/take_over` and `executor/give_back` until teardown.

    Args:
        told: called after what may have changed the executor's state.
    """

    def __init__(self, node: MolmoNode, handover: Handover, told: Callable[[], None]) -> None:
        self._node, self._handover, self._told = node, handover, told
        self._refused = ""
        node.hear(JointState, TOPIC, self._on_leader, SENSOR)
        node.serve(Trigger, "executor/take_over", self._on_take_over)
        node.serve(Trigger, "executor/give_back", self._on_give_back)

    def _on_leader(self, heard: Heard) -> None:
        message, publishers = heard.message, self._handover.leader.publishers
        if heard.publisher not in publishers and heard.publisher != UNKNOWN:
            self._look_up()
        stamp_ns = nanoseconds(message.header.stamp)
        error = self._handover.on_leader(message.name, message.position, stamp_ns, self._node.now_ns(), heard.publisher)
        if error is not None and error.kind != self._refused:  # on the edge only
            self._node.get_logger().error(f"leader: {error}")
            self._told()
        self._refused = "" if error is None else error.kind

    def _look_up(self) -> None:
        for info in self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(TOPIC)):
            name = f"{info.node_namespace.rstrip('/')}/{info.node_name}"
            self._handover.leader.publishers[bytes(info.endpoint_gid).hex()] = name

    def _on_take_over(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self._handover.take_over(self._node.now_ns())
        self._told()
        return response

    def _on_give_back(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self._handover.give_back(self._node.now_ns())
        self._told()
        return response
