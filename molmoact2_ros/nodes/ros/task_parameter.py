"""The task as a parameter of the policy node.

A topic gives no answer, and `ros2 topic pub --once` leaves before everybody has discovered it. `ros2 param set` waits
for the node and is answered. What is set goes out on `task`, so that every node hears one task in one way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from std_msgs.msg import String

from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import RELIABLE

NAME = "task"


class TaskParameter:
    """See the module. The parameter shows the present task, whoever gave it.

    Args:
        node: has the parameter declared, changeable.
        problem: why a text cannot be a task, empty when it can; called with the text.
    """

    def __init__(self, node: MolmoNode, problem: Callable[[str], str]) -> None:
        self._node, self._problem = node, problem
        self._publisher: Publisher | None = None
        self._follows = False
        node.add_on_set_parameters_callback(self._on_set)

    def open(self) -> None:
        """From now on take tasks. For `setup`.

        Raises:
            ValueError: a parameter file or argument holds a task. A node that is started again after a crash would
                move the arm by it, and nobody would have asked.
        """
        text = self._node.param(NAME)
        if text:
            name = self._node.get_fully_qualified_name()
            raise ValueError(f"task is given to a node that runs: ros2 param set {name} {NAME} {text!r}")
        # Volatile: a task that was set once must not reach a node that starts after somebody published another one.
        self._publisher = self._node.output(String, NAME, RELIABLE)

    def close(self) -> None:
        """The node forgets its task. For `teardown`."""
        self._publisher = None
        if self._node.context.ok():  # not so at the end of a process that was shut down from outside
            self.follow("")

    def follow(self, text: str) -> None:
        """Show the task that was heard."""
        self._follows = True
        try:
            self._node.set_parameters([Parameter(NAME, Parameter.Type.STRING, text)])
        finally:
            self._follows = False

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        given = [parameter for parameter in parameters if parameter.name == NAME]
        if not given or self._follows:
            return SetParametersResult(successful=True)
        text = str(given[-1].value)
        reason = self._problem(text) if self._publisher is not None else "the node is not configured: activate it first"
        if not reason and self._publisher is not None:
            self._publisher.publish(String(data=text))
        return SetParametersResult(successful=not reason, reason=reason)
