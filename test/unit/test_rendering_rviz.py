"""The RViz view shows what the nodes publish, under names that RViz knows.

RViz cannot run here: the file is held to the plugin classes of rviz_default_plugins (Jazzy) and to the topics and QoS
in the source of the visualizer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.scene_markers import path_topics
from molmoact2_ros.nodes.ros.visualizer_parameters import PARAMETERS

ROOT = Path(__file__).parents[2]
ROBOTS = ("franka", "so101", "yam")
DISPLAYS = {"Grid", "RobotModel", "TF", "MarkerArray", "Path", "PointCloud2", "Image"}
TOOLS = {"Interact", "MoveCamera", "Select", "FocusCamera", "Measure"}
TYPES = {"MarkerArray": "MarkerArray", "Path": "Path", "PointCloud2": "PointCloud2", "Image": "Image"}


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def view(robot: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "config" / f"{robot}.rviz").read_text()))


@pytest.fixture(scope="module")
def manager(view: dict[str, Any]) -> dict[str, Any]:
    return dict(view["Visualization Manager"])


def published(robot: str) -> dict[str, tuple[str, str]]:
    """Topic -> (message type, QoS) of all that the source of the visualizer and its parts publish."""
    nodes = ROOT / "molmoact2_ros" / "nodes"
    files = (nodes / "visualizer_node.py", nodes / "ros/depth_views.py", nodes / "ros/scene_markers.py")
    source = "".join(file.read_text() for file in files)
    found = {f"/{robot}/{topic}": ("Path", "NEWEST") for topic in path_topics(embodiment(robot))}
    for kind, topic, qos in re.findall(r'output\((\w+), f?"([^"]+)", (\w+)\)', source):
        for camera in embodiment(robot).camera_names:
            found[f"/{robot}/" + topic.replace("{camera}", camera)] = (kind, qos)
    for kind, topic in re.findall(r'LatchedOutput\(\w+, (\w+), "([^"]+)"\)', source):
        found[f"/{robot}/{topic}"] = (kind, "LATCHED")
    return found


def topics_of(display: dict[str, Any]) -> list[dict[str, Any]]:
    return [display[key] for key in ("Topic", "Description Topic") if key in display]


def test_classes_are_those_of_rviz(view: dict[str, Any], manager: dict[str, Any]) -> None:
    assert {entry["Class"] for entry in manager["Displays"]} == {f"rviz_default_plugins/{name}" for name in DISPLAYS}
    assert {entry["Class"] for entry in manager["Tools"]} <= {f"rviz_default_plugins/{name}" for name in TOOLS}
    assert manager["Views"]["Current"]["Class"] == "rviz_default_plugins/Orbit"
    assert manager["Transformation"]["Current"]["Class"] == "rviz_default_plugins/TF"
    for panel in view["Panels"]:
        assert panel["Class"] in ("rviz_common/Displays",)


def test_every_topic_is_published_with_that_type_and_qos(robot: str, manager: dict[str, Any]) -> None:
    outputs = published(robot)
    assert len(outputs) >= 7
    shown = set()
    for display in manager["Displays"]:
        for topic in topics_of(display):
            name = topic["Value"]
            if name == f"/{robot}/robot_description":
                assert topic["Durability Policy"] == "Transient Local"
                continue
            kind, qos = outputs[name]
            assert kind == TYPES[display["Class"].split("/")[1]], name
            # What a user adds by hand is reliable: a best-effort publisher would leave it empty.
            assert (topic["Reliability Policy"], topic["Depth"]) == ("Reliable", 1), name
            assert qos in ("NEWEST", "LATCHED"), name
            assert topic["Durability Policy"] == ("Transient Local" if qos == "LATCHED" else "Volatile"), name
            shown.add(name)
    overlays = {f"overlay/{camera}" for camera in embodiment(robot).camera_names}
    expected = {"markers", "state_markers", "depth_points", "depth_colour", "legend"} | overlays
    expected |= {topic.removeprefix("visualization/") for topic in path_topics(embodiment(robot))}
    assert shown == {f"/{robot}/visualization/{name}" for name in expected}


def test_fixed_frame_is_the_base_of_the_model(robot: str, manager: dict[str, Any]) -> None:
    frame = manager["Global Options"]["Fixed Frame"]
    assert frame == embodiment(robot).base_link
    assert f'<link name="{frame}">' in (ROOT / "urdf" / f"{robot}.urdf").read_text()


def test_names_of_displays_are_distinct(manager: dict[str, Any]) -> None:
    names = [entry["Name"] for entry in manager["Displays"]]
    assert len(set(names)) == len(names)


def test_the_window_has_a_place_for_every_image(view: dict[str, Any], manager: dict[str, Any]) -> None:
    """Qt finds a dock by its name: one that the window's state does not name opens at the left, small."""
    images = [entry["Name"] for entry in manager["Displays"] if entry["Class"] == "rviz_default_plugins/Image"]
    state = bytes.fromhex(str(view["Window Geometry"]["QMainWindow State"]))
    for name in ("Displays", *images):
        letters = name.encode("utf-16-be")
        assert len(letters).to_bytes(4, "big") + letters in state, name
        assert view["Window Geometry"][name] == {"collapsed": False}
    assert "Views" not in view["Window Geometry"]


def test_points_leave_no_holes(manager: dict[str, Any]) -> None:
    (cloud,) = (entry for entry in manager["Displays"] if entry["Class"] == "rviz_default_plugins/PointCloud2")
    (apart,) = (parameter.default for parameter in PARAMETERS if parameter.name == "point_size_m")
    assert apart <= cloud["Size (m)"] <= 2 * apart
