"""Reads the joints of an SO-100/101 that is moved by hand; its servos get neither torque nor goals."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import JointState

from molmoact2_ros.drivers.driver import StaleError
from molmoact2_ros.drivers.so101 import So101Config
from molmoact2_ros.drivers.so101_limp import LimpSo101
from molmoact2_ros.nodes.ros.messages import stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import SENSOR


class So101ReaderNode(MolmoNode):
    """See `drivers/so101_limp.py`. Invariant: it publishes fresh readings only, and writes nothing."""

    PARAMETERS = (
        Parameter("port", "", "Serial port of the arm: /dev/serial/by-id/..., which stays the same between boots."),
        Parameter("calibration_id", "so101", "Name of the calibration that lerobot-calibrate made (--robot.id)."),
        Parameter("calibration_dir", "", "Folder of the calibration file; empty: lerobot's own."),
        Parameter("rate_hz", 30.0, "Readings a second.", 1.0, 100.0),
    )

    def __init__(self) -> None:
        super().__init__("so101_reader")
        self._arm: LimpSo101 | None = None
        self._problem = ""

    def setup(self) -> None:
        config = So101Config(**{key: self.param(key) for key in ("port", "calibration_id", "calibration_dir")})
        self._arm = LimpSo101(config, self.now_ns)
        self._arm.connect()
        self._joints = self.output(JointState, "joint_states", SENSOR)
        self._message = JointState(name=list(self._arm.robot.joint_names))

    def start(self) -> None:
        self.every(1.0 / self.param("rate_hz"), self._read, steady=True)

    def teardown(self) -> None:
        arm, self._arm = self._arm, None
        if arm is not None:
            arm.close()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._problem:
            return DiagnosticStatus.ERROR, self._problem, {}
        return super().diagnose()

    def _read(self) -> None:
        if self._arm is None:
            return
        try:
            reading = self._arm.read()
        except StaleError as error:
            if not self._problem:  # on the edge only
                self.get_logger().error(f"no reading: {error}")
            self._problem = str(error)
            return
        self._problem = ""
        self._message.header.stamp = stamp_of(reading.stamp_ns)
        self._message.position = reading.positions.tolist()
        self._joints.publish(self._message)


main = main_of(So101ReaderNode)

if __name__ == "__main__":
    main()
