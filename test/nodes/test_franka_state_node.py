"""Modes of a Franka as states of the executor, and what the node asks of franka_ros2: with franka_msgs' own types.

They have no wheel and are built from their definitions (`ros_interfaces`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from output_cell import START_S, Server
from ros_interfaces import load_interfaces
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.franka_modes import NAMES, REFLEX, USER_STOPPED, meaning
from molmoact2_ros.nodes.franka_state_node import FrankaStateNode, franka_types, present_errors
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR


def test_a_reflex_is_a_fault_with_its_cause_and_the_user_stop_an_e_stop():
    reflex = meaning(REFLEX, ["joint_reflex", "cartesian_reflex"])
    assert reflex.fault == "reflex: joint_reflex, cartesian_reflex; call driver/recover" and not reflex.stopped
    stopped = meaning(USER_STOPPED)
    assert stopped.stopped and stopped.fault == ""
    for mode in (1, 2, 6):
        assert meaning(mode).fault == "" and not meaning(mode).stopped
    for mode in (0, 3, 99):
        assert "takes no commands" in meaning(mode).fault
    assert NAMES[REFLEX] == "reflex" and NAMES[USER_STOPPED] == "user stopped"


class Errors:
    joint_reflex, power_limit_violation = True, False

    def get_fields_and_field_types(self):
        return {"joint_reflex": "boolean", "power_limit_violation": "boolean"}


def test_the_errors_that_are_set_are_named():
    assert present_errors(Errors()) == ["joint_reflex"]


def test_without_franka_ros2_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "franka_msgs.msg", None)
    with pytest.raises(ValueError, match=r"franka_msgs is not there .*build franka_ros2"):
        franka_types()


def test_changes_of_the_mode_reach_the_executor_once():
    with Companion(namespace="/franka") as companion:
        states: list[DiagnosticStatus] = []
        stops: list[bool] = []
        companion.node.create_subscription(DiagnosticStatus, "driver/state", states.append, LATCHED)
        companion.node.create_subscription(Bool, "e_stop", lambda message: stops.append(message.data), LATCHED)
        node = FrankaStateNode()
        try:
            node._state = node.output(DiagnosticStatus, "/franka/driver/state", LATCHED)
            node._stop = node.output(Bool, "/franka/e_stop", LATCHED)
            wait_until(
                lambda: node._state.get_subscription_count() and node._stop.get_subscription_count(), "the listener"
            )
            for mode, heard in ((1, 1), (1, 1), (REFLEX, 2), (REFLEX, 2), (1, 3), (USER_STOPPED, 4), (1, 5)):
                node.take(meaning(mode))
                wait_until(lambda heard=heard: len(states) >= heard, "driver/state")
            wait_until(lambda: len(stops) == 2, "e_stop")
        finally:
            node.release()
            node.destroy_node()
    levels = [state.level for state in states]
    assert levels == [DiagnosticStatus.OK, DiagnosticStatus.ERROR, *[DiagnosticStatus.OK] * 3]
    assert stops == [True, False]


class Box:
    """franka_ros2's side: the broadcaster's state at 20 Hz, error recovery, homing, and what the node says."""

    def __init__(self, companion: Companion, name: str = "") -> None:
        from franka_msgs.action import ErrorRecovery, Homing
        from franka_msgs.msg import FrankaRobotState

        node = companion.node
        self.companion = companion
        self.states: list[DiagnosticStatus] = []
        self.stops: list[bool] = []
        self.message: Any = FrankaRobotState(robot_mode=1)
        self.tells = True
        self._publisher = node.create_publisher(FrankaRobotState, "franka_robot_state_broadcaster/robot_state", SENSOR)
        node.create_timer(0.05, lambda: self.tells and self._publisher.publish(self.message))
        node.create_subscription(DiagnosticStatus, "driver/state", self.states.append, LATCHED)
        node.create_subscription(Bool, "e_stop", lambda message: self.stops.append(message.data), LATCHED)
        self.executor = node.create_publisher(DiagnosticStatus, "executor/state", LATCHED)
        self.recovery = Server(node, ErrorRecovery, "action_server/error_recovery", abort=1)
        self.homing = Server(node, Homing, "franka_gripper/homing", fail=1)

    def await_state(self, words: str) -> None:
        wait_until(lambda: self.states and words in self.states[-1].message, f"driver/state: {words}", START_S)

    def ask(self, service: str) -> tuple[bool, str]:
        answer = self.companion.call(Trigger, f"driver/{service}", Trigger.Request(), START_S)
        return answer.success, answer.message


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    packages = load_interfaces()
    arguments = ros_arguments({"state_timeout_s": 0.5}, "/franka")
    process = NodeProcess("molmoact2_ros.nodes.franka_state_node", arguments, tmp_path / "log", [packages])
    with Companion(namespace="/franka") as companion:
        box = Box(companion)
        with process:
            yield box


def test_beside_franka_ros2(box: Box) -> None:
    box.await_state("idle")
    box.message.current_errors.joint_velocity_violation = True
    box.message.robot_mode = REFLEX
    box.await_state("reflex: joint_velocity_violation; call driver/recover")
    assert box.states[-1].level == DiagnosticStatus.ERROR

    assert box.ask("recover") == (False, "action_server/error_recovery was aborted")
    assert box.ask("recover") == (True, "recovered; disarm and arm when driver/state is OK")
    box.message = type(box.message)(robot_mode=USER_STOPPED)
    wait_until(lambda: box.stops == [True], "the user stop")
    box.message = type(box.message)(robot_mode=1)
    wait_until(lambda: box.stops == [True, False], "its end")

    box.executor.publish(DiagnosticStatus(message="HOLDING"))
    wait_until(lambda: box.ask("home_gripper")[1].startswith("the executor is HOLDING; disarm it first"), "a refusal")
    assert box.homing.goals == []
    box.executor.publish(DiagnosticStatus(message="DISARMED"))
    wait_until(lambda: box.ask("home_gripper")[1] == "the hand was not homed: no reason given", "a failed homing")
    assert box.ask("home_gripper") == (True, "the hand is homed")
    assert len(box.homing.goals) == 2

    # joint_state_publisher goes on with the last angles when the box has gone: the mode's silence tells.
    box.tells = False
    box.await_state("robot_state silent for 0.5 s; is franka_ros2 running?")
    assert box.states[-1].level == DiagnosticStatus.ERROR
    box.tells = True
    box.await_state("idle")
