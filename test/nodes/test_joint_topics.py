"""An arm and its fingers that other people's drivers publish apart and under other names, executor and arm over ROS."""

from __future__ import annotations

from array import array
from pathlib import Path

from output_cell import START_S, Cell, Running
from ros_process import wait_until
from sensor_msgs.msg import JointState

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import SENSOR

FRANKA = embodiment("franka")


class Apart:
    """Takes the place of the cell's own joint states: arm joints and fingers, each on its topic, as fr3v2_*."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        cell.node.destroy_publisher(cell.joint_states)
        cell.joint_states = self
        self.topics = {
            topic: cell.node.create_publisher(JointState, topic, SENSOR)
            for topic in ("joint_states", "franka_gripper/joint_states")
        }
        self.silent: set[str] = set()

    def publish(self, whole: JointState) -> None:
        names = [name.replace("fr3_", "fr3v2_") for name in whole.name]
        arm = [j for j, name in enumerate(names) if "finger" not in name]
        fingers = [j for j, name in enumerate(names) if "finger" in name]
        for (topic, publisher), joints in zip(self.topics.items(), (arm, fingers), strict=True):
            if topic not in self.silent:
                part = JointState(header=whole.header, name=[names[j] for j in joints])
                part.position = array("d", [whole.position[j] for j in joints])
                publisher.publish(part)


def test_arm_and_fingers_of_two_topics_and_other_names_are_one_arm(tmp_path: Path) -> None:
    parameters = {
        "output": "joint_trajectory",
        "command_topic": "arm/joint_trajectory",
        "gripper_output": "in_array",
        "joint_state_topics": ["joint_states", "franka_gripper/joint_states"],
        "joint_map": ["fr3v2_*=fr3_*"],
    }
    with Running("franka", tmp_path / "log", None, **parameters) as running:
        apart = Apart(running.cell)
        apart.silent = {"franka_gripper/joint_states"}
        wait_until(lambda: running.cell.state == "DISARMED", "the executor", START_S)
        wait_until(
            lambda: not running.cell.arms() and "only of" in running.cell.refused,
            lambda: f"a refusal that says which joints are missing; it says {running.cell.refused}",
            30.0,
        )
        assert FRANKA.joint_names[-1] in running.cell.refused and "joint_state_topics" in running.cell.refused
        apart.silent = set()
        cell = running.ready()
        cell.arm()
        cell.await_state("HOLDING")
        cell.ask(gripper=1.0, joint=0.2)
        wait_until(lambda: cell.position[0] > 0.19, lambda: f"the arm to move; {cell.told()}", 30.0)
        theirs = [name.replace("fr3_", "fr3v2_") for name in FRANKA.joint_names]
        assert all(list(message.joint_names) == theirs for message in cell.trajectories)
        apart.silent = {"franka_gripper/joint_states"}
        cell.await_state("HOLDING", "joint_states of")
