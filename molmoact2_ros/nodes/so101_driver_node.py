"""Driver node of an SO-100/101 arm: lerobot's follower on a serial port."""

from __future__ import annotations

from molmoact2_ros.drivers.driver import Driver
from molmoact2_ros.drivers.so101 import So101Config, So101Driver
from molmoact2_ros.nodes.driver_node import DriverNode
from molmoact2_ros.nodes.ros.node_base import main_of
from molmoact2_ros.nodes.ros.parameters import Parameter


class So101DriverNode(DriverNode):
    """See `DriverNode` and `drivers/so101.py`."""

    PARAMETERS = (
        *DriverNode.LOOP,
        Parameter("port", "", "Serial port of the arm: /dev/serial/by-id/..., which stays the same between boots."),
        Parameter("calibration_id", "so101", "Name of the calibration that lerobot-calibrate made (--robot.id)."),
        Parameter("calibration_dir", "", "Folder of the calibration file; empty: lerobot's own."),
        Parameter("write_calibration", False, "Write the calibration file's values to servos that hold others."),
        Parameter("torque_off_on_close", False, "Let the arm go limp when the node ends; otherwise it holds."),
        Parameter("temperature_warn", 55.0, "Warn from this temperature of a servo on, degrees C.", 30.0, 90.0),
        Parameter("temperature_limit", 65.0, "From this temperature on the arm may not move, degrees C.", 30.0, 90.0),
        Parameter("voltage_min", 6.0, "Lowest normal supply voltage, V.", 0.0, 20.0),
        Parameter("voltage_max", 13.0, "Highest normal supply voltage, V.", 0.0, 20.0),
    )

    def make_driver(self) -> Driver:
        keys: tuple[str, ...] = ("port", "calibration_id", "calibration_dir", "write_calibration")
        keys += ("torque_off_on_close", "temperature_warn", "temperature_limit")
        config = So101Config(
            **{key: self.param(key) for key in keys},
            voltage_range=(self.param("voltage_min"), self.param("voltage_max")),
        )
        return So101Driver(config, self.now_ns)


main = main_of(So101DriverNode)

if __name__ == "__main__":
    main()
