"""An executor process, an arm that takes its commands in whatever form, and action servers of grippers."""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.rolling_piece import TAIL
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR

START_S = 90.0
PATIENCE = {"max_tick_gap_s": 2.0, "joint_state_timeout_s": 2.0}
"""Wide enough for a loaded machine."""


class Server:
    """A gripper's action server: takes every goal, or refuses, aborts or fails the first ones, or keeps them until they
    are cancelled."""

    def __init__(
        self, node: Any, kind: Any, name: str, refuse: int = 0, keep: bool = False, abort: int = 0, fail: int = 0
    ) -> None:
        self.goals: list[Any] = []
        self.cancelled = 0
        self.aborts = abort
        self.answers = threading.Event()
        """While clear, the server takes its time to answer to a goal."""
        self.answers.set()
        self._kind, self._refuse, self._keep, self._fail = kind, refuse, keep, fail
        self._server = ActionServer(
            node, kind, name, self._execute, goal_callback=self._on_goal, cancel_callback=self._on_cancel,
            handle_accepted_callback=self._accepted,
        )  # fmt: skip

    def _on_goal(self, goal: Any) -> GoalResponse:
        self.goals.append(goal)
        self.answers.wait(30.0)
        return GoalResponse.REJECT if len(self.goals) <= self._refuse else GoalResponse.ACCEPT

    def _on_cancel(self, _: Any) -> CancelResponse:
        self.cancelled += 1
        return CancelResponse.ACCEPT

    def _accepted(self, handle: Any) -> None:
        if not self._keep:
            handle.execute()

    def _execute(self, handle: Any) -> Any:
        result = self._kind.Result()
        if len(self.goals) <= self.aborts:
            handle.abort()
            return result
        handle.succeed()
        for done in {"success", "reached_goal"} & set(result.get_fields_and_field_types()):
            setattr(result, done, len(self.goals) > self._fail)
        return result


class Cell:
    """An arm that soon does what it is told, in whatever form, and a policy of one chunk."""

    def __init__(self, companion: Companion, robot_name: str) -> None:
        self.robot = embodiment(robot_name)
        self.companion, self.node = companion, companion.node
        self.position = self.robot.rest_position.copy()
        self.target, self.read_s = self.position.copy(), time.monotonic()
        self.rows: np.ndarray | None = None
        self.sway = 0.0
        self.refused = ""
        self.states: list[DiagnosticStatus] = []
        self.trajectories: list[JointTrajectory] = []
        self.lock = threading.Lock()
        node = self.node
        self.joint_states = node.create_publisher(JointState, "joint_states", SENSOR)
        self.chunks = node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)
        self.e_stop = node.create_publisher(Bool, "e_stop", LATCHED)
        node.create_subscription(DiagnosticStatus, "executor/state", self.states.append, LATCHED)
        node.create_subscription(JointTrajectory, "arm/joint_trajectory", self._on_trajectory, RELIABLE)
        node.create_subscription(Float64MultiArray, "arm/commands", self._on_command, RELIABLE)
        node.create_timer(0.01, self._read)
        node.create_timer(0.1, self._infer)

    @property
    def arm_joints(self) -> list[int]:
        return [j for j in range(self.robot.dof) if j not in self.robot.gripper_indices]

    def _on_trajectory(self, message: JointTrajectory) -> None:
        self.trajectories.append(message)
        with self.lock:
            point = message.points[len(message.points) - TAIL - 1].positions
            self.target[self.arm_joints if len(point) < self.robot.dof else slice(None)] = point

    def _on_command(self, message: Float64MultiArray) -> None:
        with self.lock:
            self.target[self.arm_joints if len(message.data) < self.robot.dof else slice(None)] = message.data

    def _read(self) -> None:
        # No faster than joints are: after a pause of this process commands of a long time come at once.
        now_s = time.monotonic()
        way = 1.2 * self.robot.limits.velocity * (now_s - self.read_s)
        self.read_s = now_s
        with self.lock:
            self.position = self.position + np.clip(self.target - self.position, -way, way)
        message = JointState(name=list(self.robot.joint_names), position=array("d", self.position))
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.joint_states.publish(message)

    def _infer(self) -> None:
        if self.rows is None:
            return
        message = JointTrajectory(joint_names=list(self.robot.joint_names))
        now = self.node.get_clock().now()
        message.header.stamp = now.to_msg()
        for i, row in enumerate(self.rows.copy()):
            due = round((i + 1) / self.robot.rate_hz * 1e9)
            row[0] += self.swayed(now.nanoseconds + due)
            due = Duration(sec=due // 1_000_000_000, nanosec=due % 1_000_000_000)
            message.points.append(JointTrajectoryPoint(positions=array("d", row), time_from_start=due))
        self.chunks.publish(message)

    def swayed(self, time_ns: int) -> float:
        """How far joint 0 is from where `ask` says at this moment, rad."""
        return self.sway * float(np.sin(0.6 * np.pi * (time_ns % 10**11) * 1e-9))

    def ask(self, gripper: float, index: int = 0, joint: float = 0.0) -> None:
        """From now on the policy wants the rest pose, a joint moved by `joint` rad, and one gripper at a share."""
        rows = np.tile(self.robot.rest_position, (self.robot.horizon, 1))
        rows[:, 0] += joint
        j = self.robot.gripper_indices[index]
        lower, upper = self.robot.limits.lower[j], self.robot.limits.upper[j]
        rows[:, j] = lower + gripper * (upper - lower)
        self.rows = rows

    @property
    def state(self) -> str:
        return self.states[-1].message if self.states else "nothing"

    def value(self, key: str) -> str:
        return next(pair.value for pair in self.states[-1].values if pair.key == key)

    def told(self) -> str:
        return f"{self.state}: {self.value('reason')}" if self.states else "nothing"

    def await_state(self, state: str, reason: str = "") -> None:
        wait_until(
            lambda: self.state == state and reason in self.value("reason"),
            lambda: f"{state} ({reason}); it says {self.told()}",
            30.0,
        )

    def arm(self) -> None:
        """Arm; readings that agree for a while are wanted first."""
        wait_until(self.arms, lambda: f"arming; it says {self.refused}", 30.0)

    def arms(self) -> bool:
        """Ask for arming once; `refused` says why it was not done."""
        answer = self.companion.call(SetBool, "executor/arm", SetBool.Request(data=True), 30.0)
        self.refused = answer.message
        return bool(answer.success)

    def await_chunks(self, count: int) -> None:
        """Wait until so many more chunks have been followed: a goal a chunk, or a tick, would show."""
        seen = int(self.value("chunks_accepted"))
        wait_until(lambda: int(self.value("chunks_accepted")) >= seen + count, "chunks to be followed", 30.0)


class Running:
    """An executor process of a robot with these parameters, and its cell. Use as a context manager."""

    def __init__(self, robot: str, log: Path, packages: Path | None, **parameters: object) -> None:
        arguments = ros_arguments({"robot": robot, **PATIENCE, **parameters}, f"/{robot}")
        paths = [] if packages is None else [packages]
        self.robot = robot
        self.process = NodeProcess("molmoact2_ros.nodes.executor_node", arguments, log, paths)
        self.companion = Companion(namespace=f"/{robot}")

    def __enter__(self) -> Running:
        self.companion.__enter__()
        self.cell = Cell(self.companion, self.robot)
        self.process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__()
        self.companion.__exit__()

    def ready(self) -> Cell:
        wait_until(lambda: self.cell.state == "DISARMED", lambda: f"the executor; {self.process.output}", START_S)
        wait_until(
            lambda: float(self.cell.value("joint_state_age_ms") or 1e9) < 500.0,
            "readings to reach the executor",
            START_S,
        )
        return self.cell
