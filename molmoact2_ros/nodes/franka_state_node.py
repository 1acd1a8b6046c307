"""Beside franka_ros2: tells the executor of reflexes and of the user stop, and recovers from errors on request.

Needs franka_msgs, which comes with franka_ros2; without franka_ros2 `franka_driver_node` does the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action import ActionClient
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.franka_modes import Meaning, meaning
from molmoact2_ros.nodes.ros.node_base import LATCHED, SENSOR, MolmoNode, Parameter, main_of


def franka_types() -> tuple[Any, Any]:
    """Return franka_msgs' FrankaRobotState and ErrorRecovery.

    Raises:
        ValueError: franka_msgs is not installed; the message says how to get it.
    """
    try:
        messages, actions = (importlib.import_module(f"franka_msgs.{part}") for part in ("msg", "action"))
        return messages.FrankaRobotState, actions.ErrorRecovery
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"franka_msgs is not there ({error}): build franka_ros2 in this workspace "
            "(https://github.com/frankarobotics/franka_ros2) and source it"
        ) from None


def present_errors(errors: Any) -> list[str]:
    """Names of the flags that are set in a franka_msgs/Errors."""
    return [name for name in errors.get_fields_and_field_types() if getattr(errors, name) is True]


class FrankaStateNode(MolmoNode):
    """Invariant: `driver/state` and `e_stop` change only with the robot's mode."""

    PARAMETERS = (
        Parameter("state_topic", "franka_robot_state_broadcaster/robot_state", "franka_msgs/FrankaRobotState."),
        Parameter("recovery_action", "action_server/error_recovery", "franka_msgs/ErrorRecovery of franka_ros2."),
    )

    def __init__(self) -> None:
        super().__init__("franka_state")
        self._meaning: Meaning | None = None

    def setup(self) -> None:
        state_type, recovery_type = franka_types()
        self._recovery_type = recovery_type
        self._state = self.output(DiagnosticStatus, "driver/state", LATCHED)
        self._stop = self.output(Bool, "e_stop", LATCHED)
        self._recovery = ActionClient(self, recovery_type, self.param("recovery_action"))
        self.listen(state_type, self.param("state_topic"), self._on_state, SENSOR)
        self.serve(Trigger, "driver/recover", self._on_recover)

    def teardown(self) -> None:
        recovery, self._recovery = getattr(self, "_recovery", None), None
        if recovery is not None:
            recovery.destroy()
        self._meaning = None

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        now = self._meaning
        if now is None:
            return DiagnosticStatus.WARN, f"nothing heard on {self.param('state_topic')}", {}
        level = DiagnosticStatus.ERROR if now.fault or now.stopped else DiagnosticStatus.OK
        return level, now.fault or now.name, {"robot_mode": now.name}

    def _on_state(self, message: Any) -> None:
        self.take(meaning(int(message.robot_mode), present_errors(message.current_errors)))

    def take(self, now: Meaning) -> None:
        """Tell of a change of the robot's mode."""
        before, self._meaning = self._meaning, now
        if now == before:
            return
        if now.stopped != (before is not None and before.stopped):
            self._stop.publish(Bool(data=now.stopped))
        level = DiagnosticStatus.ERROR if now.fault else DiagnosticStatus.OK
        self._state.publish(DiagnosticStatus(level=level, name="driver", message=now.fault or now.name))
        if now.fault:
            self.get_logger().error(f"robot: {now.fault}")
        else:
            self.get_logger().info(f"robot: mode {now.name}")

    def _on_recover(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        # The answer of the action comes later, as a change of the mode; waiting here would stop the node.
        if not self._recovery.server_is_ready():
            response.message = f"no action server {self.param('recovery_action')}; is franka_ros2 running?"
            return response
        self._recovery.send_goal_async(self._recovery_type.Goal())
        response.success, response.message = True, "recovery asked for; disarm and arm when the mode is idle"
        return response


main = main_of(FrankaStateNode)

if __name__ == "__main__":
    main()
