"""A topic whose last message reaches everyone who asks for it, late and without asking for latched messages too."""

from __future__ import annotations

from typing import Any

from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import LATCHED


class LatchedOutput:
    """Publishes latched, and again when a subscriber comes: a display that a user adds by hand is volatile, and would
    stay empty until the next message, which here may never come. Call `renew` now and then."""

    def __init__(self, node: MolmoNode, msgtype: type, topic: str) -> None:
        self._publisher = node.output(msgtype, topic, LATCHED)
        self._last: Any = None
        self._subscribers = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._publisher.get_subscription_count())

    def publish(self, message: Any) -> None:
        """Publish `message`; it is the last one until the next."""
        self._last = message
        self._publisher.publish(message)

    def renew(self) -> None:
        """Publish the last message again if there are more subscribers than before."""
        now = self._publisher.get_subscription_count()
        if now > self._subscribers and self._last is not None:
            self._publisher.publish(self._last)
        self._subscribers = now
