"""Teleoperation node: a leader's readings out as `teleop/command`, stamped with when they were read.

It moves nothing: the executor takes the readings, holds them against its limits, and follows them between
`executor/take_over` and `executor/give_back`. A leader that cannot be read is silent here, and the executor then holds.
With `follow` a leader that has motors goes where the arm is as long as it does not drive, so that it matches when
somebody takes over.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from sensor_msgs.msg import JointState

from molmoact2_ros.drivers.driver import DriverError, MissingPackageError, StaleError
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS, MergedJoints
from molmoact2_ros.nodes.ros.messages import stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR
from molmoact2_ros.teleoperation.opening import KINDS, TeleoperatorConfig, open_teleoperator
from molmoact2_ros.teleoperation.teleoperator import Teleoperator

LOST_S, RETRY_S = 0.5, 1.0
"""Without a reading for so long the leader is connected anew, so often."""
ARM_S = 0.25
"""Where the arm is counts for so long."""
FOLLOW_RAD_S = 1.0
"""How fast a leader with motors goes to where the arm is."""
DRIVING = "teleop"


class TeleopNode(MolmoNode):
    """See the module. Invariant: it publishes fresh readings only, and a leader that drives has no torque."""

    PARAMETERS = (
        Parameter("teleoperator", "so101_leader", f"What a person drives with: {', '.join(KINDS)}."),
        Parameter("ports", [""], "Serial port of an SO leader; CAN channels of the left and the right YAM leader."),
        Parameter("calibration_id", "leader", "Of an SO leader: what lerobot-calibrate was told as --teleop.id."),
        Parameter("calibration_dir", "", "Folder of the calibration file; empty: lerobot's own."),
        Parameter("gripper", "linear_4310", "i2rt's name of the gripper of YAM leaders."),
        Parameter("can_interface", "socketcan", "Interface of python-can, of YAM leaders."),
        Parameter("rate_hz", 60.0, "Readings a second.", 5.0, 200.0),
        Parameter("follow", False, "A leader with motors goes where the arm is while it does not drive."),
        Parameter("speed", 0.1, "Of the tip at a full deflection of a gamepad, m/s.", 0.005, 0.5),
        Parameter("gripper_speed", 1.0, "Of the gripper with a gamepad or a keyboard, strokes a second.", 0.1, 5.0),
        *JOINT_STATE_PARAMETERS,
    )

    def __init__(self) -> None:
        super().__init__("teleop")
        self._device: Teleoperator | None = None
        self._forget()

    def _forget(self) -> None:
        self._connected = False
        self._problem = "not connected yet"
        self._told = ""
        self._handover = ""
        self._arm: NDArray[np.float64] | None = None
        self._arm_at = self._read_at = self._tried_at = -1e9
        self._goal: NDArray[np.float64] | None = None
        self._readings = 0

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._forget()
        robot = embodiment(self.param("robot"))
        names = ("calibration_id", "calibration_dir", "gripper", "can_interface", "speed", "gripper_speed")
        config = TeleoperatorConfig(
            kind=self.param("teleoperator"),
            ports=tuple(port for port in self.param("ports") if port),
            **{name: self.param(name) for name in names},
        )
        self._device = open_teleoperator(config, robot, self.now_ns)
        self._lead = self.output(JointState, "teleop/command", SENSOR)
        self._message = JointState(name=list(robot.joint_names))
        self._message.header.frame_id = config.kind
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)
        MergedJoints(self, robot, ARM_S, self._on_arm)

    def start(self) -> None:
        self.every(1.0 / self.param("rate_hz"), self._read, steady=True)

    def teardown(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            try:
                device.close()
            except DriverError as error:
                self.get_logger().error(str(error))

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        values = {"handover": self._handover, "readings": self._readings}
        if self._problem:
            return DiagnosticStatus.ERROR, f"{self.param('teleoperator')}: {self._problem}", values
        return DiagnosticStatus.OK, "drives" if self._drives else "ready; take over with executor/take_over", values

    # -- what is heard ----------------------------------------------------------------------------------------------

    def _on_executor(self, message: DiagnosticStatus) -> None:
        self._handover = next((pair.value for pair in message.values if pair.key == "handover"), "")

    def _on_arm(self, position: NDArray[np.float64], stamp_ns: int) -> None:
        self._arm, self._arm_at = position, self._steady_s()

    @property
    def _drives(self) -> bool:
        return self._handover == DRIVING

    def _steady_s(self) -> float:
        return float(self.steady.now().nanoseconds * 1e-9)

    # -- the leader -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        device, now = self._device, self._steady_s()
        if device is None:
            return
        try:
            if not self._connected or now - self._read_at > LOST_S:
                if now - self._tried_at < RETRY_S:
                    return
                self._tried_at = now
                self._goal, self._connected = None, False
                device.disconnect()
                device.connect()
                self._connected, self._read_at = True, self._steady_s()
            arm = self._arm if now - self._arm_at < ARM_S else None
            reading = device.lead(arm, self._drives)
            self._read_at = self._steady_s()
            self._publish(reading.positions, reading.stamp_ns)
            self._move(device, reading.positions, arm)
        except MissingPackageError as error:
            self.get_logger().fatal(str(error))
            self.finished = 1
        except (StaleError, DriverError) as error:
            self._complain(str(error))
        else:
            self._complain("")

    def _publish(self, positions: NDArray[np.float64], stamp_ns: int) -> None:
        self._message.header.stamp = stamp_of(stamp_ns)
        self._message.position = positions.tolist()
        self._lead.publish(self._message)
        self._readings += 1

    def _move(self, device: Teleoperator, leader: NDArray[np.float64], arm: NDArray[np.float64] | None) -> None:
        """Have a leader with motors go where the arm is, or let go of it."""
        if not self.param("follow") or self._drives or arm is None or not self._handover:
            self._goal = None
            device.release()
            return
        step = FOLLOW_RAD_S / self.param("rate_hz")
        goal = leader if self._goal is None else self._goal
        self._goal = goal + np.clip(arm - goal, -step, step)
        device.follow(self._goal)

    def _complain(self, problem: str) -> None:
        if problem and problem != self._told:  # on the edge only
            self.get_logger().error(f"no reading of the leader: {problem}")
        elif self._problem and not problem:
            self.get_logger().info("the leader is read")
        self._problem = self._told = problem


main = main_of(TeleopNode)

if __name__ == "__main__":
    main()
