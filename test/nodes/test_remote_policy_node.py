"""The policy node with its policy on another machine: a real server, a real executor, over real ROS.

Pins: the node's process never loads torch, lerobot or transformers; a server that is gone for three seconds is named in
the diagnostics, the arm comes to rest by the executor's rules, and all goes on by itself when the server is back.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fault_cell import PATIENCE, FaultCell
from policy_server import make_checkpoint, served
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import Image
from small_checkpoints import ROBOT, so101_metadata
from std_msgs.msg import String

from molmoact2_ros.nodes.ros.qos import RELIABLE, SENSOR
from molmoact2_ros.serving.running import PolicyServer, ServeOptions
from molmoact2_ros.serving.sessions import Sessions

START_S = 120.0
GONE_S = 3.0
FORBIDDEN = ("torch", "lerobot", "transformers")


def quiet_checkpoint(folder: Path) -> Path:
    """One whose targets lie within 3 degrees of the rest pose, so that the executor takes its chunks."""
    metadata = so101_metadata()
    rest = ROBOT.model_from_joints(ROBOT.rest_position)
    spread = np.array([3.0, 3.0, 3.0, 3.0, 3.0, 5.0])
    metadata["action_stats"] |= {"q01": (rest - spread).tolist(), "q50": rest.tolist(), "q99": (rest + spread).tolist()}
    return make_checkpoint(folder, metadata=metadata)


class Robot:
    """The cell but for its policy: `FaultCell` and cameras; and what the policy node says of itself."""

    def __init__(self, companion: Companion) -> None:
        self.cell, node = FaultCell(companion), companion.node
        self.status: dict[str, Any] = {}
        self._frames = 0
        self._images = {
            name: node.create_publisher(Image, f"cameras/{name}/image_raw", SENSOR) for name in ROBOT.camera_names
        }
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        node.create_timer(0.05, self._capture)
        self._node = node

    def task(self) -> None:
        self.cell.task.publish(String(data="pick up the red cube"))

    def _capture(self) -> None:
        self._frames += 1
        stamp = self._node.get_clock().now().to_msg()
        for publisher in self._images.values():
            image = Image(height=24, width=32, encoding="rgb8", step=96)
            image.header.stamp = stamp
            image.data = array("B", np.full(24 * 96, 90 + self._frames % 3, np.uint8).tobytes())
            publisher.publish(image)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "/so101/policy":
                self.status = {"level": status.level, "message": status.message}
                self.status |= {item.key: item.value for item in status.values}


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    made = served(quiet_checkpoint(tmp_path / "checkpoint"))
    made.warm_up()
    yield made
    made.close()


def test_a_server_that_goes_and_comes_back(sessions: Sessions, tmp_path: Path) -> None:
    for name in FORBIDDEN:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} on a robot')")
    token = tmp_path / "token"
    token.write_text("a-token-for-this-test")

    def started(port: int) -> PolicyServer:
        return PolicyServer(sessions, ServeOptions(port=port, token_file=str(token))).__enter__()

    first = started(0)
    parameters = {
        "backend": f"remote:ws://127.0.0.1:{first.port}",
        "remote.token_file": str(token),
        "remote.deadline_s": 5.0,
        "norm_tag": ROBOT.norm_tag,
        "cell_cameras": ["front", "wrist"],
        "camera_timeout_s": 5.0,
        "state_timeout_s": 5.0,
        "max_skew_s": 0.0,
        "max_rate_hz": 5.0,
    }
    logs = tmp_path / "policy.log", tmp_path / "executor.log"
    with (
        Companion() as companion,
        NodeProcess("molmoact2_ros.nodes.executor_node", ros_arguments(PATIENCE), logs[1]),
        NodeProcess("molmoact2_ros.nodes.policy_node", ros_arguments(parameters), logs[0], [tmp_path]) as policy,
    ):
        robot = Robot(companion)
        cell = robot.cell
        cell.acknowledging = True
        wait_until(lambda: cell.state == "DISARMED", lambda: f"the executor; {cell.told()}", START_S)
        wait_until(lambda: "waiting" in policy.output, lambda: f"the policy node; {policy.output}", START_S)
        robot.task()
        wait_until(lambda: robot.status.get("message") == "publishing", lambda: f"chunks; {robot.status}", 30.0)
        wait_until(lambda: cell.arm().success, lambda: f"arming; {cell.told()}", 20.0)
        cell.await_state("TRACKING")
        wait_until(lambda: "network_ms" in robot.status, lambda: f"what a call took; {robot.status}")
        assert float(robot.status["network_ms"]) >= 0.0 and float(robot.status["encode_ms"]) > 0.0

        first.stop()
        gone = time.monotonic()
        wait_until(
            lambda: robot.status["level"] == DiagnosticStatus.ERROR and "no policy server" in robot.status["message"],
            lambda: f"its word; {robot.status}",
        )
        cell.await_state("HOLDING")
        cell.await_rest()
        wait_until(lambda: time.monotonic() > gone + GONE_S, "three seconds")
        assert cell.state == "HOLDING" and policy.popen.poll() is None
        made = int(robot.status["chunks"])

        again = started(first.port)
        wait_until(lambda: robot.status.get("message") == "publishing", lambda: f"chunks; {robot.status}", 20.0)
        cell.await_state("TRACKING")
        wait_until(lambda: int(robot.status["chunks"]) > made, "more chunks")
        assert "connected again" in policy.output
        assert cell.within_limits()
        assert policy.interrupt() == 0, policy.output
    again.stop()


def test_what_only_the_server_can_do_is_refused(tmp_path: Path) -> None:
    parameters = {
        "backend": "remote:ws://127.0.0.1:9",
        "checkpoint": "so101_cell",
        "device": "cpu",
        "depth.mode": "full",
    }
    with NodeProcess("molmoact2_ros.nodes.policy_node", ros_arguments(parameters), tmp_path / "log") as policy:
        wait_until(lambda: policy.popen.poll() is not None, "its end", START_S)
        assert policy.popen.returncode != 0
        assert "device, depth_mode, checkpoint must be said to molmoact2 serve" in policy.output
