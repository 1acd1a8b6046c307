"""A node that stands for the simulated cell, the executor and the policy, over real ROS, for tests of the episodes."""

from __future__ import annotations

import threading
import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE


def key_values(values: dict[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=str(value)) for key, value in values.items()]


class FakeCell:
    """Wins every episode whose number is in `wins`, 0.3 s after arming; loses none. Use as a context manager."""

    def __init__(self, wins=(), refuse_arm: str = "", fault: str = "", chunks: bool = True, namespace: str = "/so101"):
        self.wins, self.refuse_arm, self.fault, self.chunks = set(wins), refuse_arm, fault, chunks
        self.episode, self.armed_at, self.tasks, self.calls = -1, 0.0, [], []
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("fake_cell", namespace=namespace, context=self.context)
        self.cell = self.node.create_publisher(DiagnosticStatus, "sim/episode", LATCHED)
        self.state = self.node.create_publisher(DiagnosticStatus, "executor/state", LATCHED)
        self.chunk = self.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)
        self.diagnostics = self.node.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        self.node.create_subscription(String, "task", lambda message: self.tasks.append(message.data), LATCHED)
        self.node.create_service(Trigger, "sim/reset", self._reset)
        self.node.create_service(SetBool, "executor/arm", self._arm)
        self.node.create_timer(0.05, self._tick)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)

    def __enter__(self) -> FakeCell:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()
        self.thread.join(5.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def _reset(self, request, reply):
        self.calls.append("reset")
        self.episode += 1
        self.armed_at = 0.0
        reply.success, reply.message = True, str(self.episode)
        return reply

    def _arm(self, request, reply):
        self.calls.append("arm" if request.data else "disarm")
        reply.success = not (request.data and self.refuse_arm)
        reply.message = self.refuse_arm
        self.armed_at = time.monotonic() if request.data and reply.success else 0.0
        return reply

    def _tick(self) -> None:
        armed_s = time.monotonic() - self.armed_at if self.armed_at else 0.0
        won = armed_s > 0.3 and self.episode in self.wins
        cell = DiagnosticStatus(name="episode", message="success" if won else "running")
        cell.values = key_values(
            {"episode": self.episode, "seed": 7, "elapsed_s": armed_s, "cube_height_m": 0.06 if won else 0.0}
            | {"gripper_distance_m": 0.01, "min_gripper_distance_m": 0.01, "reached": won, "success": won}
        )
        self.cell.publish(cell)
        name = ("FAULT" if self.fault else "TRACKING") if armed_s else "DISARMED"
        state = DiagnosticStatus(name="executor", message=name)
        state.values = key_values({"reason": self.fault or "as asked", "chunk_age_ms": "120.0"})
        self.state.publish(state)
        if self.chunks and self.tasks:
            chunk = JointTrajectory(joint_names=["gripper"], points=[JointTrajectoryPoint(positions=[0.0])])
            chunk.header.stamp = self.node.get_clock().now().to_msg()
            self.chunk.publish(chunk)
        policy = DiagnosticStatus(name=f"{self.node.get_namespace()}/policy")
        policy.values = key_values({"latency_ms": "80.0", "vision_ms": "20.0", "latency_p50_ms": "79.0", "chunks": 3})
        self.diagnostics.publish(DiagnosticArray(status=[policy]))
