"""The launch files start what the command line starts, with the arguments that a user expects.

`launch` and `launch_ros` have no wheel. Their classes are stood in for by ones that keep what they were given; that the
real ones take it was tried by hand with both packages from source.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ros_process import Companion
from std_msgs.msg import String

from molmoact2_ros.bringup.ending import ENDS_AFTER, LAUNCHER, RESTARTS, OnEnd
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.specs import nodes
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED
from molmoact2_ros.share import bundled_checkpoint

ROOT = Path(__file__).parents[2]
ROBOTS = ("franka", "so101", "yam")


class Kept:
    """Keeps its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


class LaunchConfiguration(Kept):
    def perform(self, context: dict[str, str]) -> str:
        return context[self.args[0]]


NAMES = {
    "launch": ("LaunchContext", "LaunchDescription"),
    "launch.actions": (
        "DeclareLaunchArgument",
        "EmitEvent",
        "LogInfo",
        "OpaqueFunction",
        "RegisterEventHandler",
        "SetEnvironmentVariable",
    ),
    "launch.event_handlers": ("OnProcessExit",),
    "launch.events": ("Shutdown",),
    "launch.substitutions": (),
    "launch_ros": (),
    "launch_ros.actions": ("Node",),
    "launch_ros.parameter_descriptions": ("ParameterValue",),
}


@pytest.fixture
def launching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with stand-ins for ROS's launch; gone again afterwards."""
    for module, names in NAMES.items():
        stand_in = ModuleType(module)
        for name in names:
            setattr(stand_in, name, type(name, (Kept,), {}))
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setattr(sys.modules["launch.substitutions"], "LaunchConfiguration", LaunchConfiguration, raising=False)
    monkeypatch.delitem(sys.modules, "molmoact2_ros.bringup.launch_actions", raising=False)
    for package in ("robot_state_publisher", "tf2_ros", "rviz2"):
        marker = tmp_path / "share/ament_index/resource_index/packages" / package
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    yield importlib.import_module("molmoact2_ros.bringup.launch_actions")
    sys.modules.pop("molmoact2_ros.bringup.launch_actions", None)


def launched(description: Any, **given: str) -> SimpleNamespace:
    """What a launch file declares and, with the arguments `given`, starts."""
    items = description.args[0]
    declared = {item.args[0]: item.kwargs for item in items if type(item).__name__ == "DeclareLaunchArgument"}
    assert set(given) <= set(declared)
    context = {name: given.get(name, kwargs["default_value"]) for name, kwargs in declared.items()}
    (function,) = (item.kwargs["function"] for item in items if type(item).__name__ == "OpaqueFunction")
    actions = function(context)
    return SimpleNamespace(
        arguments=declared,
        environment=[item.args for item in items if type(item).__name__ == "SetEnvironmentVariable"],
        nodes=[action.kwargs for action in actions if type(action).__name__ == "Node"],
        handlers=[action for action in actions if type(action).__name__ == "RegisterEventHandler"],
    )


def from_file(name: str) -> Any:
    return runpy.run_path(str(ROOT / "launch" / f"{name}.launch.py"))["generate_launch_description"]()


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_robot_shows_its_arguments_with_words_and_choices(launching: Any, robot: str) -> None:
    shown = launched(from_file(robot), policy="expert").arguments
    expected = {"sim", "emulated", "checkpoint", "task", "namespace", "rviz", "record", "use_sim_time", "cameras"}
    expected.add({"franka": "robot_ip"}.get(robot, "ports"))
    assert expected <= set(shown)
    assert all(kwargs["description"].endswith(".") for kwargs in shown.values())
    assert shown["sim"]["choices"] == ["true", "false"]
    assert shown["robot"]["choices"][0] == robot
    for choice in shown["robot"]["choices"]:
        assert embodiment(choice).family == robot


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"policy": "expert", "model": "false"}, {"policy": "expert"}),
        (
            {
                **{"sim": "false", "checkpoint": "a/b", "model": "false", "record": "/bags", "visualize": "false"},
                "cameras": "wrist=realsense:1, side=topic:/usb_cam/image_raw",
            },
            {
                **{"sim": False, "checkpoint": "a/b", "record": "/bags", "visualize": False},
                "cameras": ("wrist=realsense:1", "side=topic:/usb_cam/image_raw"),
            },
        ),
        ({"policy": "expert", "namespace": "left/cell", "seed": "7"}, {"policy": "expert", "seed": 7}),
    ],
)
def test_a_launch_file_starts_the_nodes_of_the_command_line(
    launching: Any, robot: str, given: dict[str, str], options: dict[str, Any]
) -> None:
    started = launched(from_file(robot), **given)
    expected = nodes(Options(robot=robot, namespace=given.get("namespace", ""), **options))
    ours = [kwargs for kwargs in started.nodes if kwargs["package"] == "molmoact2_ros"]
    assert [(n["executable"], n["name"], n["namespace"]) for n in ours] == [
        (spec.executable, spec.name, spec.namespace) for spec in expected
    ]
    for kwargs, spec in zip(ours, expected, strict=True):
        *configs, parameters = kwargs["parameters"]
        assert tuple(configs) == spec.configs
        assert {key: parameters[key] for key in spec.parameters} == dict(spec.parameters)
        assert parameters["use_sim_time"] is False
        assert kwargs["additional_env"] == {**spec.environment, LAUNCHER: str(os.getpid())}
        assert kwargs["respawn"] is (spec.on_end is OnEnd.RESTARTED) and kwargs["respawn_max_retries"] == RESTARTS
    assert len(started.handlers) == sum(spec.on_end is OnEnd.ENDS_RUN for spec in expected)
    assert any(name == "FASTRTPS_DEFAULT_PROFILES_FILE" for name, _ in started.environment)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_model_and_every_camera_have_their_frames_in_a_tree_of_the_robot(launching: Any, robot: str) -> None:
    started = launched(from_file(robot), policy="expert", namespace="here", rviz="true")
    publisher, *frames = (n for n in started.nodes if n["package"] in ("robot_state_publisher", "tf2_ros"))
    (rviz,) = (n for n in started.nodes if n["package"] == "rviz2")
    urdf = publisher["parameters"][0]["robot_description"].args[0]
    children = []
    for node in frames:
        words = dict(zip(node["arguments"][::2], node["arguments"][1::2], strict=True))
        assert f'<link name="{words["--frame-id"]}"' in urdf
        assert sum(float(words[f"--q{axis}"]) ** 2 for axis in "xyzw") == pytest.approx(1.0)
        children.append(words["--child-frame-id"])
    assert children == [f"{camera}_optical_frame" for camera in embodiment(robot).camera_names]
    for node in (publisher, rviz, *frames):
        assert node["namespace"] == "/here"
        assert ("/tf", "tf") in node["remappings"]
        assert ("/tf_static", "tf_static") in node["remappings"]
    view = Path(rviz["arguments"][1]).read_text()
    assert "/here/visualization/markers" in view
    assert f"/{robot}/" not in view


def test_variants_have_their_own_names_and_links(launching: Any) -> None:
    started = launched(from_file("franka"), robot="panda", policy="expert", rviz="true")
    (publisher,) = (n for n in started.nodes if n["package"] == "robot_state_publisher")
    urdf = publisher["parameters"][0]["robot_description"].args[0]
    assert 'joint name="panda_joint1"' in urdf
    assert "fr3" not in urdf
    (visualizer,) = (n for n in started.nodes if n["executable"] == "visualizer_node")
    assert visualizer["parameters"][-1]["base_frame"] == "panda_link0"
    (rviz,) = (n for n in started.nodes if n["package"] == "rviz2")
    assert "Fixed Frame: panda_link0" in Path(rviz["arguments"][1]).read_text()


def test_hardware_arguments_reach_driver_and_cameras(launching: Any) -> None:
    real = {"sim": "false", "checkpoint": "a/b", "model": "false"}

    def parameters(started: SimpleNamespace, executable: str) -> dict[str, Any]:
        return next(n["parameters"][-1] for n in started.nodes if n["executable"] == executable)

    so101 = launched(
        from_file("so101"), ports="/dev/arm", calibration_id="arm_b", cameras="wrist=realsense:2, front=v4l2:/a", **real
    )
    assert parameters(so101, "so101_driver_node")["port"] == "/dev/arm"
    assert parameters(so101, "so101_driver_node")["calibration_id"] == "arm_b"
    assert parameters(so101, "camera_node")["sources"] == ["v4l2:/a", "realsense:2"]
    real["cameras"] = "exterior=realsense:1,wrist=realsense:2"
    franka = launched(from_file("franka"), **real)
    assert "franka_driver_node" not in {n["executable"] for n in franka.nodes}, "franka_ros2 drives the arm"
    franka = launched(from_file("franka"), robot_ip="10.0.0.2", **real)
    assert parameters(franka, "franka_driver_node")["robot_ip"] == "10.0.0.2"
    with pytest.raises(ValueError, match=r"cameras must be top=v4l2:.*, got '1'"):
        launched(from_file("yam"), **{**real, "cameras": "1,2"})


def test_a_recorder_and_a_view_start_beside_a_running_robot(launching: Any) -> None:
    started = launched(from_file("record"), robot="yam", directory="/bags", use_sim_time="true")
    ((node,), (common, config, parameters)) = started.nodes, started.nodes[0]["parameters"]
    assert node["executable"] == "recorder_node"
    assert node["namespace"] == "/yam"
    assert common.endswith("common.yaml") and config.endswith("yam.yaml")
    assert parameters["directory"] == "/bags"
    assert parameters["autostart_recording"] is False
    assert parameters["use_sim_time"] is True
    view = launched(from_file("rviz"), robot="franka", model="true")
    assert {n["package"] for n in view.nodes} == {"robot_state_publisher", "tf2_ros", "rviz2"}
    assert {n["package"] for n in launched(from_file("rviz"), robot="franka", model="false").nodes} == {"rviz2"}


def test_a_view_beside_a_robot_starts_of_the_model_only_what_is_not_there(
    launching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(there: set[str]) -> list[str]:
        monkeypatch.setattr(launching, "nodes_there", lambda namespace, network: frozenset(there))
        return sorted(n.get("name", n["package"]) for n in launched(from_file("rviz"), robot="so101").nodes)

    frames = ["front_optical_frame_publisher", "wrist_optical_frame_publisher"]
    assert started(set()) == [frames[0], "robot_state_publisher", "rviz2", frames[1]]
    assert started({"robot_state_publisher", *frames}) == ["rviz2"]
    assert started({"robot_state_publisher", frames[0]}) == ["rviz2", frames[1]]


def test_the_model_that_is_there_is_found(launching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "DISCOVERY_S", 10.0)  # it ends as soon as the publisher is found
    monkeypatch.setenv(launching.DISCOVERY_RANGE, "LOCALHOST")
    with Companion(namespace="/here") as robot:
        robot.node.create_publisher(String, "robot_description", LATCHED)
        found = launching.nodes_there("/here", False)
        assert launching.STATE_PUBLISHER in found and robot.node.get_name() in found
        monkeypatch.setattr(launching, "DISCOVERY_S", 0.5)
        assert launching.STATE_PUBLISHER not in launching.nodes_there("/elsewhere", False)


def test_a_view_that_is_written_for_a_namespace_goes_with_the_launch(launching: Any) -> None:
    launched(from_file("rviz"), robot="so101", namespace="here", model="false")
    (folder,) = launching._FOLDERS
    place = Path(folder.name)
    assert list(place.iterdir())
    launching._FOLDERS.clear()
    del folder
    gc.collect()
    assert not place.exists(), "the folder goes with its last holder, at the latest when launch ends"


def test_a_node_that_fails_ends_the_launch_with_a_status_and_one_that_is_done_does_not(launching: Any) -> None:
    started = launched(from_file("so101"), policy="expert", model="false")
    running, ending = SimpleNamespace(is_shutdown=False), SimpleNamespace(is_shutdown=True)
    assert started.handlers
    for handler in started.handlers:
        on_exit = handler.args[0].kwargs["on_exit"]
        with pytest.raises(RuntimeError, match="has ended with status 1; its last lines say why"):
            on_exit(SimpleNamespace(returncode=1), running)
        for event, context in ((0, running), (1, ending), (-2, ending)):
            action = on_exit(SimpleNamespace(returncode=event), context)
            assert type(action.kwargs["event"]).__name__ == "Shutdown"


def test_a_checkpoint_that_does_not_fit_is_refused_before_the_first_node(launching: Any) -> None:
    cell = str(bundled_checkpoint("so101"))
    with pytest.raises(RuntimeError, match=r"the checkpoint is refused: .*no norm tag 'yam_dual_molmoact2'"):
        launched(from_file("yam"), checkpoint=cell, model="false")
    assert launched(from_file("yam"), checkpoint="some/where", model="false").nodes  # its policy fetches and checks it


def test_two_robots_of_a_kind_have_cells_of_their_own(launching: Any) -> None:
    prefixes = set()
    for namespace in ("one", "two"):
        started = launched(from_file("so101"), policy="expert", namespace=namespace)
        prefixes.add(next(n["parameters"][-1]["link_prefix"] for n in started.nodes if n["executable"] == "sim_node"))
    assert len(prefixes) == 2


def test_the_users_file_lies_on_top_and_arguments_that_cannot_be_used_are_named(launching: Any, tmp_path: Path) -> None:
    own = tmp_path / "cell.yaml"
    own.write_text(
        "/**/recorder: {ros__parameters: {directory: /data, autostart_recording: true}}\n"
        "/**/episode: {ros__parameters: {status_hz: 2.0, use_sim_time: true}}\n"
    )
    ((node,), (*configs, parameters)) = (
        (started := launched(from_file("record"), config=str(own)).nodes),
        started[0]["parameters"],
    )
    assert node["executable"] == "recorder_node" and configs[-1] == str(own)
    assert parameters["directory"] == "/data" and "autostart_recording" not in parameters
    with pytest.raises(ValueError, match="directory of recorder"):
        launched(from_file("record"), config=str(own), directory="/elsewhere")
    sim = launched(from_file("so101"), config=str(own), policy="expert", model="false")
    (episode,) = (n for n in sim.nodes if n["executable"] == "episode_node")
    assert not {"status_hz", "use_sim_time"} & set(episode["parameters"][-1])
    with pytest.raises(ValueError, match=r"cannot read the parameter file /nonexistent\.yaml"):
        launched(from_file("so101"), config="/nonexistent.yaml")
    with pytest.raises(ValueError, match=r"cannot read the parameter file /nonexistent\.yaml"):
        launched(from_file("rviz"), config="/nonexistent.yaml", model="true")
    with pytest.raises(ValueError, match="episodes:=many is no whole number"):
        launched(from_file("so101"), episodes="many")


@pytest.mark.parametrize(
    ("missing", "given", "words"),
    [
        ("robot_state_publisher", {}, "sudo apt install ros-jazzy-robot-state-publisher; model:=false"),
        ("tf2_ros", {}, "tf2_ros is not installed"),
        ("rviz2", {"rviz": "true"}, "sudo apt install ros-jazzy-rviz2; rviz:=false"),
    ],
)
def test_what_is_not_installed_is_said_before_the_first_node_starts(
    launching: Any, tmp_path: Path, missing: str, given: dict[str, str], words: str
) -> None:
    (tmp_path / "share/ament_index/resource_index/packages" / missing).unlink()
    with pytest.raises(ValueError, match=words):
        launched(from_file("so101"), policy="expert", **given)
    if missing != "rviz2":
        assert launched(from_file("so101"), policy="expert", model="false").nodes


def test_on_a_robot_no_node_takes_the_launch_with_it_and_the_driver_has_time_to_park(launching: Any) -> None:
    real = launched(
        from_file("yam"), sim="false", checkpoint="a/b", cameras="top=realsense:1", record="/bags", model="false"
    )
    assert not real.handlers
    for node in real.nodes:
        assert node["respawn"] is True
        late = node["name"] == "yam_driver"
        assert (float(node.get("sigkill_timeout", "5")) >= 60.0) is late
        assert node["additional_env"].get(ENDS_AFTER) == ("executor" if late else None)


def _reach(launching: Any, monkeypatch: pytest.MonkeyPatch, chosen: str | None, **given: str) -> list[tuple[str, str]]:
    monkeypatch.delenv(launching.DISCOVERY_RANGE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(launching.DISCOVERY_RANGE, chosen)
    found = launching._discovery(given.get("network") == "true")
    assert type(found[-1]).__name__ == "LogInfo", "who may hear is said"
    return [action.args for action in found if type(action).__name__ == "SetEnvironmentVariable"]


def test_a_launched_robot_is_heard_on_this_machine_only_unless_the_user_says_more(
    launching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = launching.DISCOVERY_RANGE
    assert _reach(launching, monkeypatch, None) == [(name, "LOCALHOST")]
    assert _reach(launching, monkeypatch, None, network="true") == [(name, "SUBNET")]
    assert _reach(launching, monkeypatch, "SUBNET") == []
    assert _reach(launching, monkeypatch, "LOCALHOST", network="true") == [(name, "SUBNET")]
    assert launched(from_file("so101"), policy="expert").arguments["network"]["default_value"] == "false"
