"""Driver node of a Franka arm without franka_ros2: pylibfranka, user stop as e-stop, and error recovery."""

from __future__ import annotations

from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.driver import Driver, StaleError
from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver
from molmoact2_ros.nodes.driver_node import DriverNode
from molmoact2_ros.nodes.ros.node_base import LATCHED, Parameter, main_of


class FrankaDriverNode(DriverNode):
    """See `DriverNode` and `drivers/franka.py`. The user stop presses `e_stop` and releases it again; the executor
    stays stopped until `executor/reset_e_stop`."""

    PARAMETERS = (
        *DriverNode.LOOP,
        Parameter("robot_ip", "", "Address of the control box."),
        Parameter("hand", True, "A Franka Hand is mounted."),
        Parameter("realtime", True, "Insist on a real-time kernel, as libfranka does."),
    )

    def make_driver(self) -> Driver:
        config = FrankaConfig(
            self.param("robot_ip"), self.param("robot"), hand=self.param("hand"), realtime=self.param("realtime")
        )
        self._driver = FrankaDriver(config, self.now_ns)
        self._stop_publisher = self.output(Bool, "e_stop", LATCHED)
        self._stopped = False
        self.serve(Trigger, "driver/recover", self._on_recover)
        return self._driver

    def _watch(self) -> None:
        super()._watch()
        stopped = self._driver.user_stopped
        if stopped != self._stopped:
            self._stopped = stopped
            self._stop_publisher.publish(Bool(data=stopped))

    def _on_recover(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            problem = self._driver.recover()
        except StaleError as error:
            problem = str(error)
        response.success, response.message = not problem, problem or "recovered; disarm and arm again"
        return response


main = main_of(FrankaDriverNode)

if __name__ == "__main__":
    main()
