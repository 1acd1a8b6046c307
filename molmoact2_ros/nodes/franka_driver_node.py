"""Driver node of a Franka arm without franka_ros2: pylibfranka, user stop as e-stop, and error recovery."""

from __future__ import annotations

from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.driver import Driver, StaleError
from molmoact2_ros.drivers.franka import FrankaConfig, FrankaDriver
from molmoact2_ros.nodes.driver_node import DriverNode
from molmoact2_ros.nodes.ros.node_base import main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED


class FrankaDriverNode(DriverNode):
    """See `DriverNode` and `drivers/franka.py`. The user stop presses `e_stop` and releases it again; the executor
    stays stopped until `executor/reset_e_stop`.

    `driver/recover` answers at once: recovery takes the box its time, and an e-stop must be heard meanwhile. What came
    of it is in the log and in `driver/state`."""

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
        self._recovering: tuple[str, float] | None = None
        self.serve(Trigger, "driver/recover", self._on_recover)
        return self._driver

    def _watch(self) -> None:
        super()._watch()
        stopped = self._driver.user_stopped
        if stopped != self._stopped:
            self._stopped = stopped
            self._stop_publisher.publish(Bool(data=stopped))
        if self._recovering is None or (problem := self._driver.recovery(self._recovering)) is None:
            return
        self._recovering = None
        if problem:
            self.get_logger().error(f"the robot has not recovered: {problem}")
        else:
            self.get_logger().info("the robot has recovered; disarm and arm again")

    def _on_recover(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._recovering is not None:
            response.message = "recovery is under way; driver/state tells when it is over"
            return response
        try:
            self._recovering = self._driver.begin_recovery()
        except StaleError as error:
            response.message = str(error)
            return response
        response.success = True
        response.message = "recovery has begun; once driver/state is OK, disarm and arm again"
        return response


main = main_of(FrankaDriverNode)

if __name__ == "__main__":
    main()
