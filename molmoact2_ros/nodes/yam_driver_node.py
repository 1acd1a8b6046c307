"""Driver node of two YAM arms: i2rt on two CAN channels, and hand guiding for demonstrations."""

from __future__ import annotations

from std_srvs.srv import SetBool

from molmoact2_ros.drivers.driver import Driver, StaleError
from molmoact2_ros.drivers.yam import YamConfig, YamDriver
from molmoact2_ros.nodes.driver_node import DriverNode
from molmoact2_ros.nodes.ros.node_base import main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.subscriptions import Heard


class YamDriverNode(DriverNode):
    """See `DriverNode` and `drivers/yam.py`. While the arms are guided by hand the executor can neither arm nor
    move."""

    PARAMETERS = (
        *DriverNode.LOOP,
        Parameter("left_channel", "can_left", "CAN channel of the left arm."),
        Parameter("right_channel", "can_right", "CAN channel of the right arm."),
        Parameter("can_interface", "socketcan", "Interface of python-can."),
        Parameter("gripper", "linear_4310", "i2rt's name of the gripper."),
        Parameter("gripper_limits", [0.0], "Gripper motor angles closed and open, rad; one value: find them at start."),
        Parameter("gripper_force", 50.0, "Most force of a blocked gripper, N.", 1.0, 100.0),
        Parameter("temperature_warn", 65.0, "Warn from this temperature of a motor on, degrees C.", 30.0, 120.0),
        Parameter("temperature_limit", 80.0, "From this temperature on the arms may not move, degrees C.", 30.0, 120.0),
    )

    def make_driver(self) -> Driver:
        keys: tuple[str, ...] = ("left_channel", "right_channel", "can_interface", "gripper", "gripper_force")
        keys += ("temperature_warn", "temperature_limit")
        limits = tuple(self.param("gripper_limits"))
        config = YamConfig(**{key: self.param(key) for key in keys}, gripper_limits=limits if len(limits) == 2 else ())
        self._driver = YamDriver(config, self.now_ns)
        self.serve(SetBool, "driver/hand_guiding", self._on_hand_guiding)
        return self._driver

    def _on_hand_guiding(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        try:
            self._guide(request.data)
        except StaleError as error:
            response.success, response.message = False, str(error)
        else:
            response.success = True
            response.message = "the arms float; they can be moved by hand" if request.data else "the arms hold"
        self._watch()
        return response

    def _guide(self, on: bool) -> None:
        """Begin or end guiding by hand; commands are shut out before the arms float, and until they are armed anew."""
        assert self._thread is not None
        if on:
            self._thread.loop.guide(True)
        try:
            self._driver.hand_guiding(on)
        finally:
            self._thread.loop.guide(self._driver.guided)

    def _on_e_stop(self, heard: Heard) -> None:
        if heard.message.data and self._driver.guided:
            try:
                self._guide(False)
            except StaleError as error:
                self.get_logger().error(f"e-stop: {error}")
        super()._on_e_stop(heard)


main = main_of(YamDriverNode)

if __name__ == "__main__":
    main()
