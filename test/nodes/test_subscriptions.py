"""Every kind of publisher is heard, once each message, and told from the others.

Pins: `e_stop` published best effort was heard by nobody, and one device's "false" released a person's button.
"""

from __future__ import annotations

import time
import uuid

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_process import wait_until
from std_msgs.msg import Bool, String

from molmoact2_ros.nodes.ros.subscriptions import EveryPublisher, Heard

KINDS = {
    f"{reliability.name.lower()}, {durability.name.lower()}": QoSProfile(
        depth=10, reliability=reliability, durability=durability
    )
    for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)
    for durability in (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL)
}


class Listener:
    """A node that hears `topic` from everybody."""

    def __init__(self, msgtype: type) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        space = f"/t{uuid.uuid4().hex[:8]}"
        self.node = Node("listener", namespace=space, context=self.context)
        self.other = Node("other", namespace=space, context=self.context)
        self.heard: list[Heard] = []
        self.subscription = EveryPublisher(self.node, msgtype, "word", self.heard.append)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def wait(self, count: int) -> None:
        wait_until(
            lambda: len(self.heard) >= count,
            f"{count} messages",
            meanwhile=lambda: self.executor.spin_once(timeout_sec=0.0),
        )

    def settle(self, seconds: float = 0.3) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.subscription.destroy()
        self.subscription.destroy()
        self.executor.shutdown()
        self.node.destroy_node()
        self.other.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_publisher_is_heard_once_each_message_in_order(kind: str) -> None:
    with Listener(String) as listener:
        publisher = listener.other.create_publisher(String, "word", KINDS[kind])
        wait_until(lambda: publisher.get_subscription_count() >= (1 if "best" in kind else 2), "the listener")
        listener.settle(0.5)
        for i in range(5):
            publisher.publish(String(data=str(i)))
            listener.settle(0.05)
        listener.wait(5)
        listener.settle()
        assert [heard.message.data for heard in listener.heard] == ["0", "1", "2", "3", "4"]


def test_the_latched_word_from_before_is_heard() -> None:
    with Listener(Bool) as listener:
        listener.subscription.destroy()
        latched = listener.other.create_publisher(Bool, "word", KINDS["reliable, transient_local"])
        latched.publish(Bool(data=True))
        listener.subscription = EveryPublisher(listener.node, Bool, "word", listener.heard.append)
        listener.wait(1)
        assert listener.heard[0].message.data is True


def test_publishers_are_told_apart_by_the_identity_that_the_graph_shows() -> None:
    with Listener(Bool) as listener:
        publishers = [listener.other.create_publisher(Bool, "word", qos) for qos in KINDS.values()]
        wait_until(lambda: len(listener.subscription.present()) == len(publishers), "all publishers")
        wait_until(lambda: all(p.get_subscription_count() for p in publishers), "the listener")
        listener.settle(0.5)
        for publisher in publishers:
            publisher.publish(Bool(data=True))
        listener.wait(len(publishers))
        listener.settle()
        assert len(listener.heard) == len(publishers)
        assert {heard.publisher for heard in listener.heard} == listener.subscription.present()
        listener.other.destroy_publisher(publishers[0])
        wait_until(lambda: len(listener.subscription.present()) == len(publishers) - 1, "one gone")


def test_a_long_message_comes_whole() -> None:
    with Listener(String) as listener:
        publisher = listener.other.create_publisher(String, "word", 10)
        wait_until(lambda: publisher.get_subscription_count() >= 2, "the listener")
        publisher.publish(String(data="x" * 100_000))
        listener.wait(1)
        assert len(listener.heard[0].message.data) == 100_000
