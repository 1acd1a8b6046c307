"""What every driver node shares: commands in, joint states out, e-stop, command timeout, and the hardware's state.

From outside it looks like `sim_node`: it takes the set-points of `executor/command`, through the gate of
`drivers/gate.py`, and publishes `joint_states` with the stamp of the reading. `driver/state` (latched) tells the
executor of hardware that must not move; readings that cannot be proven fresh are not published, and the executor then
stops by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from molmoact2_ros.drivers.driver import Driver, Reading
from molmoact2_ros.drivers.gate import Command, GateConfig
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig
from molmoact2_ros.drivers.parking import checked_pose
from molmoact2_ros.drivers.thread import DriverThread
from molmoact2_ros.execution.e_stop import EStop
from molmoact2_ros.nodes.ros.messages import nanoseconds, stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard

STATE_S = 0.1
"""How often a change of the hardware's state is looked for."""


class DriverNode(MolmoNode):
    """A driver as a node; subclasses make the driver. Invariant: its thread runs between `setup` and `teardown`, also
    while the node is inactive: the arm must be held and watched; commands pass only while it is active."""

    LOOP = (
        Parameter("joint_rate_hz", 100.0, "Readings a second, and the rate of joint_states.", 10.0, 500.0),
        Parameter("command_timeout_s", 0.2, "The arm holds when commands cease for this long, s.", 0.05, 5.0),
        Parameter("rejoin_rad", 0.05, "How far from the arm the first command after a hold may be, rad.", 0.005, 0.5),
        Parameter("speed_scale", 1.0, "As the executor's: times the speed of the arm.", 0.05, 3.0),
        Parameter("command_max_age_s", 0.25, "A command stamped longer ago is dropped, s; 0: none is.", 0.0, 5.0),
        Parameter("park_pose", [0.0], "Where the arm goes before it is let go, all joints, rad or m; [0.0]: nowhere."),
        Parameter("park_speed", 0.1, "Share of the velocity limits on the way there.", 0.01, 0.5),
        Parameter("lost_s", 0.5, "Without a fresh reading for this long the arm is connected anew, s.", 0.1, 10.0),
        Parameter("retry_s", 1.0, "Time between attempts to connect, s.", 0.1, 60.0),
        Parameter("command_topic", "executor/command", "Stamped joint targets, rad or m; header.frame_id: the arming."),
    )

    def __init__(self) -> None:
        super().__init__("driver")
        self._thread: DriverThread | None = None
        self._refused = ""
        self._told: tuple[bytes, str] | None = None
        self._acknowledged = 0
        self._arming = ""
        self._buttons = EStop()

    def make_driver(self) -> Driver:
        """Return the driver, not connected yet. Called by `setup`."""
        raise NotImplementedError

    def setup(self) -> None:
        driver = self.make_driver()
        config = LoopConfig(
            rate_hz=self.param("joint_rate_hz"),
            command_timeout_s=self.param("command_timeout_s"),
            lost_s=self.param("lost_s"),
            retry_s=self.param("retry_s"),
            park_pose=checked_pose(driver.robot, list(self.param("park_pose"))),
            park_speed=self.param("park_speed"),
            gate=GateConfig(
                rejoin_rad=self.param("rejoin_rad"),
                max_age_s=self.param("command_max_age_s"),
                speed_scale=self.param("speed_scale"),
            ),
        )
        self._joints = self.output(JointState, "joint_states", SENSOR)
        self._state = self.output(DiagnosticStatus, "driver/state", LATCHED)
        self._message = JointState(name=list(driver.robot.joint_names))
        self._acknowledgement = self.output(JointState, "driver/acknowledgement", SENSOR)
        self.listen(JointState, self.param("command_topic"), self._on_command, NEWEST)
        self._e_stop = self.hear(Bool, "e_stop", self._on_e_stop)
        # Threads that wait for a bus for a moment must not wait five milliseconds for the interpreter.
        sys.setswitchinterval(5e-4)
        self._thread = DriverThread(DriverLoop(driver, config, self._publish))
        self._thread.start()
        self.every(STATE_S, self._watch, inactive=True)

    def lingers(self) -> bool:
        # The arm moves while it is parked, and an e-stop must be heard meanwhile.
        return self._thread is not None and not self._thread.end()

    def teardown(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
            if thread.kept:
                self.get_logger().error(f"arm: {thread.kept}")

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._thread is None:
            return DiagnosticStatus.WARN, "not configured", {}
        health = self._thread.loop.status()
        return bytes([health.level]), health.message, health.values

    def _publish(self, reading: Reading) -> None:
        """Called from the driver's thread with every fresh reading."""
        self._message.header.stamp = stamp_of(reading.stamp_ns)
        self._message.position = reading.positions.tolist()
        self._message.velocity = [] if reading.velocities is None else reading.velocities.tolist()
        self._joints.publish(self._message)
        commands = 0 if self._thread is None else self._thread.loop.counters.commands
        if commands != self._acknowledged:  # what was commanded since the last reading has gone out to the arm
            self._acknowledged = commands
            acknowledgement = JointState()
            acknowledgement.header.stamp = self.get_clock().now().to_msg()
            self._acknowledgement.publish(acknowledgement)

    def _on_command(self, message: JointState) -> None:
        if self._thread is None or not self.active:
            return
        loop, arming = self._thread.loop, message.header.frame_id
        if arming != self._arming:
            self._arming = arming
            if self._buttons.pressed:  # the executor arms after a reset only, which lets go of buttons that are gone
                self._buttons.forget_absent(self._e_stop.present())
                loop.e_stop(self._buttons.pressed)
        try:
            positions = loop.driver.robot.reorder(message.name, np.asarray(message.position, dtype=np.float64))
        except ValueError as error:
            refusal = str(error)
        else:
            refusal = loop.command(Command(positions, nanoseconds(message.header.stamp), arming), self.now_ns())
        if refusal and not self._refused:  # on the edge only
            self.get_logger().error(f"command refused: {refusal}")
        self._refused = refusal

    def _on_e_stop(self, heard: Heard) -> None:
        if self._thread is not None:
            self._buttons.heard(heard.publisher, bool(heard.message.data), self.now_ns())
            self._thread.loop.e_stop(self._buttons.pressed)

    def _watch(self) -> None:
        """Tell the executor and the log of a change of state, and end when the driver's thread has."""
        thread = self._thread
        if thread is None:
            return
        if thread.failure is not None and self.finished is None:
            # A driver whose arm is out of its hands must not look alive: whoever started it says so.
            self.get_logger().error(f"the driver has stopped: {thread.failure!r}")
            self.finished = 1
            return
        fault = thread.loop.fault
        health = thread.loop.status()
        level = DiagnosticStatus.ERROR if fault else DiagnosticStatus.OK
        if not thread.loop.connected:
            level = DiagnosticStatus.WARN
        state = level, fault or (health.message if level != DiagnosticStatus.OK else "connected")
        if state == self._told:
            return
        self._told = state
        status = DiagnosticStatus(level=level, name="driver", message=state[1], hardware_id=self.param("robot"))
        status.values = [KeyValue(key="connected", value=str(thread.loop.connected).lower())]
        self._state.publish(status)
        if level == DiagnosticStatus.OK:
            self.get_logger().info(f"arm: {state[1]}")
        else:
            self.get_logger().error(f"arm: {state[1]}")
