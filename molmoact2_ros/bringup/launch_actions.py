"""What the launch files share: their arguments, and the actions that start the nodes of `specs.py`.

Every robot has a TF tree of its own (`<namespace>/tf`), so that several robots stand side by side: their links and
cameras bear the same names.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from molmoact2_ros.bringup.ending import LAUNCHER, PARK_S, REST_S, RESTART_DELAY_S, RESTARTS, OnEnd, ends_after
from molmoact2_ros.bringup.frames import camera_frames
from molmoact2_ros.bringup.options import DRIVERS, POLICIES, Options, camera_example, namespace_of
from molmoact2_ros.bringup.preflight import check_checkpoint
from molmoact2_ros.bringup.specs import Cell, NodeSpec, Value, fastdds_profile, nodes
from molmoact2_ros.embodiments import EMBODIMENTS, embodiment
from molmoact2_ros.embodiments.description import robot_description
from molmoact2_ros.share import PACKAGE, share_path

DEFAULTS = Options()
QUIETER: dict[str, dict[str, Value]] = {"episode_node": {"status_hz": 0.2}}
"""The command line draws a live line from its status; here every one is a line on the screen."""
DISCOVERY_RANGE = "ROS_AUTOMATIC_DISCOVERY_RANGE"
STATE_PUBLISHER = "robot_state_publisher"
DISCOVERY_S = 3.0
"""How long to look for the model's publisher before it counts as not there: discovery takes up to 2.2 s."""
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Views written for RViz; they go when launch ends."""
TF = [("/tf", "tf"), ("/tf_static", "tf_static")]
BOOL = ("true", "false")


@dataclass(frozen=True)
class Argument:
    """A launch argument; an empty `choices` allows anything."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()

    def declared(self) -> DeclareLaunchArgument:
        """The argument as `--show-args` shows it."""
        limits = {"choices": list(self.choices)} if self.choices else {}
        return DeclareLaunchArgument(self.name, default_value=self.default, description=self.description, **limits)


def variants(family: str) -> tuple[str, ...]:
    """Robots that a launch file serves, the plain one first."""
    return family, *sorted(name for name, robot in EMBODIMENTS.items() if robot.family == family and name != family)


def robot_arguments(family: str) -> tuple[Argument, ...]:
    """Arguments of a robot's launch file."""
    ports = {"so101": "Serial port of the arm", "yam": "CAN channels of the left and the right arm"}.get(family)
    hardware = (
        [Argument("ports", "", f"{ports}, with commas between; empty: as the config file says.")] if ports else []
    )
    if family == "so101":
        hardware += [Argument("calibration_id", "", "What lerobot-calibrate was told as --robot.id.")]
    if family == "franka":
        hardware = [Argument("robot_ip", "", "Address of the arm for this package's own driver; see driver.")]
    return (
        Argument("robot", family, "Which variant of the robot.", variants(family)),
        Argument("sim", "true", "Start the simulated cell and run episodes on it; false: the robot's driver.", BOOL),
        Argument("emulated", "false", "Simulated cell behind the emulated bus of the arm, with the real driver.", BOOL),
        Argument("task", DEFAULTS.task, "What the robot is told in the cell; on a robot publish it on `task`."),
        Argument("policy", DEFAULTS.policy, "Who decides; the expert knows the simulated cell only.", POLICIES),
        Argument("checkpoint", "", "Checkpoint directory or Hugging Face id; empty: the simulated cell's own."),
        Argument("episodes", str(DEFAULTS.episodes), "How many episodes the simulated cell runs; 0: you drive it."),
        Argument("seed", str(DEFAULTS.seed), "Where the placements of the simulated cell come from."),
        Argument("record", "", "Directory for one MCAP bag an episode; empty: record nothing."),
        Argument(
            "driver",
            "auto",
            "node: this package's; external: another one in this namespace, such as franka_ros2.",
            DRIVERS,
        ),
        *hardware,
        Argument("teleop", "", "What a person takes over with: so101_leader:[ID@]PORT, gamepad, ...; empty: nothing."),
        Argument("cameras", "", f"Of a robot, <name>=<source> with commas between: {camera_example(family)}."),
        Argument(
            "speed_scale", "0.0", "Times the speed of the arm's joints; 0: as the files say. 0.3 for a first run."
        ),
        *_COMMON,
        Argument("visualize", "true", "Start the visualizer.", BOOL),
        Argument("panel", "false", "Serve the operator's panel to a browser on this machine.", BOOL),
        Argument("model", "true", "Start robot_state_publisher and publish where the cameras are.", BOOL),
        Argument("rviz", "false", "Start RViz.", BOOL),
    )


_COMMON = (
    Argument("namespace", "", "ROS namespace; empty: the robot's name."),
    Argument("config", "", "Parameter file of your own, on top of the robot's: only what you want otherwise."),
    Argument("meshes", "false", "Show the vendor's meshes in RViz, where their package is installed.", BOOL),
    Argument("use_sim_time", "false", "Take the time from /clock, as when a bag is played.", BOOL),
    Argument("network", "false", "Let other machines hear and command this robot; see SECURITY.md.", BOOL),
)
_ROBOT = Argument("robot", DEFAULTS.robot, "Which robot.", tuple(sorted(EMBODIMENTS)))
RECORD_ARGUMENTS = (
    _ROBOT,
    Argument("directory", "bags", "Where the bags go: episode_0001, episode_0002, ..."),
    Argument("autostart", "false", "Follow sim/episode; false: recorder/start and recorder/stop.", BOOL),
    *(argument for argument in _COMMON if argument.name != "meshes"),
)
RVIZ_ARGUMENTS = (
    _ROBOT,
    Argument(
        "model",
        "auto",
        "Start robot_state_publisher and publish where the cameras are; auto: what of it is not there yet.",
        ("auto", *BOOL),
    ),
    Argument("sim", "true", "Cameras of the simulated cell; false: of the config's calibration file.", BOOL),
    *_COMMON,
)


def options_of(values: Mapping[str, str]) -> Options:
    """Return the bringup options for launch arguments; those that a launch file does not have keep their default.

    Raises:
        ValueError: an argument that must be a number is none.
    """
    given: dict[str, Any] = {}
    as_written = ("robot", "task", "policy", "checkpoint", "record", "namespace", "config", "driver", "robot_ip")
    for name in (*as_written, "calibration_id", "teleop"):
        if name in values:
            given[name] = values[name]
    for name in ("sim", "emulated", "visualize", "panel"):
        if name in values:
            given[name] = values[name] == "true"
    for name, kind, example in (("episodes", int, "10"), ("seed", int, "10"), ("speed_scale", float, "0.5")):
        if name in values:
            try:
                given[name] = kind(values[name])
            except ValueError:
                what = "whole number" if kind is int else "number"
                raise ValueError(f"{name}:={values[name]} is no {what}, for instance {name}:={example}") from None
    for name in ("ports", "cameras"):
        if values.get(name):
            given[name] = tuple(part.strip() for part in values[name].split(","))
    return Options(**given)


def robot_launch(family: str) -> LaunchDescription:
    """The launch description of a robot."""

    def actions(values: dict[str, str]) -> list[Any]:
        options = options_of(values)
        specs = nodes(options)
        check_checkpoint(specs, fetch=False)
        found = _node_actions(options, specs, values)
        # What is missing is said before the first node runs.
        if "true" in (values["model"], values["rviz"]):
            found += model_actions(options, values)
        if values["rviz"] == "true":
            found.append(rviz_action(options, values))
        return found

    return _description(robot_arguments(family), actions)


def record_launch() -> LaunchDescription:
    """The launch description of a recorder beside a robot that runs already."""

    def actions(values: dict[str, str]) -> list[Any]:
        options = replace(options_of(values), sim=False, policy="none")
        cell, default = Cell(options), {argument.name: argument.default for argument in RECORD_ARGUMENTS}
        directory = values["directory"]
        if directory == default["directory"]:
            directory = cell.written("recorder").get("directory", directory)
        autostart = {"autostart_recording": values["autostart"] == "true"}
        chosen = values["autostart"] != default["autostart"]
        extra = cell.parameters("recorder", autostart) if chosen else cell.parameters("recorder", {}, autostart)
        specs = tuple(spec for spec in nodes(replace(options, record=directory)) if spec.name == "recorder")
        return _node_actions(options, specs, values, extra)

    return _description(RECORD_ARGUMENTS, actions)


def rviz_launch() -> LaunchDescription:
    """The launch description of RViz and the robot's model beside a robot that runs already."""

    def actions(values: dict[str, str]) -> list[Any]:
        options = options_of(values)
        view = rviz_action(options, values)
        if values["model"] == "false":
            return [view]
        there: frozenset[str] = frozenset()
        if values["model"] == "auto":
            there = nodes_there(namespace_of(options), values["network"] == "true")
        return [*model_actions(options, values, there), view]

    return _description(RVIZ_ARGUMENTS, actions)


def nodes_there(namespace: str, network: bool) -> frozenset[str]:
    """Names of the nodes that run in `namespace`, and `STATE_PUBLISHER` where anybody publishes its description."""
    import rclpy
    from rclpy.context import Context

    # What `_discovery` says takes effect only when launch goes on; this looks as far already.
    os.environ[DISCOVERY_RANGE] = "SUBNET" if network else os.environ.get(DISCOVERY_RANGE, "LOCALHOST")
    context = Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("rviz_launch", namespace=namespace, context=context)
        description = f"{namespace.rstrip('/')}/robot_description"
        deadline = time.monotonic() + DISCOVERY_S
        while not node.count_publishers(description) and time.monotonic() < deadline:
            time.sleep(0.1)
        published = bool(node.count_publishers(description))
        time.sleep(1.0 if published else 0.0)  # the publishers of the cameras' frames are processes of their own
        found = {name for name, place in node.get_node_names_and_namespaces() if place == (namespace or "/")}
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    return frozenset(found | {STATE_PUBLISHER}) if published else frozenset(found - {STATE_PUBLISHER})


def model_actions(options: Options, values: Mapping[str, str], there: Set[str] = frozenset()) -> list[Any]:
    """robot_state_publisher, and the frames of the cameras; without the nodes that are `there` already: a transform
    from two publishers makes RViz flicker."""
    _need("robot_state_publisher", "model:=false leaves the model out")
    _need("tf2_ros", "model:=false leaves the model out")
    namespace, time_ = namespace_of(options), {"use_sim_time": values["use_sim_time"] == "true"}
    found = []
    if STATE_PUBLISHER not in there:
        urdf = robot_description(embodiment(options.robot), values["meshes"] == "true")
        found.append(
            Node(
                package=STATE_PUBLISHER,
                executable=STATE_PUBLISHER,
                namespace=namespace,
                parameters=[{"robot_description": ParameterValue(urdf, value_type=str), **time_}],
                remappings=TF,
            )
        )
    for frame in camera_frames(options):
        name = f"{frame.child}_publisher"
        if name in there:
            continue
        w, x, y, z = frame.wxyz
        turn = zip(("x", "y", "z", "qx", "qy", "qz", "qw"), (*frame.xyz, x, y, z, w), strict=True)
        found.append(
            Node(
                package="tf2_ros",
                executable="static_transform_publisher",
                name=name,
                namespace=namespace,
                arguments=[
                    *(part for key, value in turn for part in (f"--{key}", f"{value:.9g}")),
                    *("--frame-id", frame.parent, "--child-frame-id", frame.child),
                ],
                parameters=[time_],
                remappings=TF,
            )
        )
    return found


def rviz_action(options: Options, values: Mapping[str, str]) -> Any:
    """RViz with the robot's view, its topics in the robot's namespace."""
    _need("rviz2", "rviz:=false leaves it out")
    robot, namespace = embodiment(options.robot), namespace_of(options)
    view = share_path(f"config/{robot.family}.rviz")
    if namespace != f"/{robot.family}" or robot.name != robot.family:
        text = view.read_text().replace(f"/{robot.family}/", f"{namespace.rstrip('/')}/")
        text = text.replace(embodiment(robot.family).base_link, robot.base_link)
        folder = tempfile.TemporaryDirectory(prefix="molmoact2_rviz_")
        _FOLDERS.append(folder)
        view = Path(folder.name) / view.name
        view.write_text(text)
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        arguments=["-d", str(view)],
        parameters=[{"use_sim_time": values["use_sim_time"] == "true"}],
        remappings=TF,
    )


def _need(package: str, otherwise: str) -> None:
    """Raise where a ROS package is not installed: launch would say so only when the nodes before it run."""
    try:
        get_package_prefix(package)
    except LookupError:  # what it raises is a KeyError
        debian = f"ros-jazzy-{package.replace('_', '-')}"
        raise ValueError(f"{package} is not installed: sudo apt install {debian}; {otherwise}") from None


def _node_actions(
    options: Options, specs: tuple[NodeSpec, ...], values: Mapping[str, str], extra: Mapping[str, Any] | None = None
) -> list[Any]:
    found = []
    cell = Cell(options)
    sim_time = values["use_sim_time"] == "true"
    given: dict[str, Value] = {"use_sim_time": True} if sim_time else {}
    for spec in specs:
        own = cell.parameters(spec.name, given, {**QUIETER.get(spec.executable, {}), "use_sim_time": sim_time})
        action = Node(
            package=PACKAGE,
            executable=spec.executable,
            name=spec.name,
            namespace=spec.namespace,
            parameters=[*spec.configs, {**spec.parameters, **own, **(extra or {})}],
            additional_env={**spec.environment, LAUNCHER: str(os.getpid())},
            output="screen",
            respawn=spec.on_end is OnEnd.RESTARTED,
            respawn_delay=RESTART_DELAY_S,
            respawn_max_retries=RESTARTS,
            # launch sends SIGTERM 5 s after Ctrl-C, which the nodes take for the same; SIGKILL has time.
            **({"sigkill_timeout": f"{PARK_S + REST_S:g}"} if ends_after(spec.name) else {}),
        )
        found.append(action)
        if spec.on_end is OnEnd.ENDS_RUN:  # as the end of the last episode does
            found.append(RegisterEventHandler(OnProcessExit(target_action=action, on_exit=_ends_run(spec.name))))
    return found


def _ends_run(name: str) -> Callable[[Any, Any], Any]:
    """What launch does when the node called `name` has ended: everything ends, with status 1 if the node failed."""

    def ended(event: Any, context: LaunchContext) -> Any:
        if event.returncode and not context.is_shutdown:
            # launch takes an exception for a failure of its own: it ends in order, and its status is 1.
            raise RuntimeError(f"{name} has ended with status {event.returncode}; its last lines say why")
        return EmitEvent(event=Shutdown(reason=f"{name} has ended"))

    return ended


def _discovery(network: bool) -> list[Any]:
    """Who may hear and command the robot: this machine alone, unless the user says more, here or in the environment."""
    chosen = os.environ.get(DISCOVERY_RANGE)
    if chosen is not None and not network:
        return [LogInfo(msg=f"{DISCOVERY_RANGE} is {chosen}, as set before")]
    reach = "SUBNET" if network else "LOCALHOST"
    who = "every machine of this subnet may hear and command the robot" if network else "this machine only"
    hint = "" if network else "; network:=true for more"
    return [SetEnvironmentVariable(DISCOVERY_RANGE, reach), LogInfo(msg=f"{DISCOVERY_RANGE} {reach}: {who}{hint}")]


def _description(arguments: tuple[Argument, ...], actions: Callable[[dict[str, str]], list[Any]]) -> LaunchDescription:
    def start(context: LaunchContext) -> list[Any]:
        values = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in arguments}
        return [*_discovery(values["network"] == "true"), *actions(values)]

    return LaunchDescription(
        [
            *(argument.declared() for argument in arguments),
            SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", str(fastdds_profile())),
            OpaqueFunction(function=start),
        ]
    )
