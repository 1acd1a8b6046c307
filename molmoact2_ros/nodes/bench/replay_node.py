"""Stands in for an arm and for a policy, so that an executor can be measured and hurt without either.

The arm is where it was told to be one reading ago, and no faster than its joints are. The policy swings every arm joint
about the rest pose at an even speed. With `measure_s` the node also arms the executor, lets it follow for so long,
writes down what its command loop says of itself and ends.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.nodes.ros.messages import chunk_message
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import ALLOW_MOTION, Parameter
from molmoact2_ros.nodes.ros.qos import NEWEST, RELIABLE, SENSOR

REACH_RAD = 0.35
"""How far from the rest pose the arm joints swing."""


def swing(robot: Embodiment, position: NDArray[np.float64], direction: float, speed: float) -> JointTrajectory:
    """A chunk, not yet stamped, that moves every arm joint from `position` (dof,) at `speed` rad/s, limits kept."""
    rows = np.tile(position, (robot.horizon, 1))
    arm = [j for j in range(robot.dof) if j not in robot.gripper_indices]
    rows[:, arm] += direction * speed * (np.arange(robot.horizon) + 1)[:, None] / robot.rate_hz
    rows = np.clip(rows, robot.limits.lower, robot.limits.upper)
    return chunk_message(rows.tolist(), robot.rate_hz, 0, robot.joint_names)


class ReplayNode(MolmoNode):
    """See the module. Invariant: what it publishes depends on the executor's commands and the clock alone."""

    PARAMETERS = (
        Parameter("arm", True, "Stand in for the arm and its driver."),
        Parameter("policy", True, "Stand in for the policy."),
        ALLOW_MOTION,
        Parameter("joint_rate_hz", 100.0, "Readings a second.", 1.0, 500.0),
        Parameter("chunk_rate_hz", 5.0, "Chunks a second.", 0.1, 50.0),
        Parameter("speed", 0.3, "Of the arm joints, rad/s.", 0.0, 2.0),
        Parameter("measure_s", 0.0, "Arm the executor, measure for so long and end; 0: only play, s.", 0.0, 600.0),
        Parameter("report", "replay.json", "Where the measurement is written."),
    )

    def __init__(self) -> None:
        super().__init__("replay")
        self._executor_says: dict[str, str] = {}
        self._began_ns: int | None = None

    def setup(self) -> None:
        if self.param("measure_s") > 0.0:
            self.require_motion_allowed()
        self._robot = embodiment(self.param("robot"))
        self._position = self._robot.rest_position.copy()
        self._target = self._position
        self._step = self._robot.limits.velocity / self.param("joint_rate_hz")
        self._direction = 1.0
        if self.param("arm"):
            self._joint_states = self.output(JointState, "joint_states", SENSOR)
            self.listen(JointState, "executor/command", self._on_command, SENSOR)
        else:
            self.listen(JointState, "joint_states", self._on_joint_state, SENSOR)
        if self.param("policy"):
            self._chunks = self.output(JointTrajectory, "policy/action_chunk", NEWEST)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        self._arming = self.create_client(SetBool, "executor/arm")

    def start(self) -> None:
        if self.param("arm"):
            self.every(1.0 / self.param("joint_rate_hz"), self._read_encoders)
        if self.param("policy"):
            self.every(1.0 / self.param("chunk_rate_hz"), self._infer)
        if self.param("measure_s") > 0.0:
            self.every(0.5, self._measure)

    def teardown(self) -> None:
        if getattr(self, "_arming", None) is not None:
            self.destroy_client(self._arming)
            self._arming = None

    def _on_command(self, message: JointState) -> None:
        self._target = np.array(message.position)

    def _on_joint_state(self, message: JointState) -> None:
        self._position = np.array(message.position)

    def _read_encoders(self) -> None:
        self._position = self._position + np.clip(self._target - self._position, -self._step, self._step)
        message = JointState(name=list(self._robot.joint_names), position=array("d", self._position))
        message.header.stamp = self.get_clock().now().to_msg()
        self._joint_states.publish(message)

    def _infer(self) -> None:
        away = float((self._position - self._robot.rest_position)[self._robot.arms[0]].mean())
        if abs(away) > REACH_RAD:
            self._direction = -float(np.sign(away))
        message = swing(self._robot, self._position, self._direction, self.param("speed"))
        message.header.stamp = self.get_clock().now().to_msg()
        self._chunks.publish(message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("/executor"):
                self._executor_says = {pair.key: pair.value for pair in status.values}
                self._executor_says["state"] = status.message.partition(":")[0]

    def _measure(self) -> None:
        following = self._executor_says.get("state") == "TRACKING"
        if self._began_ns is None:
            if following:
                self._began_ns = self.now_ns()
            elif self._executor_says and self._arming.service_is_ready():
                self._arming.call_async(SetBool.Request(data=True))
        elif (self.now_ns() - self._began_ns) * 1e-9 > self.param("measure_s"):
            Path(self.param("report")).write_text(json.dumps({"following": following, **self._executor_says}))
            self.finished = 0 if following else 1


main = main_of(ReplayNode)

if __name__ == "__main__":
    main()
