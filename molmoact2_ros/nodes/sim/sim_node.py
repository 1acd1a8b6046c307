"""The simulated cell as a driver: joint targets in, joint states out, camera frames into the links that camera_node
reads.

From outside it looks like a driver node of real hardware; what only a simulator knows is under `sim/`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from molmoact2_ros.drivers.gate import Command, Gate, GateConfig
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.e_stop import EStop
from molmoact2_ros.nodes.ros.messages import nanoseconds, stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard
from molmoact2_ros.simulation.cells import make_cell, scene_of
from molmoact2_ros.simulation.emulators.buses import EMULATED_BUSES, EmulatedBus
from molmoact2_ros.simulation.runner import CellRunner, CellSnapshot

MAX_AGE_S = 0.5
"""Of a command: rendering keeps this process away from its messages for longer than a driver is."""
EPISODE_EVERY = 10
"""Readings between two messages on `sim/episode`."""


class SimNode(MolmoNode):
    """One simulated cell. Commands of the wrong size or with NaN change nothing and are reported once."""

    PARAMETERS = (
        Parameter("seed", 0, "Where the placements of the episodes come from.", 0, 2**31 - 1),
        Parameter("link_prefix", "molmoact2", "Frame links are called <link_prefix>_<camera>."),
        Parameter("joint_rate_hz", 100.0, "Rate of joint_states.", 10.0, 500.0),
        Parameter("camera_rate_hz", 30.0, "Frame rate of every camera.", 1.0, 60.0),
        Parameter("command_timeout_s", 0.2, "The arm holds when commands cease for this long.", 0.05, 5.0),
        Parameter("rejoin_rad", 0.05, "How far from the arm the first command after a hold may be, rad.", 0.005, 0.5),
        Parameter("speed_scale", 1.0, "As the executor's: times the speed of the arm.", 0.05, 3.0),
        Parameter("command_topic", "executor/command", "Stamped joint targets, rad or m; header.frame_id: the arming."),
        Parameter(
            "emulated_bus", "", "Folder where the arm's emulated bus appears; empty: this node is the driver itself."
        ),
        Parameter("vary", True, "Vary light, colours and camera poses a little from episode to episode."),
    )

    def __init__(self) -> None:
        super().__init__("sim")
        self._runner: CellRunner | None = None
        self._next_episode = 0
        self._state = "waiting"
        self._readings = 0
        self._refused = 0
        self._buttons = EStop()
        self._arming = self._told = ""
        self._holds = 0
        self._reading: NDArray[np.float64] | None = None
        self._episode_lock = threading.Lock()
        self._bus: EmulatedBus | None = None

    def setup(self) -> None:
        robot = embodiment(self.param("robot"))
        self._robot = robot
        emulated = bool(self.param("emulated_bus"))
        if emulated:
            self._open_bus(Path(self.param("emulated_bus")))
        else:
            self._joints = self.output(JointState, "joint_states", SENSOR)
            self._gate = Gate(
                robot,
                GateConfig(
                    rejoin_rad=self.param("rejoin_rad"),
                    max_age_s=MAX_AGE_S,
                    speed_scale=self.param("speed_scale"),
                ),
            )
            self.listen(JointState, self.param("command_topic"), self._on_command, NEWEST)
            self._e_stop = self.hear(Bool, "e_stop", self._on_e_stop)
        self._object = self.output(PoseStamped, "sim/object_pose", SENSOR)
        self._episode = self.output(DiagnosticStatus, "sim/episode", LATCHED)
        self.serve(Trigger, "sim/reset", self._on_reset)
        self._message = JointState(name=list(robot.joint_names))
        prefix = self.param("link_prefix")
        variation = scene_of(robot.name).randomisation
        if not self.param("vary"):
            variation = replace(variation, light=0, colour=0, camera_m=0, camera_rad=0)
        seed = int(self.param("seed"))
        self._runner = CellRunner(
            make_cell=lambda: make_cell(robot.name, seed, variation),
            links={camera: f"{prefix}_{camera}" for camera in robot.camera_names},
            on_reading=self._publish,
            clock=self.now_ns,
            joint_rate_hz=self.param("joint_rate_hz"),
            camera_rate_hz=self.param("camera_rate_hz"),
            # On the emulated bus the driver has the command timeout: a servo keeps its goal when nobody speaks.
            command_timeout_s=math.inf if emulated else self.param("command_timeout_s"),
        )
        self._runner.start()
        self.every(0.5, self._check, inactive=True)

    def _open_bus(self, folder: Path) -> None:
        """The cell is behind the real arm's bus; a driver node does what this node does otherwise."""
        if self._robot.name not in EMULATED_BUSES:
            raise ValueError(f"no emulated bus for {self._robot.name}; there are: {', '.join(EMULATED_BUSES)}")
        # The bus must answer within a millisecond or two, whatever the cell's thread computes.
        sys.setswitchinterval(5e-4)

        def command(joints: NDArray[np.float64]) -> None:
            if self._runner is not None:
                self._runner.command(joints)

        self._bus = EMULATED_BUSES[self._robot.name](folder, command, self._robot.rest_position)
        self.listen(String, "sim/fault", self._on_fault, RELIABLE)

    def _on_fault(self, message: String) -> None:
        assert self._bus is not None and self._runner is not None
        try:
            if message.data.startswith("push "):
                self._runner.push(float(message.data.removeprefix("push ")))
            else:
                self._bus.fault(message.data)
        except ValueError as error:
            self.get_logger().error(str(error))
        else:
            self.get_logger().info(f"fault switch: {message.data}")

    def _check(self) -> None:
        # A driver whose hardware is gone must not look alive: the process ends and whoever started it says so.
        if self._runner is not None and self._runner.error is not None and self.finished is None:
            self.get_logger().error(f"the simulated cell has stopped: {self._runner.error!r}")
            self.finished = 1

    def teardown(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._runner is None:
            return DiagnosticStatus.ERROR, "no cell", {}
        values = {
            "lost_s": round(self._runner.lost_s, 3),
            "timeout_holds": self._runner.timeout_holds,
            "refused_commands": self._refused,
        }
        if self._runner.lost_s > 1.0:
            return DiagnosticStatus.WARN, "this machine is too slow to run the cell in real time", values
        return DiagnosticStatus.OK, f"episode {self._state}", values

    def _on_command(self, message: JointState) -> None:
        runner, arming = self._runner, message.header.frame_id
        if runner is None:
            return
        if arming != self._arming:
            self._arming = arming
            self._buttons.forget_absent(self._e_stop.present() if self._buttons.pressed else set())
        if self._buttons.pressed:
            self._gate.end(arming, "e-stop is pressed")
        if runner.timeout_holds != self._holds:  # the cell held by itself
            self._holds = runner.timeout_holds
            self._gate.close("commands ceased", over=False)
        try:
            positions = self._robot.reorder(message.name, np.asarray(message.position, dtype=np.float64))
        except ValueError as error:
            self._refuse(str(error))
            return
        if self._reading is not None:
            self._gate.measured(self._reading)
        refusal = self._gate.check(Command(positions, nanoseconds(message.header.stamp), arming), self.now_ns())
        if refusal is not None:
            self._refuse(refusal.reason)
            return
        self._told = ""
        runner.command(positions)

    def _refuse(self, reason: str) -> None:
        if not self._told:  # on the edge only
            self.get_logger().error(f"command refused: {reason}")
        self._told = reason
        self._refused += 1

    def _on_e_stop(self, heard: Heard) -> None:
        before = self._buttons.pressed
        self._buttons.heard(heard.publisher, bool(heard.message.data), self.now_ns())
        if self._buttons.pressed == before:
            return
        self.get_logger().warning("e-stop " + ("released" if before else "pressed"))
        if not before and self._runner is not None:
            self._gate.close("an e-stop stopped the arm", over=True)
            self._runner.hold()

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._runner is None:
            response.success, response.message = False, "the cell is not running"
            return response
        try:
            self._runner.reset(self._next_episode)
        except TimeoutError as error:
            response.success, response.message = False, str(error)
            return response
        if self._bus is None:
            self._gate.close("the cell was reset", over=True)
            self._reading = None
        with self._episode_lock:
            self._state = "running"
        response.success, response.message = True, str(self._next_episode)
        self._next_episode += 1
        return response

    def _publish(self, snapshot: CellSnapshot) -> None:
        """Called from the cell's thread at every reading."""
        stamp = stamp_of(snapshot.stamp_ns)
        if self._bus is not None:
            self._bus.measured(snapshot.positions, snapshot.velocities)
        else:
            self._message.header.stamp = stamp
            self._message.position = snapshot.positions.tolist()
            self._message.velocity = snapshot.velocities.tolist()
            self._reading = snapshot.positions
            self._joints.publish(self._message)
        self._readings += 1
        if self._readings % 3 == 0:
            self._object.publish(_pose(snapshot, stamp, self._robot.base_link))
        with self._episode_lock:
            before = self._state
            if before == "running":
                if snapshot.episode.success:
                    self._state = "success"
                elif snapshot.object_position[2] < -0.05:
                    self._state = "failure"
            state = self._state
        if state != before or self._readings % EPISODE_EVERY == 0:
            self._episode.publish(_episode(snapshot, state))


def _pose(snapshot: CellSnapshot, stamp: object, frame: str) -> PoseStamped:
    message = PoseStamped()
    message.header.stamp = stamp
    message.header.frame_id = frame
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z = (float(v) for v in snapshot.object_position)
    turn.w, turn.x, turn.y, turn.z = (float(v) for v in snapshot.object_wxyz)
    return message


def _episode(snapshot: CellSnapshot, state: str) -> DiagnosticStatus:
    episode = snapshot.episode
    values = {
        "episode": episode.number,
        "seed": episode.seed,
        "elapsed_s": f"{episode.elapsed_s:.2f}",
        "cube_height_m": f"{snapshot.cube_height_m:.4f}",
        "gripper_distance_m": f"{snapshot.gripper_distance_m:.4f}",
        "min_gripper_distance_m": f"{episode.min_distance_m:.4f}",
        "grasped": str(snapshot.grasped).lower(),
        "reached": str(episode.reached).lower(),
        "success": str(episode.success).lower(),
    }
    return DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name="episode",
        message=state,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


main = main_of(SimNode)

if __name__ == "__main__":
    main()
