"""What a node does when its own code fails: it says so, owns nothing half, and goes on when it can.

Pins: a failed activation once left a node "inactive" with nothing in its hands; a failed reset or publication once
ended the policy's worker without a word, while diagnostics said "publishing".
"""

from __future__ import annotations

from pathlib import Path

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from policy_cell import Cell
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from ros_process import Companion, ros_arguments, wait_until
from small_checkpoints import ROBOT, make_checkpoint
from std_msgs.msg import String

from molmoact2_ros.nodes.policy_node import PolicyNode
from molmoact2_ros.nodes.ros.node_base import RELIABLE, MolmoNode


class Breakable(MolmoNode):
    """A node whose activation fails while `broken`."""

    def __init__(self) -> None:
        super().__init__("breakable")
        self.broken = True

    def setup(self) -> None:
        self.topic = self.output(String, "words", RELIABLE)

    def start(self) -> None:
        if self.broken:
            raise ValueError("the lamp is off; switch it on")


def test_a_failed_activation_leads_back_to_unconfigured() -> None:
    rclpy.init()
    node = Breakable()
    success = TransitionCallbackReturn.SUCCESS
    assert node.trigger_configure() is success
    assert node.trigger_activate() is TransitionCallbackReturn.ERROR
    assert node._state_machine.current_state[1] == "unconfigured"
    assert node.count_publishers("words") == 0 and not node.active
    node.broken = False
    assert node.autostart() and node.active
    node.release()
    node.destroy_node()
    rclpy.shutdown()


@pytest.mark.parametrize("broken", ["reset", "publish"])
def test_whatever_fails_in_the_policys_worker_is_told_and_it_goes_on(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"checkpoint": str(make_checkpoint(tmp_path)), "norm_tag": ROBOT.norm_tag, "threads": 1}
    rclpy.init(args=ros_arguments(given))
    with Companion() as companion:
        node = PolicyNode()
        executor = SingleThreadedExecutor()
        cell = Cell(companion)
        assert node.autostart()
        assert node._policy is not None
        executor.add_node(node)
        owner, name = (node._policy, "reset") if broken == "reset" else (node, "_publish")
        working, calls = getattr(owner, name), []

        def fails_twice(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) <= 2:
                raise RuntimeError("out of memory")
            return working(*arguments)

        monkeypatch.setattr(owner, name, fails_twice)
        cell.task("pick up the red cube")
        seen: list[str] = []

        def spin() -> None:
            executor.spin_once(timeout_sec=0.05)
            level, message, _ = node.diagnose()
            if level == DiagnosticStatus.ERROR:
                seen.append(message)

        wait_until(lambda: len(cell.chunks) >= 1, "a chunk after the failures", 60.0, meanwhile=spin)
        assert any("inference failed: out of memory" in message for message in seen)
        node.release()
        executor.shutdown()
        node.destroy_node()
    rclpy.shutdown()
