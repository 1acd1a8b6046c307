"""Modes of a Franka as states of the executor. franka_msgs has no wheel: what needs it is tested up to its message."""

from __future__ import annotations

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from ros_process import Companion, wait_until
from std_msgs.msg import Bool

from molmoact2_ros.drivers.franka_modes import NAMES, REFLEX, USER_STOPPED, meaning
from molmoact2_ros.nodes.franka_state_node import FrankaStateNode, franka_types, present_errors
from molmoact2_ros.nodes.ros.node_base import LATCHED


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


def test_without_franka_ros2_one_line_says_what_is_missing():
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
