"""The Franka's driver node on an emulated control box: recovery blocks nothing, and what is not controlled is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from franka_rig import Box
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.simulation.emulators.fci_link import Fault

MODULE = "molmoact2_ros.nodes.franka_driver_node"


class Cell(Box):
    """A box with the driver's node at it, and what the node says."""

    def __init__(self, companion: Companion) -> None:
        super().__init__()
        self.states: list[tuple[bytes, str]] = []
        self.acknowledged: list[JointState] = []
        self.readings: list[JointState] = []
        self.stops: list[bool] = []
        node = companion.node
        node.create_subscription(
            DiagnosticStatus, "driver/state", lambda m: self.states.append((m.level, m.message)), LATCHED
        )
        node.create_subscription(JointState, "driver/acknowledgement", self.acknowledged.append, SENSOR)
        node.create_subscription(JointState, "joint_states", self.readings.append, SENSOR)
        node.create_subscription(Bool, "e_stop", lambda m: self.stops.append(m.data), LATCHED)
        self.commands = node.create_publisher(JointState, "executor/command", NEWEST)
        self.recover = node.create_client(Trigger, "driver/recover")

    def said(self, level: bytes, text: str) -> bool:
        return bool(self.states) and self.states[-1][0] == level and text in self.states[-1][1]

    def ask(self) -> Trigger.Response:
        """Call driver/recover; returns its answer."""
        answer = self.recover.call_async(Trigger.Request())
        wait_until(answer.done, "an answer of driver/recover")
        return answer.result()


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    with Companion(namespace="/franka") as companion:
        one = Cell(companion)
        given = {"robot": "franka", "robot_ip": one.address, "realtime": False, "retry_s": 0.3}
        try:
            with NodeProcess(MODULE, ros_arguments(given, "/franka"), tmp_path / "driver.log"):
                wait_until(lambda: one.said(DiagnosticStatus.OK, "connected"), "the driver", 30.0)
                wait_until(lambda: one.recover.service_is_ready() and one.readings, "the service")
                yield one
        finally:
            one.close()


def test_recovery_answers_at_once_and_its_result_is_the_driver_s_state(cell: Cell):
    cell.fault(Fault.REFLEX)
    wait_until(lambda: cell.said(DiagnosticStatus.ERROR, "joint_reflex"), "the reflex")
    cell.fault(Fault.SLOW_RECOVERY)
    first = cell.ask()
    assert first.success and "recovery has begun" in first.message
    second = cell.ask()  # the first one lasts 1.5 s: the node answers meanwhile, and so it hears an e-stop
    assert not second.success and "under way" in second.message
    wait_until(lambda: cell.said(DiagnosticStatus.OK, "connected"), "the recovery")
    cell.fault(Fault.REFLEX)
    wait_until(lambda: cell.said(DiagnosticStatus.ERROR, "joint_reflex"), "the reflex")
    assert cell.ask().success  # the cause is still there, so the recovery fails
    wait_until(lambda: cell.said(DiagnosticStatus.ERROR, "call driver/recover"), "the failure")
    cell.fault(Fault.UNPLUG)
    wait_until(lambda: cell.said(DiagnosticStatus.WARN, ""), "the loss")
    wait_until(lambda: not cell.ask().success, "a refusal: there is nothing to recover")


def test_an_arm_that_is_guided_is_a_fault_with_its_cause_and_no_command_is_acknowledged(cell: Cell):
    cell.fault(Fault.GUIDING)
    wait_until(lambda: cell.said(DiagnosticStatus.ERROR, "mode guiding; it takes no commands"), "the cause")
    before, target = len(cell.acknowledged), np.array(cell.readings[-1].position)
    target[:7] += 0.01
    heard = len(cell.readings)
    for count in itertools.count(1):
        message = JointState(name=cell.readings[-1].name, position=target.tolist())
        message.header.stamp = cell.readings[-1].header.stamp
        cell.commands.publish(message)
        wait_until(lambda count=count: len(cell.readings) > heard + count, "readings")
        if count == 30:
            break
    assert len(cell.acknowledged) == before
    cell.fault(Fault.NONE)
    wait_until(lambda: cell.said(DiagnosticStatus.OK, "connected"), "control")
    cell.fault(Fault.USER_STOP)
    wait_until(lambda: cell.stops[-1:] == [True], "the user stop as e-stop")
    cell.fault(Fault.NONE)
    wait_until(lambda: cell.stops[-1:] == [False], "its release")
