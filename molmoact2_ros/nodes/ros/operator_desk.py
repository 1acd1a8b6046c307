"""One robot as whoever operates it has it before him: what is heard of it, the stop button, and what is asked of it.

The console's node and the panel's both sit at such a desk, so that both press, ask and are refused in the same way.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from std_msgs.msg import Bool, String

from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.operator_requests import AGAIN, CALLS, Asked, OperatorRequests
from molmoact2_ros.nodes.ros.qos import LATCHED
from molmoact2_ros.nodes.ros.robot_watch import RobotWatch

MOVING = ("arm", "start", "take", "give")


class OperatorDesk:
    """Stays until the node's teardown, which calls `close`. For its `setup`. `stop` and `ask` may be called from any
    thread, everything else from the spinning one.

    Invariant: whoever presses `stop` last wins; a reset that is under way is given up by it.

    Args:
        answer: called in the spinning thread, once for every request but `stop`, with whether it was done, and words.
        changed: called when the executor's state has changed.
        namespace: of the robot; the node's own where it is empty.
        me: what a press of this button is called.
        button: the node publishes `e_stop`; without it `stop` does nothing.
        asks_policy: a task is set at the policy, which answers; False: it is published. None: it is set at the policy,
            and published for the simulated cell's expert.
    """

    def __init__(
        self,
        node: MolmoNode,
        answer: Callable[[Asked, bool, str], None],
        changed: Callable[[], None],
        *,
        namespace: str = "",
        me: str = "this console",
        button: bool = True,
        asks_policy: bool | None = True,
    ) -> None:
        self._node, self._answer, self._asks_policy = node, answer, asks_policy
        self._lock = threading.Lock()
        self._pressed, self._presses = False, 0
        self._queue: deque[Mapping[str, Any]] = deque()
        self.watch = RobotWatch(node, namespace, me, changed)
        self._requests = OperatorRequests(
            node, answer, lambda: self._pressed, lambda: self.watch.stopped, self.watch.name
        )
        self._tell = None if asks_policy else node.output(String, self.watch.name("task"), LATCHED)
        self._button = node.output(Bool, self.watch.name("e_stop"), LATCHED) if button else None
        self._wake = node.create_guard_condition(self._take)
        node.every(0.05, self._look_after, inactive=True, steady=True)

    def close(self) -> None:
        """The node's publishers go: nothing is pressed any more. Safe to call twice."""
        with self._lock:
            self._button = None
            wake, self._wake = self._wake, None
        if wake is not None:
            self._node.destroy_guard_condition(wake)

    # -- any thread -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Press the e-stop, whatever the spinning thread does meanwhile."""
        with self._lock:
            self._pressed = True
            self._presses += 1
            self._publish_button()

    def ask(self, asked: Asked) -> None:
        """Ask for what `ask` names, a key of `CALLS`; answered in the spinning thread."""
        with self._lock:
            self._queue.append({**asked, "presses": self._presses})
            if self._wake is not None:
                self._wake.trigger()

    # -- the spinning thread ----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say once more whether the button is pressed."""
        with self._lock:
            self._publish_button()

    def ready(self) -> list[str]:
        """Requests that can be made."""
        ready = self._requests.ready()
        return [*ready, "task"] if self._publishes_tasks() and "task" not in ready else ready

    def state(self) -> dict[str, Any]:
        """See `RobotWatch.state`."""
        return self.watch.state(self.ready())

    def _publishes_tasks(self) -> bool:
        if self._asks_policy is None:
            return self.watch.speaks("expert") and not self.watch.speaks("policy")
        return not self._asks_policy

    def _let_go(self, presses: int) -> bool:
        """Release the button, but for a press after the first `presses`."""
        with self._lock:
            if self._presses == presses:
                self._pressed = False
                self._publish_button()
            return not self._pressed

    def _publish_button(self) -> None:
        if self._button is not None:
            self._button.publish(Bool(data=self._pressed))

    def _look_after(self) -> None:
        self._take()  # a trigger that came while the node was being made is not seen
        self._requests.look_after()

    def _take(self) -> None:
        while self._queue:
            asked = self._queue.popleft()
            try:
                self._begin(asked)
            except (KeyError, TypeError, ValueError) as error:
                self._answer(asked, False, f"not understood: {error!r}")

    def _begin(self, asked: Asked) -> None:
        ask = asked["ask"]
        if ask not in CALLS:
            self._answer(asked, False, f"there is no request {ask!r}; there are: {', '.join(CALLS)}")
            return
        if ask == "task" and self._tell is not None and self._publishes_tasks():
            self._tell.publish(String(data=str(asked["text"])))
            self._answer(asked, True, f"told: {asked['text']}")
            return
        others = self._node.count_publishers(self.watch.name("executor/state")) - 1
        if ask in MOVING and others > 0:
            where = f"in {self.watch.namespace} of ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}"
            self._answer(asked, False, f"there is another executor {where}: end it, two must not command one arm")
            return
        if ask == "reset" and not self._let_go(asked["presses"]):
            self._answer(asked, False, AGAIN)
            return
        self._requests.begin(asked)
