"""Parameters: the page that lists them is the nodes' own, the files set what nodes have, and ROS reads the files as
bringup does. A value that a user's file gives is used or refused by the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from ros_process import Companion, NodeProcess

from molmoact2_ros.cli import reference_page
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.executor_node import ExecutorNode
from molmoact2_ros.nodes.ros import topic_page
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.parameter_page import FAMILIES, ROOMS, node_classes, page
from molmoact2_ros.parameter_files import parameters_for, robot_files, sections

ROOT = Path(__file__).parents[2]
NODES: dict[str, type[MolmoNode]] = {name: node for room in ROOMS for name, node in node_classes(room).items()}


@pytest.mark.parametrize(
    ("name", "made"), [("parameters", page), ("topics", topic_page.page), ("cli", reference_page.page)]
)
def test_the_reference_says_what_nodes_and_commands_declare(name: str, made: Callable[[], str]) -> None:
    assert (ROOT / f"docs/reference/{name}.md").read_text() == made(), "make it anew: make pages"


@pytest.mark.parametrize("family", FAMILIES)
def test_configured_values_are_declared_in_their_type_and_bounds_and_differ_from_the_default(family: str) -> None:
    found = 0
    for file in robot_files(family):
        for pattern, values in sections(file).items():
            node = pattern.removeprefix("/**/")
            declared = {parameter.name: parameter for parameter in NODES[node].PARAMETERS}
            for key, value in values.items():
                assert key in declared, f"{file}: {node} has no {key}"
                parameter, found = declared[key], found + 1
                assert type(value) is type(parameter.default), f"{file}: {node}.{key}"
                assert parameter.low is None or parameter.high is None or parameter.low <= value <= parameter.high
                if not (family == "so101" and key == "names"):
                    assert value != parameter.default, f"{file}: {node}.{key} is the default and belongs into no file"
    assert found > 5


@pytest.mark.parametrize("node", ["/left/cell/camera", "/left/executor", "/camera"])
def test_ros_reads_the_files_as_bringup_does(node: str, tmp_path: Path) -> None:
    """Wildcards, nested namespaces, levels, and the order in which sections win."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "/**/camera: {ros__parameters: {rate: 1, names: [a, b], deep: {er: {one: 1.5, two: x}}}}\n"
        "/**: {ros__parameters: {everywhere: 1, rate: 2}}\n"
        "/*/executor: {ros__parameters: {one_level: true}}\n"
    )
    second.write_text(
        "left: {cell: {camera: {ros__parameters: {rate: 3, deep: {er: {one: 2.5}}}}}}\n"
        "/**/camera: {ros__parameters: {names: [c], late: 4}}\n"
        "/left/*: {ros__parameters: {star: 5}}\n"
        "camera: {ros__parameters: {plain: 6}}\n"
        "/other/camera: {ros__parameters: {never: 7}}\n"
    )
    namespace, _, name = node.rpartition("/")
    arguments = ["--ros-args", "-r", f"__ns:={namespace or '/'}"]
    for file in (first, second):
        arguments += ["--params-file", str(file)]
    context = Context()
    rclpy.init(args=arguments, context=context)
    try:
        made = Node(
            name,
            context=context,
            automatically_declare_parameters_from_overrides=True,
            start_parameter_services=False,
        )
        heard = {key: parameter.value for key, parameter in made.get_parameters_by_prefix("").items()}
        made.destroy_node()
    finally:
        context.shutdown()
    for own in ("use_sim_time", "start_type_description_service"):
        heard.pop(own, None)
    assert heard == parameters_for([str(first), str(second)], node)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_lenght_s: 5.0", "film has no parameter 'max_lenght_s', which a parameter file sets; did you mean"),
        ("fps: fast", "fps"),
        ("fps: 4000", "fps"),
    ],
)
def test_a_value_that_the_node_cannot_use_ends_it_with_one_line(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"/**/film: {{ros__parameters: {{{line}}}}}")
    arguments = ["--ros-args", "--params-file", str(file)]
    with NodeProcess("molmoact2_ros.nodes.sim.film_node", arguments, tmp_path / "log") as process:
        assert process.popen is not None
        assert process.popen.wait(60.0) == 1
        assert words in process.output
        assert "Traceback" not in process.output


def test_a_parameter_shows_what_is_in_force_and_says_where_it_is_set() -> None:
    """What `ros2 param get` and `ros2 param set` of a running executor answer."""
    with Companion():
        node = ExecutorNode()
        try:
            robot = embodiment("so101")
            assert node.param("workspace_lower") == robot.workspaces[0].lower.tolist()
            assert node.param("workspace_upper") == robot.workspaces[0].upper.tolist()
            assert node.param("start_pose") == robot.rest_position.tolist()
            wanted = RosParameter("max_tracking_error", value=0.2)
            refused = node.set_parameters_atomically([wanted])
        finally:
            node.destroy_node()
    assert not refused.successful
    assert refused.reason.startswith("max_tracking_error is read when executor starts: write it into a parameter file")
    assert "config:=FILE" in refused.reason
