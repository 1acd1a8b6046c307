"""`molmoact2 run --teleop` with keys: a demonstration, and a correction of the expert, recorded with who drove."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from mcap_ros2.reader import read_ros2_messages
from pseudo_terminal import PseudoTerminal
from ros_process import Companion, wait_until

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED
from molmoact2_ros.recording.episodes import episodes

START_S, STEP_S = 150.0, 30.0
ROBOT = embodiment("so101")
RUN = [sys.executable, "-m", "molmoact2_ros.cli", "run", "--emulated", "--teleop", "so101_leader"]
PATIENCE = """
/**/executor:
  ros__parameters: {leader_timeout_s: 1.5, joint_state_timeout_s: 1.5, max_tick_gap_s: 1.5, e_stop_heartbeat_s: 8.0}
/**/so101_driver:
  ros__parameters: {lost_s: 5.0, joint_rate_hz: 30.0}
/**/sim:
  ros__parameters: {camera_rate_hz: 5.0}
"""
"""A test machine keeps every process waiting now and then; on a workcell that is a lost leader, or a lost arm."""


class Run:
    """A terminal with the command in it, and what the executor says through ROS."""

    def __init__(self, terminal: PseudoTerminal, other: Companion) -> None:
        self.terminal = terminal
        self.states = other.listen(DiagnosticStatus, "executor/state", LATCHED)

    def value(self, key: str) -> str:
        """What the executor says under `key`; its state under `state`."""
        if key == "state":
            return self.states[-1].message if self.states else ""
        return next((pair.value for pair in self.states[-1].values if pair.key == key), "") if self.states else ""

    def shows(self, words: str, limit_s: float = STEP_S) -> None:
        wait_until(lambda: words in self.terminal.text, lambda: f"{words!r}\n{self.terminal.screen}", limit_s)

    def press(self, key: str, what: str, wanted: str) -> None:
        """Press `key` until the executor's value of `what` is `wanted`: it may be refused while readings settle."""
        tries = [0]

        def there() -> bool:
            tries[0] += 1
            if tries[0] % 40 == 1:
                self.terminal.press(key)
            return self.value(what) == wanted

        wait_until(there, lambda: f"{what} {wanted}, it is {self.value(what)!r}\n{self.terminal.screen}", STEP_S)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "expert"])
def test_a_demonstration_and_a_correction_with_keys(policy: str, tmp_path: Path) -> None:
    bags, own = tmp_path / "bags", tmp_path / "own.yaml"
    own.write_text(PATIENCE)
    command = [*RUN, "--config", str(own), "--policy", policy, "--record", str(bags)]
    command += ["--task", "pick up the cube", "--out", str(tmp_path)]
    with Companion() as other, PseudoTerminal(command) as terminal:
        run = Run(terminal, other)
        run.shows("a arms, s arms", START_S)
        terminal.press("e")
        run.shows("episode_0001")
        begins = "nobody" if policy == "none" else "policy"
        run.press("a", "state", "HOLDING" if policy == "none" else "TRACKING")
        wait_until(lambda: run.value("drives") == begins, f"{begins} to drive", STEP_S)
        run.shows("armed; holding")
        run.press("h", "drives", "teleop")
        wait_until(lambda: run.value("handover") == "teleop", "the leader to drive", STEP_S)
        seen = len(run.states)
        wait_until(lambda: len(run.states) > seen + 15, "three seconds of it", STEP_S)
        run.press("p", "handover", "policy")
        run.press("p", "drives", begins)
        terminal.press("q")
        assert terminal.popen.wait(90.0) == 0, terminal.screen
    (episode,) = episodes(bags)
    drove: Counter[str] = Counter()
    stamps: dict[str, set[int]] = {"command": set(), "driving": set()}
    swayed = []
    for found in read_ros2_messages(str(next(episode.path.glob("*.mcap")))):
        topic, message = found.channel.topic, found.ros_msg
        if topic.endswith("executor/driving"):
            drove[message.frame_id] += 1
            stamps["driving"].add(message.stamp.sec * 10**9 + message.stamp.nanosec)
        elif topic.endswith("executor/command"):
            stamps["command"].add(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)
        elif topic.endswith("teleop/command"):
            swayed.append(list(message.position))
    assert drove["teleop"] > 100 and (policy == "none") == (not drove["policy"]), drove
    assert len(stamps["command"] & stamps["driving"]) > 0.95 * len(stamps["command"])
    assert np.ptp(np.array(swayed), axis=0)[ROBOT.arms[0]].min() > 0.1
