"""Beside franka_ros2: tells the executor of reflexes and of the user stop, recovers from errors and homes the hand.

Needs franka_msgs, which comes with franka_ros2; without franka_ros2 `franka_driver_node` does the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action import ActionClient
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.franka_modes import Meaning, meaning, silent
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR

ENDINGS = {GoalStatus.STATUS_ABORTED: "aborted", GoalStatus.STATUS_CANCELED: "cancelled by somebody"}
WATCH_S = 0.1
MOVING = ("HOLDING", "TRACKING", "STOPPING")
"""States in which the executor commands the arm, and may command the hand."""


def franka_types() -> tuple[Any, Any, Any]:
    """Return franka_msgs' FrankaRobotState, ErrorRecovery and Homing.

    Raises:
        ValueError: franka_msgs is not installed; the message says how to get it.
    """
    try:
        messages, actions = (importlib.import_module(f"franka_msgs.{part}") for part in ("msg", "action"))
        return messages.FrankaRobotState, actions.ErrorRecovery, actions.Homing
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"franka_msgs is not there ({error}): build franka_ros2 in this workspace "
            "(https://github.com/frankarobotics/franka_ros2) and source it"
        ) from None


def present_errors(errors: Any) -> list[str]:
    """Names of the flags that are set in a franka_msgs/Errors."""
    return [name for name in errors.get_fields_and_field_types() if getattr(errors, name) is True]


class FrankaStateNode(MolmoNode):
    """Invariant: `driver/state` and `e_stop` change only with the robot's mode, or with its silence."""

    PARAMETERS = (
        Parameter("state_topic", "franka_robot_state_broadcaster/robot_state", "franka_msgs/FrankaRobotState."),
        Parameter(
            "state_timeout_s", 1.0, "The robot's mode is unknown when it was not told for so long, s.", 0.1, 10.0
        ),
        Parameter("recovery_action", "action_server/error_recovery", "franka_msgs/ErrorRecovery of franka_ros2."),
        Parameter("homing_action", "franka_gripper/homing", "franka_msgs/Homing of franka_ros2's gripper node."),
    )

    def __init__(self) -> None:
        super().__init__("franka_state")
        self._meaning: Meaning | None = None
        self._heard_ns = 0
        self._armed = ""

    def setup(self) -> None:
        state_type, recovery_type, homing_type = franka_types()
        self._state = self.output(DiagnosticStatus, "driver/state", LATCHED)
        self._stop = self.output(Bool, "e_stop", LATCHED)
        self._recovery = ActionClient(self, recovery_type, self.param("recovery_action"))
        self._homing = ActionClient(self, homing_type, self.param("homing_action"))
        self.listen(state_type, self.param("state_topic"), self._on_state, SENSOR)
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)
        self.serve(Trigger, "driver/recover", self._on_recover)
        self.serve(Trigger, "driver/home_gripper", self._on_home)
        self.every(WATCH_S, self._watch, inactive=True)

    def teardown(self) -> None:
        for name in ("_recovery", "_homing"):
            client = self.__dict__.pop(name, None)
            if client is not None:
                client.destroy()
        self._meaning, self._armed = None, ""

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        now = self._meaning
        if now is None:
            return DiagnosticStatus.WARN, f"nothing heard on {self.param('state_topic')}", {}
        level = DiagnosticStatus.ERROR if now.fault or now.stopped else DiagnosticStatus.OK
        return level, now.fault or now.name, {"robot_mode": now.name}

    def _on_state(self, message: Any) -> None:
        self._heard_ns = self.now_ns()
        self.take(meaning(int(message.robot_mode), present_errors(message.current_errors)))

    def _on_executor(self, message: DiagnosticStatus) -> None:
        self._armed = message.message if message.message in MOVING else ""

    def _watch(self) -> None:
        """A mode that is not told any more is not known: joint_state_publisher goes on repeating the last angles."""
        timeout_s = float(self.param("state_timeout_s"))
        if self._meaning is not None and self.now_ns() - self._heard_ns > timeout_s * 1e9:
            self.take(silent(self._meaning, self.param("state_topic"), timeout_s))

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

    async def _on_recover(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        problem, _result = await self._asked(self._recovery, self.param("recovery_action"))
        response.success = not problem
        response.message = problem or "recovered; disarm and arm when driver/state is OK"
        return response

    async def _on_home(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Homing opens and closes the hand: it lets go of what is held."""
        if self._armed:
            response.message = f"the executor is {self._armed}; disarm it first: homing moves the hand"
            return response
        problem, result = await self._asked(self._homing, self.param("homing_action"))
        if not problem and not result.success:
            problem = f"the hand was not homed: {result.error or 'no reason given'}"
        response.success, response.message = not problem, problem or "the hand is homed"
        return response

    async def _asked(self, client: ActionClient, name: str) -> tuple[str, Any]:
        """Send a goal and wait for its result, while all else goes on; returns what went wrong, and the result."""
        if not client.server_is_ready():
            return f"no action server {self.resolve_topic_name(name)}; is franka_ros2 running?", None
        handle = await client.send_goal_async(client._action_type.Goal())
        if not handle.accepted:
            return f"{name} was refused", None
        answer = await handle.get_result_async()
        if answer.status != GoalStatus.STATUS_SUCCEEDED:
            said = getattr(answer.result, "error", "")
            ending = ENDINGS.get(answer.status, f"ended with status {answer.status}")
            return f"{name} was {ending}" + (f": {said}" if said else ""), answer.result
        return "", answer.result


main = main_of(FrankaStateNode)

if __name__ == "__main__":
    main()
