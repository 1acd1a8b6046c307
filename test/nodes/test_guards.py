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
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from small_checkpoints import ROBOT, make_checkpoint
from std_msgs.msg import String
from std_srvs.srv import Trigger

from molmoact2_ros.nodes.policy_node import PolicyNode
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.qos import RELIABLE


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


@pytest.mark.parametrize(
    ("module", "parameters"),
    [("drill_node", {}), ("unasked_node", {}), ("replay_node", {"measure_s": 5.0})],
)
def test_a_node_that_arms_by_itself_does_not_start_unless_motion_is_allowed(
    module: str, parameters: dict[str, object], tmp_path: Path
) -> None:
    arguments = ros_arguments({"robot": "so101", **parameters})
    with NodeProcess(f"molmoact2_ros.nodes.bench.{module}", arguments, tmp_path / "log") as process:
        assert process.popen is not None
        assert process.popen.wait(60.0) == 1
        assert "allow_motion:=true" in process.output


class Surviving(MolmoNode):
    """A node whose handlers fail."""

    def __init__(self) -> None:
        super().__init__("surviving")
        self.heard: list[str] = []

    def setup(self) -> None:
        self.listen(String, "words", self._on_word, RELIABLE)
        self.hear(String, "other_words", lambda heard: self._on_word(heard.message))
        self.serve(Trigger, "fails", lambda request, response: 1 / 0)
        self.every(0.05, lambda: 1 / 0, inactive=True)

    def _on_word(self, message: String) -> None:
        self.heard.append(str(int(message.data)))


def test_no_message_timer_or_request_ends_a_node() -> None:
    rclpy.init()
    with Companion() as companion:
        node = Surviving()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        assert node.autostart()
        publishers = [companion.node.create_publisher(String, name, 10) for name in ("/words", "/other_words")]
        wait_until(lambda: all(p.get_subscription_count() for p in publishers), "the node")
        texts = iter(["one", "1", "two", "2"] * 200)

        def spin() -> None:
            text = next(texts)
            for publisher in publishers:
                publisher.publish(String(data=text))
            executor.spin_once(timeout_sec=0.05)

        wait_until(lambda: len(node.heard) >= 8, "numbers among the texts", meanwhile=spin)
        assert set(node.heard) == {"1", "2"}
        client = companion.node.create_client(Trigger, "/fails")
        assert client.wait_for_service(10.0)
        future = client.call_async(Trigger.Request())
        wait_until(future.done, "an answer", meanwhile=lambda: executor.spin_once(timeout_sec=0.05))
        assert not future.result().success and "fails failed" in future.result().message
        node.release()
        executor.shutdown()
        node.destroy_node()
    rclpy.shutdown()
