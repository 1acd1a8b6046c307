"""A recorded trajectory goes out as chunks through the executor: only once the arm is armed, and to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR

ROBOT = embodiment("so101")
LIMIT_S = 60.0


def trajectory(folder: Path) -> str:
    phase = np.linspace(0.0, 2.0 * np.pi, 45)[:, None]
    rows = ROBOT.rest_position + np.array([0.3, 0.2, 0.2, 0.2, 0.2, 0.1]) * np.sin(phase)
    np.savez(folder / "trajectory.npz", rows=rows + np.array([0.2, 0, 0, 0, 0, 0]), rate_hz=30.0)
    return str(folder / "trajectory.npz")


def lines(node: NodeProcess, kind: str) -> list[dict[str, Any]]:
    """What a node has said of a kind; it writes its log among it."""
    found = [json.loads(line) for line in node.output.splitlines() if line.startswith("{")]
    return [line for line in found if line["type"] == kind]


def test_a_trajectory_is_played_and_its_error_told(tmp_path: Path) -> None:
    arm = ros_arguments({"policy": False})
    playback = ros_arguments({"trajectory": trajectory(tmp_path), "arm": False})
    with (
        Companion() as companion,
        NodeProcess("molmoact2_ros.nodes.bench.replay_node", arm, tmp_path / "arm.log"),
        NodeProcess("molmoact2_ros.nodes.executor_node", ros_arguments({"arm_needs_chunk": True}), tmp_path / "e.log"),
        NodeProcess("molmoact2_ros.nodes.playback_node", playback, tmp_path / "p.log") as node,
    ):
        chunks: list[JointTrajectory] = companion.listen(JointTrajectory, "policy/action_chunk", NEWEST)
        joints: list[JointState] = companion.listen(JointState, "joint_states", SENSOR)
        wait_until(lambda: len(chunks) > 10 and joints, lambda: f"chunks that hold the arm; {node.output}", LIMIT_S)
        for chunk in chunks:
            np.testing.assert_allclose(
                [point.positions for point in chunk.points], [joints[0].position] * 30, atol=1e-9
            )

        def armed() -> bool:
            return bool(companion.call(SetBool, "executor/arm", SetBool.Request(data=True), LIMIT_S).success)

        wait_until(armed, "arming", LIMIT_S)
        wait_until(lambda: node.popen is not None and node.popen.poll() is not None, lambda: node.output, LIMIT_S)
        assert node.popen is not None and node.popen.returncode == 0, node.output
    (summary,) = lines(node, "summary")
    assert summary["joints"] == list(ROBOT.joint_names)
    assert summary["played_s"] == pytest.approx(44 / 30)
    assert summary["readings"] > 50 and max(summary["rms"]) < 0.15
    assert max(summary["rms_lagged"]) < max(0.05, max(summary["rms"])), "mostly lag"


def test_an_arm_that_is_disarmed_ends_it_with_the_reason(tmp_path: Path) -> None:
    arm = ros_arguments({"policy": False})
    playback = ros_arguments({"trajectory": trajectory(tmp_path), "arm": True, "speed": 0.1})
    with (
        Companion() as companion,
        NodeProcess("molmoact2_ros.nodes.bench.replay_node", arm, tmp_path / "arm.log"),
        NodeProcess("molmoact2_ros.nodes.executor_node", ros_arguments({}), tmp_path / "e.log"),
        NodeProcess("molmoact2_ros.nodes.playback_node", playback, tmp_path / "p.log") as node,
    ):
        wait_until(lambda: any(line["played_s"] > 0.5 for line in lines(node, "status")), lambda: node.output, LIMIT_S)
        assert companion.call(SetBool, "executor/arm", SetBool.Request(data=False), LIMIT_S).success
        wait_until(lambda: node.popen is not None and node.popen.poll() is not None, lambda: node.output, LIMIT_S)
        assert node.popen is not None and node.popen.returncode == 1
    assert "DISARMED" in lines(node, "error")[0]["error"]
    assert not lines(node, "summary")
