"""A leader arm on an emulated bus in the test's process, read by the real teleop node, beside the executor's cell."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from fault_cell import ROBOT, FaultCell
from ros_process import NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from molmoact2_ros.nodes.ros.qos import SENSOR
from molmoact2_ros.simulation.emulators.leader import CALIBRATION, PORT, LeaderRig

TELEOP = "molmoact2_ros.nodes.teleop_node"
ARM = ROBOT.arms[0]


class Person:
    """Moves the leader in a thread of its own: `wants` is where to (6,), rad. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rig = LeaderRig(folder)
        self.wants = ROBOT.rest_position.copy()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._move, daemon=True)

    def __enter__(self) -> Person:
        self.rig.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(2.0)
        self.rig.__exit__()

    def _move(self) -> None:
        while not self._ended.wait(0.005):
            self.rig.hand(self.wants)

    def sway(self, seconds: float, reach: float = 0.25) -> None:
        """Move every joint of the arm away and back, smoothly."""
        begun, base = time.monotonic(), self.wants.copy()
        while (gone := time.monotonic() - begun) < seconds:
            self.wants = base.copy()
            self.wants[ARM] += reach * np.sin(2.0 * np.pi * gone / seconds) * np.array([1, -1, 1, 1, 1])
            self._ended.wait(0.005)
        self.wants = base


class TeleopCell:
    """What is heard of a handover, and its services."""

    def __init__(self, cell: FaultCell) -> None:
        self.cell = cell
        self.driving: list[tuple[float, str]] = []
        self.leads: list[np.ndarray] = []
        node = cell.node
        node.create_subscription(Header, "executor/driving", self._on_driving, SENSOR)
        node.create_subscription(JointState, "teleop/command", self._on_lead, SENSOR)

    def _on_driving(self, message: Header) -> None:
        self.driving.append((message.stamp.sec + message.stamp.nanosec * 1e-9, message.frame_id))

    def _on_lead(self, message: JointState) -> None:
        self.leads.append(np.array(message.position))

    def call(self, name: str) -> Trigger.Response:
        return self.cell.companion.call(Trigger, f"executor/{name}", Trigger.Request())

    def take_over(self) -> None:
        said = [""]

        def done() -> bool:
            response = self.call("take_over")
            said[0] = response.message
            return bool(response.success)

        wait_until(done, lambda: f"the takeover; {said[0]}", 20.0)
        self.await_handover("teleop")

    def give_back(self) -> None:
        assert self.call("give_back").success
        self.await_handover("policy")

    def await_handover(self, wanted: str) -> None:
        wait_until(
            lambda: self.cell.value("handover") == wanted,
            lambda: f"{wanted}; it is with {self.cell.value('handover')}: {self.cell.told()}",
            20.0,
        )


def teleop_process(folder: Path, person: Person, log: str = "teleop.log", **parameters: object) -> NodeProcess:
    """The teleop node that reads the person's leader."""
    given = {
        "ports": [str(person.folder / PORT)],
        "calibration_dir": str(person.folder),
        "calibration_id": CALIBRATION,
        **parameters,
    }
    return NodeProcess(TELEOP, ros_arguments(given), folder / log)
