"""Plays a recorded trajectory in place of a policy: the same chunks topic, through the executor and all its limits.

While the arm is disarmed the chunks hold it where it is. Once it is armed it is led to the trajectory's beginning, then
along it. What happens is printed as JSON, one object a line; lines have a `type`: `status` (2 Hz), `summary` (the last
line, with how far the arm was from the trajectory) or `error`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.client import Client
from rclpy.task import Future
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS, Array, MergedJoints
from molmoact2_ros.nodes.ros.messages import chunk_message
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST
from molmoact2_ros.recording.replay.playback import Playback, followed

JOINTS_S = 0.25
SETTLE_S = 1.0
"""How long readings count after the last row, since an arm comes in behind."""
READY_S = 180.0
"""How long the arm and its executor may take to come up where this node arms by itself."""
ARMED = ("HOLDING", "TRACKING", "STOPPING")
ENDED = ("FAULT", "ESTOPPED", "DISARMED", "UNCONFIGURED")


class PlaybackNode(MolmoNode):
    """Invariant: nothing but a hold of the measured position is published while the arm is not armed."""

    PARAMETERS = (
        Parameter("trajectory", "", "File (.npz) with rows (n, dof), rad or m in ROS order, and rate_hz."),
        Parameter("speed", 1.0, "Times the trajectory's rate.", 0.05, 2.0),
        Parameter("arm", False, "Arm by itself (the simulated cell); otherwise somebody at the robot does."),
        Parameter("chunk_rate_hz", 10.0, "Chunks a second.", 1.0, 50.0),
        *JOINT_STATE_PARAMETERS,
    )

    def __init__(self) -> None:
        super().__init__("playback")
        self._playback: Playback | None = None
        self._position: Array | None = None
        self._executor = ("", "")
        self._refusal = ""
        self._asked = False
        self._asked_ns = self._born = self.steady.now().nanoseconds
        self._began_ns = 0
        self._times, self._readings = array("q"), array("d")

    def setup(self) -> None:
        self._robot = embodiment(self.param("robot"))
        with np.load(self.param("trajectory")) as file:
            self._rows, rate = file["rows"].astype(float), float(file["rate_hz"])
        if self._rows.ndim != 2 or self._rows.shape[1] != self._robot.dof:
            raise ValueError(f"trajectory has rows {self._rows.shape}, {self._robot.name} has {self._robot.dof} joints")
        self._rate = rate * self.param("speed")
        self._chunks = self.output(JointTrajectory, "policy/action_chunk", NEWEST)
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)
        MergedJoints(self, self._robot, JOINTS_S, self._on_joints)
        self._arming: Client = self.client(SetBool, "executor/arm")

    def start(self) -> None:
        self.every(1.0 / self.param("chunk_rate_hz"), self._step)
        self.every(0.5, self._print_status)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        return DiagnosticStatus.OK, "playing" if self._playback is not None else "waiting for arming", {}

    # -- messages in --------------------------------------------------------------------------------------------------

    def _on_joints(self, position: Array, stamp_ns: int) -> None:
        self._position = position
        if self._playback is not None:
            self._times.append(stamp_ns)
            self._readings.extend(position)

    def _on_executor(self, message: DiagnosticStatus) -> None:
        values = {pair.key: pair.value for pair in message.values}
        self._executor = message.message, values.get("last_refusal") or values.get("reason", "")

    # -- the motion ---------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._position is None or self.finished is not None:
            self._give_up_late()
            return
        state, reason = self._executor
        now_ns = self.now_ns()
        if self._playback is None:
            hold = np.tile(self._position, (self._robot.horizon, 1))
            self._publish(hold, now_ns)
            if state in ARMED:
                self._playback = Playback(self._robot, self._position.copy(), self._rows, self._rate)
                self._began_ns = now_ns
            elif self.param("arm"):
                self._arm()
                self._give_up_late()
            return
        passed_s = (now_ns - self._began_ns) * 1e-9
        if state in ENDED:
            self._end(f"the executor is {state} after {passed_s:.1f} s: {reason}")
        elif passed_s > self._playback.end_s + SETTLE_S:
            self._finish()
        else:
            self._publish(self._playback.chunk(passed_s), now_ns)

    def _publish(self, rows: Array, now_ns: int) -> None:
        rows = np.clip(rows, self._robot.limits.lower, self._robot.limits.upper)
        self._chunks.publish(chunk_message(rows.tolist(), self._robot.rate_hz, now_ns, self._robot.joint_names))

    def _arm(self) -> None:
        now_ns = self.steady.now().nanoseconds
        if self._asked or not self._arming.service_is_ready() or now_ns - self._asked_ns < 300_000_000:
            return
        self._asked, self._asked_ns = True, now_ns

        def done(future: Future) -> None:
            answer = future.result()
            self._asked = False
            self._refusal = "" if answer.success else answer.message

        self._arming.call_async(SetBool.Request(data=True)).add_done_callback(done)

    def _give_up_late(self) -> None:
        waited_s = (self.steady.now().nanoseconds - self._born) * 1e-9
        if self.param("arm") and waited_s > READY_S and self.finished is None:
            missing = "no joint state has come" if self._position is None else "the executor does not arm"
            self._end(f"{missing} within {READY_S:.0f} s: {self._refusal or 'is it running?'}")

    # -- lines out ----------------------------------------------------------------------------------------------------

    def _print_status(self) -> None:
        if self.finished is not None:
            return
        state, reason = self._executor
        line = {"executor": state, "reason": self._refusal or reason, "played_s": 0.0, "of_s": 0.0}
        if self._playback is not None:
            line |= {"played_s": (self.now_ns() - self._began_ns) * 1e-9, "of_s": self._playback.end_s}
        self._print("status", **line)

    def _finish(self) -> None:
        assert self._playback is not None
        times_s = (np.array(self._times) - self._began_ns) * 1e-9
        try:
            result = followed(self._playback, times_s, np.array(self._readings).reshape(-1, self._robot.dof))
        except ValueError as error:
            self._end(str(error))
            return
        names = list(self._robot.joint_names)
        units = [self._robot.unit(j) for j in range(self._robot.dof)]
        length_s = self._playback.end_s - self._playback.approach_s
        self._print("summary", joints=names, units=units, played_s=length_s, **asdict(result))
        self._end()

    def _print(self, kind: str, **values: object) -> None:
        print(json.dumps({"type": kind, **values}), flush=True)

    def _end(self, error: str = "") -> None:
        if self.param("arm") and self._arming.service_is_ready():
            self._arming.call_async(SetBool.Request(data=False))
        if error:
            self.get_logger().error(error)
            self._print("error", error=error)
        self.finished = 1 if error else 0


main = main_of(PlaybackNode)

if __name__ == "__main__":
    main()
