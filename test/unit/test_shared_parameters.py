"""What is said once of a robot reaches every node that it concerns: its speed, and where its joints are read."""

from pathlib import Path

import pytest
import yaml

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.preflight import parameters_of
from molmoact2_ros.bringup.specs import nodes

REAL = {"sim": False, "checkpoint": "a/b", "cameras": ("front=v4l2:/a",)}


def written(folder: Path, sections: dict[str, dict[str, object]]) -> str:
    path = folder / "my_cell.yaml"
    path.write_text(yaml.safe_dump({f"/**/{node}": {"ros__parameters": values} for node, values in sections.items()}))
    return str(path)


def in_force(options: Options, name: str) -> dict[str, object]:
    """What the node called so gets, by node; those that leave it at their default are left out."""
    found = {spec.name: parameters_of(spec).get(name) for spec in nodes(options)}
    return {node: value for node, value in found.items() if value is not None}


@pytest.mark.parametrize("option", [{}, {"emulated": True}, REAL])
def test_executor_and_what_takes_its_commands_have_one_speed(option: dict, tmp_path: Path) -> None:
    moving = {"executor"} | ({"sim"} if "sim" not in option else set()) | ({"so101_driver"} if option else set())
    assert in_force(Options(**option), "speed_scale") == dict.fromkeys(moving, 2.0)
    slow = in_force(Options(**option, speed_scale=0.3), "speed_scale")
    assert slow == dict.fromkeys(moving, 0.3)
    own = written(tmp_path, {"executor": {"speed_scale": 1.5}})
    assert in_force(Options(**option, config=own), "speed_scale") == dict.fromkeys(moving, 1.5)


def test_a_drivers_own_speed_stays_and_two_words_are_refused(tmp_path: Path) -> None:
    own = written(tmp_path, {"executor": {"speed_scale": 0.5}, "so101_driver": {"speed_scale": 1.0}})
    assert in_force(Options(**REAL, config=own), "speed_scale") == {"executor": 0.5, "so101_driver": 1.0}
    with pytest.raises(ValueError, match=r"speed_scale of so101_driver to 1\.0, and 0\.3 is asked for"):
        nodes(Options(**REAL, config=own, speed_scale=0.3))


@pytest.mark.parametrize(("robot", "scale"), [("so101", 3.5), ("yam", 2.5), ("franka", 1.1), ("so101", -1.0)])
def test_a_speed_that_the_robot_cannot_do_is_refused_before_a_node_starts(robot: str, scale: float) -> None:
    with pytest.raises(ValueError, match="speed_scale is"):
        nodes(Options(robot=robot, policy="expert", speed_scale=scale))


def test_who_reads_joints_reads_what_the_executor_reads(tmp_path: Path) -> None:
    topics = ["joint_states", "hand/joint_states"]
    own = written(tmp_path, {"executor": {"joint_state_topics": topics, "joint_map": ["my_*=*"]}})
    options = Options(**REAL, config=own, record=str(tmp_path / "bags"))
    shown = in_force(options, "joint_state_topics")
    assert set(shown) == {"executor", "policy", "visualizer", "recorder"}
    assert all(value == topics for value in shown.values())
    named = in_force(options, "joint_map")
    assert set(named) == {"executor", "policy", "visualizer"}
    assert all(value == ["my_*=*"] for value in named.values())
