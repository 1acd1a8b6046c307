"""The whole loop in separate processes: simulated cell, cameras, the real policy on its checkpoint, executor.

Pinned here: a disarmed executor commands nothing; the arm moves under the policy and stops on disarming; a silenced
camera stops the policy, which names it; garbage on the chunk topic changes no command; a policy that is killed while
the arm moves leaves an arm that holds within the horizon and says why.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ros_process import Companion, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import ProcessGroup, node_environment
from molmoact2_ros.bringup.specs import nodes
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR

ROBOT = embodiment("so101")
START_S = 180.0
"""Seven processes that import torch, MuJoCo and rclpy on two cores, possibly beside other work."""


class Loop:
    """The running nodes, and what the test hears of them."""

    def __init__(self, bringup: ProcessGroup, companion: Companion) -> None:
        self.bringup, self.companion = bringup, companion
        node = companion.node
        self.joints: np.ndarray | None = None
        self.readings: list[np.ndarray] = []
        self.state: DiagnosticStatus | None = None
        self.commands: list[np.ndarray] = []
        self.times_s: list[float] = []
        self.chunks: list[JointTrajectory] = []
        self.policy: DiagnosticStatus | None = None
        self.changes: list[tuple[str, str]] = []
        node.create_subscription(JointState, "joint_states", self._on_joints, SENSOR)
        node.create_subscription(DiagnosticStatus, "executor/state", self._on_state, LATCHED)
        node.create_subscription(JointState, "executor/command", self._on_command, SENSOR)
        self.to_driver = 0
        node.create_subscription(JointTrajectory, "policy/action_chunk", self.chunks.append, NEWEST)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        self._task = node.create_publisher(String, "task", LATCHED)
        self.garbage = node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)

    def _on_joints(self, message: JointState) -> None:
        self.joints = ROBOT.reorder(message.name, np.asarray(message.position))
        self.readings.append(self.joints)

    def _on_command(self, message: JointState) -> None:
        self.times_s.append(message.header.stamp.sec + message.header.stamp.nanosec * 1e-9)
        self.commands.append(np.asarray(message.position))
        self.to_driver += 1

    def forget_commands(self) -> None:
        self.commands, self.times_s = [], []

    def within_velocity_limits(self) -> bool:
        """No set-point was further from the one heard before it than the joints may travel in between."""
        commands, times = list(self.commands), list(self.times_s)
        n = min(len(commands), len(times))
        travel = np.abs(np.diff(np.stack(commands[:n]), axis=0))
        # A tick late by some milliseconds moves as far as one in time: the stamps are the clock, not the ticks.
        spans = np.maximum(np.diff(times[:n]), 0.0)[:, None] + 0.01
        return bool(np.all(travel <= ROBOT.limits.velocity * spans + 1e-6))

    def _on_state(self, message: DiagnosticStatus) -> None:
        self.state = message
        change = (message.message, self.value("reason"))
        if not self.changes or self.changes[-1] != change:
            self.changes.append(change)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("/policy"):
                self.policy = status

    def value(self, key: str) -> str:
        """One value of `executor/state`."""
        assert self.state is not None
        return next((item.value for item in self.state.values if item.key == key), "")

    def in_state(self, *states: str) -> bool:
        return self.state is not None and self.state.message in states

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.bringup.processes[name].popen.pid, number)

    def say_task(self) -> None:
        self._task.publish(String(data="pick up the red cube"))

    def new_episode(self) -> None:
        assert self.companion.call(SetBool, "executor/arm", SetBool.Request(data=False), 30.0).success
        wait_until(lambda: self.in_state("DISARMED"), "DISARMED", 20.0)
        assert self.companion.call(Trigger, "sim/reset", Trigger.Request(), 30.0).success
        self.say_task()
        seen = len(self.chunks)
        wait_until(lambda: len(self.chunks) > seen + 1, "chunks after the task", 60.0)

    def arm_and_follow(self) -> np.ndarray:
        """Arm, wait until the arm has moved, and return where it began."""
        start = self.joints.copy()
        wait_until(self._arms, lambda: f"arming; it says {self.refused}", 30.0)
        wait_until(lambda: self.in_state("TRACKING"), lambda: f"TRACKING; {self.changes[-4:]}", 30.0)
        wait_until(lambda: np.abs(self.joints - start).max() > 0.1, "the arm to move 0.1 rad", 30.0)
        return start

    def _arms(self) -> bool:
        """A reset puts the arm elsewhere in one reading; after that readings must agree for a while."""
        answer = self.companion.call(SetBool, "executor/arm", SetBool.Request(data=True), 30.0)
        self.refused = answer.message
        return bool(answer.success)

    def at_rest(self) -> bool:
        """The last half second of commands is one and the same."""
        recent = self.commands[-50:]
        return len(recent) < 2 or bool(np.ptp(np.stack(recent), axis=0).max() < 1e-6)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    options = Options(seed=4, visualize=False, link_prefix=f"closed_loop_{os.getpid()}")
    wanted = [spec for spec in nodes(options) if spec.name != "episode"]
    with ProcessGroup(wanted, tmp_path_factory.mktemp("log"), node_environment()) as bringup, Companion() as companion:
        running = Loop(bringup, companion)
        wait_until(lambda: running.joints is not None, "joint states", START_S)
        wait_until(lambda: running.in_state("DISARMED"), "the executor", START_S)
        running.say_task()

        def chunks() -> bool:
            bringup.check()
            return len(running.chunks) > 0

        wait_until(chunks, "the first chunk", START_S)
        yield running


def test_a_disarmed_executor_commands_nothing_while_chunks_arrive(loop: Loop) -> None:
    seen = len(loop.chunks)
    wait_until(lambda: len(loop.chunks) > seen + 2, "three chunks", 30.0)
    assert loop.commands == []
    assert loop.to_driver == 0
    chunk = loop.chunks[-1]
    assert list(chunk.joint_names) == list(ROBOT.joint_names)
    assert len(chunk.points) == ROBOT.horizon


def test_the_arm_moves_under_the_policy_and_stops_on_disarming(loop: Loop) -> None:
    loop.new_episode()
    loop.forget_commands()
    start = loop.arm_and_follow()
    assert np.abs(loop.commands[0] - start).max() < 0.02, "the first command must equal the measured position"
    assert loop.companion.call(SetBool, "executor/arm", SetBool.Request(data=False), 30.0).success
    wait_until(lambda: loop.in_state("DISARMED"), "DISARMED", 20.0)
    sent = len(loop.commands)
    seen = len(loop.chunks)
    wait_until(lambda: len(loop.chunks) > seen + 2, "three more chunks", 30.0)
    assert len(loop.commands) - sent <= 2
    assert loop.to_driver > 0
    assert loop.within_velocity_limits()


def test_garbage_on_the_chunk_topic_changes_no_command_and_is_named(loop: Loop) -> None:
    loop.new_episode()
    loop.arm_and_follow()
    loop.forget_commands()
    good = loop.chunks[-1]

    def chunk(rows: np.ndarray, names: list[str] | None = None) -> JointTrajectory:
        message = JointTrajectory(header=loop.chunks[-1].header, joint_names=names or list(good.joint_names))
        message.points = [
            JointTrajectoryPoint(positions=row, time_from_start=point.time_from_start)
            for row, point in zip(rows, good.points, strict=False)
        ]
        return message

    rows = np.stack([point.positions for point in good.points])
    for bad in (
        chunk(np.full_like(rows, np.nan)),
        chunk(np.full_like(rows, 1e6)),
        chunk(rows[:0]),
        chunk(rows, ["a", "b", "c", "d", "e", "f"]),
    ):
        refused = int(loop.value("chunks_refused"))
        # The policy publishes on the same topic and only the newest message is kept, so one alone may not be seen.
        wait_until(
            lambda before=refused: int(loop.value("chunks_refused")) > before,
            lambda bad=bad: f"a refusal of {len(bad.points)} rows for {list(bad.joint_names)}",
            10.0,
            meanwhile=lambda bad=bad: loop.garbage.publish(bad),
        )
        assert loop.value("last_refusal")
    sent = np.stack(loop.commands)
    assert np.all(np.isfinite(sent))
    assert loop.within_velocity_limits()
    assert np.all(sent >= ROBOT.limits.lower)
    assert np.all(sent <= ROBOT.limits.upper)


def test_a_silenced_camera_stops_the_policy_which_names_it_and_goes_on_when_it_returns(loop: Loop) -> None:
    loop.new_episode()
    loop.arm_and_follow()
    loop.signal("camera", signal.SIGSTOP)
    try:
        wait_until(
            lambda: loop.policy.level == DiagnosticStatus.ERROR and "camera" in loop.policy.message,
            lambda: f"the policy to name a camera; it says {loop.policy.message}",
            20.0,
        )
        assert "no frame for" in loop.policy.message
        wait_until(lambda: loop.in_state("HOLDING"), lambda: f"HOLDING; {loop.changes[-4:]}", 10.0)
        assert "silent" in loop.value("reason")
        wait_until(loop.at_rest, "commands at rest", 10.0)
    finally:
        loop.signal("camera", signal.SIGCONT)
    wait_until(lambda: loop.in_state("TRACKING"), "TRACKING again", 30.0)


def test_a_killed_policy_leaves_an_arm_that_holds_within_the_horizon_and_says_why(loop: Loop) -> None:
    loop.new_episode()
    loop.arm_and_follow()
    last_stamp = loop.chunks[-1].header.stamp
    loop.signal("policy", signal.SIGKILL)
    wait_until(lambda: loop.in_state("HOLDING"), lambda: f"HOLDING; {loop.changes[-4:]}", 10.0)
    end = loop.chunks[-1].header.stamp if loop.chunks else last_stamp
    held = loop.companion.node.get_clock().now().nanoseconds
    horizon_s = ROBOT.horizon / ROBOT.rate_hz
    # A second of room for the hold itself and for a loaded machine.
    assert held * 1e-9 - (end.sec + end.nanosec * 1e-9) < horizon_s + 1.5
    assert "silent" in loop.value("reason")
    wait_until(loop.at_rest, "commands at rest", 10.0)
    held_at = loop.commands[-1]
    sent = len(loop.commands)
    wait_until(lambda: len(loop.commands) > sent + 50, "half a second of commands", 10.0)
    assert np.abs(np.stack(loop.commands[sent:]) - held_at).max() < 1e-6
    # The arm comes to rest behind its commands; the jaw goes on pressing, and a cube may slip out of it.
    wait_until(lambda: np.ptp(np.stack(loop.readings[-50:]), axis=0)[:5].max() < 0.01, "an arm at rest", 10.0)
