"""What every driver node shares: commands in, joint states out, e-stop, command timeout, and the hardware's state.

From outside it looks like `sim_node`: it takes `forward_command` set-points and publishes `joint_states` with the
stamp of the reading. `driver/state` (latched) tells the executor of hardware that must not move; readings that cannot
be proven fresh are not published, and the executor then stops by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray

from molmoact2_ros.drivers.driver import Driver, Reading
from molmoact2_ros.drivers.loop import DriverLoop, DriverThread, LoopConfig
from molmoact2_ros.nodes.ros.messages import stamp_of
from molmoact2_ros.nodes.ros.node_base import LATCHED, NEWEST, RELIABLE, SENSOR, MolmoNode, Parameter

STATE_S = 0.1
"""How often a change of the hardware's state is looked for."""


class DriverNode(MolmoNode):
    """A driver as a node; subclasses make the driver. Invariant: its thread runs between `setup` and `teardown`, also
    while the node is inactive: the arm must be held and watched; commands pass only while it is active."""

    LOOP = (
        Parameter("joint_rate_hz", 100.0, "Readings a second, and the rate of joint_states.", 10.0, 500.0),
        Parameter("command_timeout_s", 0.2, "The arm holds when commands cease for this long, s.", 0.05, 5.0),
        Parameter(
            "max_jump", 0.6, "A command so far from an arm joint's measured position is refused, rad.", 0.05, 3.2
        ),
        Parameter("lost_s", 0.5, "Without a fresh reading for this long the arm is connected anew, s.", 0.1, 10.0),
        Parameter("retry_s", 1.0, "Time between attempts to connect, s.", 0.1, 60.0),
        Parameter("command_topic", "controller/commands", "Joint targets, rad or m, in ROS joint order."),
    )

    def __init__(self) -> None:
        super().__init__("driver")
        self._thread: DriverThread | None = None
        self._refused = ""
        self._told: tuple[bytes, str] | None = None
        self._acknowledged = 0

    def make_driver(self) -> Driver:
        """Return the driver, not connected yet. Called by `setup`."""
        raise NotImplementedError

    def blocked(self) -> str:
        """Why the executor may not move the arm although nothing is wrong with it; empty when it may."""
        return ""

    def setup(self) -> None:
        driver = self.make_driver()
        config = LoopConfig(
            rate_hz=self.param("joint_rate_hz"),
            command_timeout_s=self.param("command_timeout_s"),
            max_jump=self.param("max_jump"),
            lost_s=self.param("lost_s"),
            retry_s=self.param("retry_s"),
        )
        self._joints = self.output(JointState, "joint_states", SENSOR)
        self._state = self.output(DiagnosticStatus, "driver/state", LATCHED)
        self._message = JointState(name=list(driver.robot.joint_names))
        self._acknowledgement = self.output(JointState, "driver/acknowledgement", SENSOR)
        self.listen(Float64MultiArray, self.param("command_topic"), self._on_command, NEWEST)
        # As in the executor: the latched one reaches a late driver, the plain one hears a bare `ros2 topic pub`.
        self.listen(Bool, "e_stop", self._on_e_stop, LATCHED)
        self.listen(Bool, "e_stop", self._on_e_stop, RELIABLE)
        # Threads that wait for a bus for a moment must not wait five milliseconds for the interpreter.
        sys.setswitchinterval(5e-4)
        self._thread = DriverThread(DriverLoop(driver, config, self._publish))
        self._thread.start()
        self.every(STATE_S, self._watch, inactive=True)

    def teardown(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

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

    def _on_command(self, message: Float64MultiArray) -> None:
        if self._thread is None or not self.active:
            return
        refusal = self.blocked() or self._thread.loop.command(np.asarray(message.data, dtype=np.float64))
        if refusal and not self._refused:  # on the edge only
            self.get_logger().error(f"command refused: {refusal}")
        self._refused = refusal

    def _on_e_stop(self, message: Bool) -> None:
        if self._thread is not None:
            self._thread.loop.e_stop(bool(message.data))

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
        fault = thread.loop.fault or self.blocked()
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
