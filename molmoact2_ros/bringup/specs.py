"""Which nodes a robot needs. The launch files and the command line both read it, so that they start the same thing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from molmoact2_ros.bringup.ending import ENDS_AFTER, OnEnd, ends_after
from molmoact2_ros.bringup.options import Options, camera_example, camera_sources, check, external, namespace_of
from molmoact2_ros.cameras.cell_cameras import CELL
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.franka_droid import FRANKA_HAND, FrankaDroid
from molmoact2_ros.parameter_files import parameters_for, robot_files, user_files
from molmoact2_ros.share import PACKAGE, bundled_checkpoint, share_path
from molmoact2_ros.simulation.emulators.leader import CALIBRATION, PORT
from molmoact2_ros.teleoperation.opening import EXAMPLE, FAMILIES, parts_of

Value = bool | int | float | str | list[str] | list[float]
"""What a ROS parameter of this package can hold."""

ROOMS = {
    **dict.fromkeys(("sim_node", "expert_node", "episode_node", "film_node", "leader_node"), "nodes.sim"),
    **dict.fromkeys(("drill_node", "unasked_node", "replay_node", "probe_node", "onlooker_node"), "nodes.bench"),
}
"""Where a node's module is; all others are in `nodes`."""


@dataclass(frozen=True)
class NodeSpec:
    """One node to start.

    Attributes:
        executable: its console script, as `ros2 run molmoact2_ros <executable>` takes it.
        name, namespace: its ROS name.
        configs: its parameter files; a later one wins.
        parameters: what is set on top of the parameter files.
        environment: extra environment variables of its process.
        on_end: what its end means for the run.
    """

    executable: str
    name: str
    namespace: str
    configs: tuple[str, ...] = ()
    parameters: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    on_end: OnEnd = OnEnd.ENDS_RUN

    @property
    def module(self) -> str:
        """The module behind the executable, which `python -m` starts without any installed script."""
        return f"{PACKAGE}.{ROOMS.get(self.executable, 'nodes')}.{self.executable}"

    def ros_arguments(self) -> list[str]:
        """Command-line arguments that give the node its name and parameters."""
        arguments = ["--ros-args", "-r", f"__node:={self.name}", "-r", f"__ns:={self.namespace}"]
        for config in self.configs:
            arguments += ["--params-file", config]
        for key, value in self.parameters.items():
            arguments += ["-p", f"{key}:={json.dumps(value)}"]
        return arguments


NOTHING: Mapping[str, Value] = MappingProxyType({})
DEFAULTS = Options()
JOINT_STATES = ("joint_state_topics", "joint_map", "unstamped_joint_states")
"""Parameters of the executor that hold for every node that reads the joints, unless they are said otherwise there."""
BUTTON_SILENCE_S = 2.0
"""Without a word of the console for so long the arm is stopped, s: it hangs, or the way to it is cut."""
EMULATED_RETRY_S = 0.3
"""Time between attempts to connect to an emulated bus, which comes up together with its driver, s."""


class Cell:
    """The robot, its namespace and its parameter files, from which its nodes are made.

    A value that the user's parameter file gives is used: what follows from the robot or the cell is set only where his
    file is silent, and what he asked for elsewhere must not say something else.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.robot = embodiment(options.robot)
        self.namespace = namespace_of(options)
        self._own = user_files(options.config)
        self.configs = (*robot_files(self.robot.family), *self._own)

    def written(self, node: str) -> dict[str, Any]:
        """What the user's file says to the node called `node`."""
        return parameters_for(self._own, self._full_name(node))

    def said(self, node: str, *names: str) -> dict[str, Any]:
        """Those of the parameters `names` of the node called `node` that a file sets, the robot's own included."""
        values = parameters_for(self.configs, self._full_name(node))
        return {name: values[name] for name in names if name in values}

    def _full_name(self, node: str) -> str:
        return f"{self.namespace.rstrip('/')}/{node}"

    def chosen(self, *names: str) -> tuple[dict[str, Value], dict[str, Value]]:
        """Options that are parameters of the same name: those that the user chose, and those left at their default."""
        values = {name: type(getattr(DEFAULTS, name))(getattr(self.options, name)) for name in names}
        given = {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)}
        return given, {name: value for name, value in values.items() if name not in given}

    def parameters(
        self, node: str, given: Mapping[str, Value] = NOTHING, derived: Mapping[str, Value] = NOTHING
    ) -> dict[str, Value]:
        """What is set for the node called `node` on top of its parameter files.

        Args:
            given: what the user asked for, or what the cell leaves no choice in.
            derived: what follows from the robot or is a default, for which the user's file may say something else.

        Raises:
            ValueError: the user's file says something else than `given`.
        """
        written = self.written(node)
        for key, value in given.items():
            if written.get(key, value) != value:
                raise ValueError(
                    f"{self.options.config} sets {key} of {node} to {written[key]!r}, and {value!r} is asked for here: "
                    "leave one of the two out"
                )
        return {**{key: value for key, value in derived.items() if key not in written}, **given}

    def node(
        self,
        executable: str,
        given: Mapping[str, Value] = NOTHING,
        derived: Mapping[str, Value] = NOTHING,
        *,
        on_end: OnEnd | None = None,
        threads: int = 1,
    ) -> NodeSpec:
        """A node of this robot; `given` and `derived` as `parameters` has them.

        What a node's end means follows from whether there is an arm to be held, unless `on_end` says it.
        """
        name = executable.removesuffix("_node")
        # Numeric libraries start a thread a core in every process, and disturb the control loop.
        environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        if ends_after(name):
            environment[ENDS_AFTER] = " ".join(ends_after(name))
        return NodeSpec(
            executable=executable,
            name=name,
            namespace=self.namespace,
            configs=self.configs,
            parameters=MappingProxyType(self.parameters(name, {"robot": self.robot.name, **given}, derived)),
            environment=MappingProxyType(environment),
            on_end=on_end or (OnEnd.ENDS_RUN if driven_by_itself(self.options) else OnEnd.RESTARTED),
        )


def driven_by_itself(options: Options) -> bool:
    """Whether the episodes of the simulated cell are run; otherwise a person decides, as on a robot."""
    return options.sim and options.episodes > 0


def nodes(options: Options) -> tuple[NodeSpec, ...]:
    """Return the nodes for `options`, in the order in which the data flows.

    Raises:
        ValueError: an option has a value that cannot work, or says something else than the user's parameter file; the
            message says what can be done.
    """
    cell = Cell(options)
    robot, node = cell.robot, cell.node
    named = options.checkpoint or str(cell.written("policy").get("checkpoint", ""))
    # A policy on another machine has its checkpoint there.
    remote = str(cell.written("policy").get("backend", "")).startswith("remote:")
    check(replace(options, checkpoint=named or ("remote" if remote else "")))
    checkpoint: dict[str, Value] = {} if remote else {"checkpoint": named or str(bundled_checkpoint(robot.family))}
    sources = camera_sources(options)
    cameras = list(sources or cell.written("camera").get("names", robot.camera_names))
    views: dict[str, Value] = {"cameras": cameras}
    # What takes the executor's commands must allow its speed, and who reads joints reads what it reads.
    speed, speed_left = cell.chosen("speed_scale")[0], cell.said("executor", "speed_scale")
    joints = cell.said("executor", *JOINT_STATES)
    found = []
    if options.sim:
        link = link_of(cell)
        bus = str(Path(tempfile.gettempdir()) / f"{link}_bus") if options.emulated else ""
        given, derived = cell.chosen("seed")
        parameters: dict[str, Value] = {**given, **speed, "link_prefix": link, "emulated_bus": bus}
        found.append(node("sim_node", parameters, {**derived, **speed_left}, on_end=OnEnd.ENDS_RUN))
        if options.emulated:
            parameters = {**emulated_parameters(robot.name, bus), **speed}
            retry: dict[str, Value] = {"retry_s": EMULATED_RETRY_S}
            found.append(node(f"{robot.family}_driver_node", parameters, {**retry, **speed_left}))
        simulated: dict[str, Value] = {"names": cameras, "sources": [f"sim:{link}_{name}" for name in cameras]}
        found.append(node("camera_node", {}, simulated))
    else:
        if not external(options):
            found.append(node(f"{robot.family}_driver_node", {**hardware_parameters(options), **speed}, speed_left))
        elif robot.family == "franka":
            found.append(node("franka_state_node", on_end=OnEnd.REPORTED))  # without franka_msgs it says so and ends
        _check_real_cameras(options, list(sources.values()) or cell.written("camera").get("sources", []))
        given = {"names": cameras, "sources": list(sources.values())} if sources else {}
        found.append(node("camera_node", given, {"names": cameras}))
    if options.policy == "expert":
        found.append(node("expert_node"))
    elif options.policy == "molmoact2":
        threads = max(1, (os.cpu_count() or 2) // 2)
        given, _ = cell.chosen("checkpoint")
        known: dict[str, Value] = {**checkpoint, **joints, "norm_tag": robot.norm_tag, "cell_cameras": cameras}
        found.append(node("policy_node", given, known, threads=threads))
    # Our drivers say which commands have gone out to the arm; on a robot their silence is a fault.
    silence: dict[str, Value] = {} if options.sim or external(options) else {"acknowledgement_timeout_s": 1.0}
    if options.operator == "keys" or (options.panel and cell.written("panel").get("hold_to_run")):
        silence["e_stop_heartbeat_s"] = BUTTON_SILENCE_S
    if options.teleop and options.policy == "none":
        silence["arm_needs_chunk"] = False  # a person shows what is to be done
    found.append(node("executor_node", speed, {**silence, **franka_ros2_parameters(options)}))
    if options.visualize or options.film or options.picture:
        shown = {**views, **checkpoint, **joints, "base_frame": robot.base_link}
        if options.sim:
            shown["calibration_file"] = CELL
        found.append(node("visualizer_node", {}, shown, on_end=OnEnd.REPORTED if options.sim else OnEnd.RESTARTED))
    if options.film or options.picture:
        given, derived = cell.chosen("film", "picture")
        found.append(node("film_node", given, {**derived, **views}, on_end=OnEnd.REPORTED))
    if options.record:
        files: dict[str, Value] = {"config_files": list(cell.configs), **cell.said("executor", JOINT_STATES[0])}
        found.append(node("recorder_node", {"directory": options.record}, {**views, **checkpoint, **files}))
    if driven_by_itself(options):
        found.append(node("episode_node", *cell.chosen("task", "episodes", "seed", "episode_timeout_s")))
    if options.teleop:
        found += teleop_nodes(cell)
    if options.operator:
        # Whoever is left without it has no key that stops the arm: the run ends, and the arm is brought to rest.
        parameters = {"button": options.operator == "keys", "asks_policy": options.policy == "molmoact2"}
        found.append(node("operator_node", parameters, on_end=OnEnd.ENDS_RUN))
    if options.panel:
        found.append(node("panel_node", on_end=OnEnd.REPORTED if driven_by_itself(options) else OnEnd.RESTARTED))
    return tuple(found)


def teleop_nodes(cell: Cell) -> list[NodeSpec]:
    """The node of what a person takes over with, and the leader arm that it reads where that is emulated.

    Raises:
        ValueError: there is no such teleoperator, or it does not fit the robot.
    """
    options = cell.options
    kind, name, ports = parts_of(options.teleop)
    given: dict[str, Value] = {"teleoperator": kind}
    if name:
        given["calibration_id"] = name
    found = []
    if FAMILIES.get(kind, cell.robot.family) != cell.robot.family:
        raise ValueError(f"a {kind} leads an arm of its own kind ({FAMILIES[kind]}), and the robot is {options.robot}")
    if FAMILIES.get(kind) == "so101" and options.sim and not ports:
        folder = str(Path(tempfile.gettempdir()) / f"{link_of(cell)}_leader")
        found.append(cell.node("leader_node", {"folder": folder}, on_end=OnEnd.REPORTED))
        ports = (f"{folder}/{PORT}",)
        given |= {"calibration_dir": folder, "calibration_id": CALIBRATION}
    if ports:
        given["ports"] = list(ports)
    elif kind in FAMILIES and not cell.written("teleop").get("ports"):
        raise ValueError(f"nothing says where the leader is: teleop {kind}:PORT, for instance {EXAMPLE}")
    return [*found, cell.node("teleop_node", given, on_end=OnEnd.RESTARTED)]


def link_of(cell: Cell) -> str:
    """What the simulated cell's shared memory and emulated buses are called."""
    return cell.options.link_prefix or f"molmoact2_{cell.namespace.strip('/').replace('/', '_')}"


def _check_real_cameras(options: Options, sources: Any) -> None:
    """Raise ValueError where a policy would move a real arm without its own cameras."""
    form = f"cameras:={camera_example(options.robot)}, or sources of the camera node in a file of your own (config)"
    simulated = [source for source in sources if str(source).split(":")[0] == "sim"]
    if simulated:
        raise ValueError(f"{', '.join(simulated)} shows a simulated cell, and this is a real arm; say {form}")
    if not any(sources) and options.policy != "none":
        raise ValueError(f"nothing says where the images of {options.robot} come from; say {form}")


def franka_ros2_parameters(options: Options) -> dict[str, Value]:
    """Parameters of the executor for franka_ros2: its trajectory controller and its gripper, in the same namespace.

    A parameter file of the user's own may say it otherwise, parameter by parameter.
    """
    robot = embodiment(options.robot)
    if options.sim or not isinstance(robot, FrankaDroid) or not external(options):
        return {}
    hand = robot.gripper is FRANKA_HAND
    return {
        "output": "joint_trajectory",
        "command_topic": f"{robot.arm.joint_prefix}_arm_controller/joint_trajectory",
        "gripper_output": "franka_gripper" if hand else "gripper_command",
        "gripper_actions": ["franka_gripper" if hand else "robotiq_gripper_controller/gripper_cmd"],
    }


def hardware_parameters(options: Options) -> dict[str, Value]:
    """Parameters of the robot's driver that follow from `robot_ip`, `ports` and `calibration_id`.

    Raises:
        ValueError: the robot has no such connection, or another number of them.
    """
    found: dict[str, Value] = {}
    family = embodiment(options.robot).family
    ports = {"so101": ("port",), "yam": ("left_channel", "right_channel")}.get(family, ())
    if options.robot_ip:
        if family != "franka":
            raise ValueError(f"robot_ip is of a Franka; {options.robot} has none")
        found["robot_ip"] = options.robot_ip
    if options.ports:
        if len(options.ports) != len(ports):
            what = " and ".join(ports) or "no ports"
            raise ValueError(f"{options.robot} has {what}, got ports {', '.join(options.ports)}")
        found.update(zip(ports, options.ports, strict=True))
    if options.calibration_id:
        if family != "so101":
            raise ValueError(f"calibration_id is of an SO-100/101; {options.robot} has none")
        found["calibration_id"] = options.calibration_id
    return found


def emulated_parameters(robot: str, folder: str) -> dict[str, Value]:
    """Parameters that lead the driver of `robot` to the emulated bus under `folder`."""
    if robot == "so101":
        return {"port": f"{folder}/so101", "calibration_id": "so101", "calibration_dir": folder}
    if robot == "yam":
        channels: dict[str, Value] = {f"{side}_channel": f"{folder}/can_{side}" for side in ("left", "right")}
        return {**channels, "can_interface": "molmoact2_link"}
    if robot == "franka":
        from molmoact2_ros.simulation.emulators.buses import fci_address

        return {"robot_ip": fci_address(Path(folder).name), "realtime": False}
    raise ValueError(f"there is no emulated bus for {robot}; leave out emulated")


def fastdds_profile() -> Path:
    """The Fast DDS profile that gives images enough shared memory; goes into FASTRTPS_DEFAULT_PROFILES_FILE."""
    return share_path("config/fastdds.xml")
