"""Bringup: the nodes for each choice, and that what it sets, and what the config file sets, is declared by the node."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from molmoact2_ros.bringup import NodeSpec, Options, fastdds_profile, nodes, share_path

ROOT = Path(__file__).parents[2]
EVERYTHING = Options(film="/tmp/film.mp4", picture="/tmp/picture.png", record="/tmp/bags")


def declared(path: Path) -> set[str]:
    """Names of the parameters that a node module declares, read from its text: importing torch takes too long here."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Parameter" and call.args]
    return {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}


def offered(executable: str) -> set[str]:
    """Parameters of a node, with those that every driver node shares."""
    shared = declared(module_path("arm_node")) if executable.endswith("_driver_node") else set()
    return declared(module_path(executable)) | shared | COMMON


def module_path(executable: str) -> Path:
    return ROOT / "molmoact2_ros" / "nodes" / f"{executable}.py"


COMMON = declared(module_path("node_base"))


def executables(options: Options) -> set[str]:
    return {spec.executable.removesuffix("_node") for spec in nodes(options)}


def test_each_choice_starts_its_nodes():
    base = {"sim", "camera", "policy", "executor", "visualizer", "episode"}
    assert executables(Options()) == base
    assert executables(Options(policy="expert", visualize=False)) == base - {"policy", "visualizer"} | {"expert"}
    assert executables(EVERYTHING) == base | {"film", "recorder"}
    assert executables(Options(sim=False, checkpoint="a/b")) == base - {"sim", "episode"} | {"so101_driver"}
    assert executables(Options(wire=True)) == base | {"so101_driver"}
    assert {spec.namespace for spec in nodes(Options(namespace="left/arm"))} == {"/left/arm"}


@pytest.mark.parametrize(
    "spec", [*nodes(EVERYTHING), *nodes(replace(EVERYTHING, policy="expert", wire=True))], ids=lambda spec: spec.name
)
def test_every_parameter_that_bringup_sets_is_declared_by_its_node(spec: NodeSpec):
    path = module_path(spec.executable)
    assert path.is_file(), f"{spec.executable} has no module"
    assert set(spec.parameters) <= offered(spec.executable)


def test_every_key_of_the_config_file_is_a_parameter_of_its_node():
    config = yaml.safe_load(share_path("config/so101.yaml").read_text())
    for key, section in config.items():
        name = key.removeprefix("/**/")
        unknown = set(section["ros__parameters"]) - offered(f"{name}_node")
        assert not unknown, f"{key}: {sorted(unknown)} are no parameters of {name}_node"


def test_simulated_cameras_of_two_cells_do_not_mix():
    (camera,) = (spec for spec in nodes(Options(link_prefix="cell_b")) if spec.executable == "camera_node")
    assert camera.parameters["sources"] == ["sim:cell_b_front", "sim:cell_b_wrist"]


def test_parameters_reach_the_command_line_with_their_types():
    parameters = {"task": 'say "no"', "rate": 5.0, "on": True, "names": ["a", "b"]}
    spec = NodeSpec("x_node", "x", "/so101", "/c.yaml", parameters)
    given = [value for flag, value in zip(spec.ros_arguments(), spec.ros_arguments()[1:], strict=False) if flag == "-p"]
    parsed = {text.partition(":=")[0]: yaml.safe_load(text.partition(":=")[2]) for text in given}
    assert parsed == dict(spec.parameters)
    assert isinstance(parsed["rate"], float)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"robot": "hal"}, "known robots"),
        ({"policy": "random"}, "molmoact2, expert"),
        ({"policy": "expert", "sim": False}, "simulated cell only"),
        ({"sim": False, "wire": True}, "wire needs the simulated cell"),
        ({"task": "  "}, "task is empty"),
        ({"episodes": 0}, "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(change, hint):
    with pytest.raises(ValueError, match=hint):
        nodes(Options(**change))


def test_files_are_found_and_a_missing_one_is_named():
    assert fastdds_profile().name == "fastdds.xml"
    with pytest.raises(FileNotFoundError, match=r"config/none\.yaml"):
        share_path("config/none.yaml")


def test_the_launch_file_takes_its_nodes_from_bringup():
    """Without `launch` (it has no wheel) the file cannot run here; that it reads the list is seen in its text."""
    tree = ast.parse((ROOT / "launch" / "so101.launch.py").read_text())
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    loops = [node.iter.id for node in ast.walk(tree) if isinstance(node, ast.For) and isinstance(node.iter, ast.Name)]
    assert "nodes" in calls and "specs" in loops
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    written = {name for name in names if name.endswith("_node")}
    assert written <= {"episode_node"}, "a node is named in the launch file; it belongs into bringup.py"
