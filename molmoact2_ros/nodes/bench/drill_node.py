"""Drives a robot through a drill for `molmoact2 bench robots`: a minute of motion, then every fault switch in turn.

It plays the policy (smooth chunks around the pose at arming), arms and disarms as a user would, switches faults on and
off through `sim/fault`, and writes what it saw to `report`. It ends when it is done; status 1 says that a step of the
drill did not come about, and the report says which.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.motion_lag import lag_s
from molmoact2_ros.nodes.ros.messages import chunk_message, nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import ALLOW_MOTION, Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR

CHUNK_S = 0.1
RAMP_S = 3.0
"""The motion grows to its size in this time."""
SETTLED_S = 0.5
"""How long after a fault a state must have lasted to count."""


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and worst of `values`."""
    p50, p99, worst = np.percentile(values, (50, 99, 100))
    return {"count": len(values), "p50": float(p50), "p99": float(p99), "worst": float(worst)}


class DrillNode(MolmoNode):
    """See the module. The drill runs in a thread of its own and waits on what the subscriptions see."""

    PARAMETERS: tuple[Parameter, ...] = (
        ALLOW_MOTION,
        Parameter("report", "drill.json", "File for what was seen."),
        Parameter("motion_s", 60.0, "Length of the motion, s.", 1.0, 600.0),
        Parameter("amplitudes", [0.0], "Amplitude of each joint, rad or m, in ROS order."),
        Parameter("frequency_hz", 0.2, "Of the slowest joint; the others move a little faster, Hz.", 0.02, 2.0),
        Parameter("faults", [""], "Fault switches, each as `<fault>|<expected state>|<deadline in s>`."),
        Parameter("start_s", 60.0, "How long the nodes may take to start, s.", 1.0, 600.0),
    )

    def __init__(self) -> None:
        super().__init__("drill")
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._state, self._reason, self._own = "", "", {}  # type: ignore[var-annotated]
        self._driver = ""
        self._story: list[str] = []
        """States and reasons since the fault was switched on: one may last for a moment only."""
        self._position: NDArray[np.float64] | None = None
        self._home: NDArray[np.float64] | None = None
        self._from: NDArray[np.float64] = np.zeros(0)
        self._begun_s = 0.0
        self._heard = 0
        self._recording = False
        self._commands: list[tuple[float, list[float]]] = []
        self._readings: list[tuple[float, list[float]]] = []
        self._ages_ms: list[float] = []
        self.result: dict[str, Any] = {"motion": {}, "faults": [], "error": ""}

    def setup(self) -> None:
        self.require_motion_allowed()
        self._robot = embodiment(self.param("robot"))
        self._chunks = self.output(JointTrajectory, "policy/action_chunk", NEWEST)
        self._fault = self.output(String, "sim/fault", RELIABLE)
        self.listen(JointState, "joint_states", self._on_joints, SENSOR)
        self.listen(JointState, "executor/command", self._on_command, SENSOR)
        self.listen(DiagnosticStatus, "executor/state", self._on_state, LATCHED)
        self.listen(DiagnosticStatus, "driver/state", self._on_driver, LATCHED)
        self._arm_client = self.create_client(SetBool, "executor/arm")
        self._reset_client = self.create_client(Trigger, "executor/reset_e_stop")
        self._recover_client = self.create_client(Trigger, "driver/recover")

    def start(self) -> None:
        self.every(CHUNK_S, self._send_chunk)
        self._thread = threading.Thread(target=self._run, name="drill", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _on_joints(self, message: JointState) -> None:
        stamp = nanoseconds(message.header.stamp) * 1e-9
        self._position = self._robot.reorder(message.name, np.asarray(message.position))
        self._heard += 1
        if self._recording:
            self._readings.append((stamp, self._position.tolist()))
            self._ages_ms.append((self.now_ns() * 1e-9 - stamp) * 1e3)

    def _on_command(self, message: JointState) -> None:
        if self._recording:
            stamp = nanoseconds(message.header.stamp) * 1e-9
            self._commands.append((stamp, list(message.position)))

    def _on_state(self, message: DiagnosticStatus) -> None:
        values = {pair.key: pair.value for pair in message.values}
        self._state, self._reason, self._own = message.message, values.get("reason", ""), values
        told = f"{self._state}: {self._reason}"
        if self._story[-1:] != [told]:
            self._story.append(told)

    def _on_driver(self, message: DiagnosticStatus) -> None:
        self._driver = "ok" if message.level == DiagnosticStatus.OK else message.message

    def _send_chunk(self) -> None:
        if self._home is None or self._position is None:
            return
        robot, now = self._robot, self.now_ns()
        if self._state != "TRACKING" or self._begun_s == 0.0:  # as a policy does: begin where the arm is
            self._from, self._begun_s = self._position, now * 1e-9
        elapsed = now * 1e-9 - self._begun_s
        amplitudes = np.asarray(self.param("amplitudes"), dtype=np.float64)
        rates = 2.0 * np.pi * self.param("frequency_hz") * (1.0 + 0.1 * np.arange(robot.dof))
        rows = []
        for i in range(robot.horizon):
            after = (i + 1) / robot.rate_hz
            size = min(1.0, (elapsed + after) / RAMP_S)
            row = (
                self._home
                + (1.0 - size) * (self._from - self._home)
                + size * amplitudes * np.sin(rates * (elapsed + after))
            )
            rows.append(np.clip(row, robot.limits.lower, robot.limits.upper).tolist())
        self._chunks.publish(chunk_message(rows, robot.rate_hz, now, robot.joint_names))

    # -- the drill (its own thread) -----------------------------------------------------------------------------------

    def _run(self) -> None:
        status = 1
        try:
            self._wait(lambda: self._state == "DISARMED" and self._driver == "ok", "the nodes", self.param("start_s"))
            self._work()
            status = 0
        except Exception as error:  # the report is the one place where anybody looks
            self.result["error"] = str(error)
            self.get_logger().error(str(error))
        Path(self.param("report")).write_text(json.dumps(self.result))
        self.finished = status

    def _work(self) -> None:
        self._wait(lambda: self._position is not None, "a joint state", 10.0)
        self._arm()
        self._measure_motion()
        for text in filter(None, self.param("faults")):
            fault, expected, deadline = text.split("|")
            self.result["faults"].append(self._drill(fault, expected, float(deadline)))

    def _wait(self, condition: Callable[[], bool], what: str, deadline_s: float) -> float:
        """Wait until `condition`; returns how long it took, s."""
        begun = time.monotonic()
        while not condition():
            if self._ended.wait(0.002):
                raise RuntimeError("the drill was ended")
            if time.monotonic() - begun > deadline_s:
                raise TimeoutError(
                    f"waited {deadline_s:.1f} s for {what}; executor {self._state} ({self._reason}), "
                    f"driver {self._driver}"
                )
        return time.monotonic() - begun

    def _call_arm(self, on: bool) -> str:
        """Call executor/arm; returns why it was refused, or an empty string."""
        assert self._arm_client.wait_for_service(10.0), "no service executor/arm"
        answers: list[Any] = []
        self._arm_client.call_async(SetBool.Request(data=on)).add_done_callback(
            lambda done: answers.append(done.result())
        )
        self._wait(lambda: bool(answers), "an answer of executor/arm", 10.0)
        return "" if answers[0].success else str(answers[0].message)

    def _ask(self, client: Any) -> None:
        """Call a Trigger service until it succeeds."""
        assert client.wait_for_service(10.0), f"no service {client.srv_name}"
        deadline = time.monotonic() + 10.0
        while True:
            answers: list[Any] = []
            client.call_async(Trigger.Request()).add_done_callback(lambda done, to=answers: to.append(done.result()))
            self._wait(lambda heard=answers: bool(heard), f"an answer of {client.srv_name}", 10.0)  # type: ignore[misc]
            if answers[0].success:
                return
            if time.monotonic() > deadline or self._ended.wait(0.1):
                raise RuntimeError(f"{client.srv_name} refused: {answers[0].message}")

    def _arm(self) -> None:
        """Arm, and wait until the arm moves around the pose of the first time."""
        if self._home is None:
            self._home = self._position  # from now on chunks go out; the executor wants to see one before it arms
        deadline = time.monotonic() + 10.0
        while refusal := self._call_arm(True):
            if time.monotonic() > deadline or self._ended.wait(0.1):
                raise RuntimeError(f"executor/arm refused: {refusal}")
        self._wait(lambda: self._state == "TRACKING", "TRACKING", 10.0)

    def _measure_motion(self) -> None:
        self._recording = True
        self._ended.wait(self.param("motion_s"))
        self._recording = False
        commands, readings = list(self._commands), list(self._readings)
        if self._state != "TRACKING" or len(readings) < 10:
            raise RuntimeError(f"the arm did not move to the end: executor {self._state} ({self._reason})")
        command_times, reading_times = (np.array([t for t, _ in rows]) for rows in (commands, readings))
        sent, seen = (np.array([row for _, row in rows]) for rows in (commands, readings))
        lags = {}
        for j, name in enumerate(self._robot.joint_names):
            if np.ptp(sent[:, j]) > 0.02:
                lags[name] = 1e3 * lag_s(command_times, sent[:, j], reading_times, seen[:, j])
        self.result["motion"] = {
            "seconds": float(reading_times[-1] - reading_times[0]),
            "lag_ms": lags,
            "reading_period_ms": percentiles((np.diff(reading_times) * 1e3).tolist()),
            "command_period_ms": percentiles((np.diff(command_times) * 1e3).tolist()),
            "reading_age_ms": percentiles(self._ages_ms),
            "executor": {key: float(v) for key, v in self._own.items() if key.startswith(("period_", "tick_"))},
            "travel": float(np.abs(np.diff(seen, axis=0)).sum(axis=0).max()),
        }

    def _drill(self, fault: str, expected: str, deadline_s: float) -> dict[str, Any]:
        """Switch one fault on and off; returns what came of it."""
        found: dict[str, Any] = {"fault": fault, "expected": expected, "deadline_s": deadline_s}
        self._story.clear()
        self._fault.publish(String(data=fault))
        begun = time.monotonic()
        if expected == "TRACKING":  # a fault that the driver must ride out
            left = []
            while time.monotonic() - begun < deadline_s and not self._ended.wait(0.002):
                if self._state != "TRACKING":
                    left.append(self._state)
            found |= {"state": left[0] if left else "TRACKING", "after_s": 0.0, "reason": self._reason}
        else:
            try:
                found["after_s"] = self._wait(
                    lambda: any(told.startswith(f"{expected}:") for told in self._story), expected, 3.0 * deadline_s
                )
                found |= {"state": expected, "reason": self._reason}
            except TimeoutError:
                found |= {"state": self._state, "reason": self._reason, "after_s": float("inf")}
        self._ended.wait(1.5)
        found["story"] = list(self._story)
        self._fault.publish(String(data="none"))
        begun = time.monotonic()
        # An arm that was lost and found again is not moved by the arming of before: the executor is told, and lets go.
        # It says so at the first command that the driver refuses: the executor tracks for a moment before.
        self._wait(lambda: self._state in ("TRACKING", "FAULT", "ESTOPPED"), "an end of the hold", 20.0)
        self._ended.wait(SETTLED_S)
        if self._state in ("FAULT", "ESTOPPED"):
            if "driver/recover" in self._reason:
                self._ask(self._recover_client)
            self._wait(lambda: self._driver == "ok", "a sound driver", 20.0)
            if self._state == "ESTOPPED":
                self._ask(self._reset_client)
                found["recovery"] = "reset and arm"
            else:
                if refusal := self._call_arm(False):
                    raise RuntimeError(f"cannot disarm: {refusal}")
                found["recovery"] = "disarm and arm"
                # Readings that are fresh again come a little later than the driver's word.
                self._ended.wait(0.3)
            self._wait(lambda: self._state == "DISARMED", "DISARMED", 10.0)
            self._arm()
        else:
            found["recovery"] = "by itself"
        found["recovered_s"] = time.monotonic() - begun
        found["ok"] = found["state"] == expected and found["after_s"] <= deadline_s
        self.get_logger().info(f"{fault}: {found['state']} after {found['after_s']:.2f} s: {found['reason']}")
        self._ended.wait(1.0)
        return found

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        return DiagnosticStatus.OK, "drilling", {}


main = main_of(DrillNode)

if __name__ == "__main__":
    main()
