"""Which nodes a robot needs. The launch files and the command line both read it, so that they start the same thing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from molmoact2_ros.bringup.options import Options, check, external, namespace_of
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.franka_droid import FRANKA_HAND, FrankaDroid
from molmoact2_ros.share import PACKAGE, bundled_checkpoint, share_path

Value = bool | int | float | str | list[str] | list[float]
"""What a ROS parameter of this package can hold."""

ROOMS = {
    **dict.fromkeys(("sim_node", "expert_node", "episode_node", "film_node"), "nodes.sim"),
    **dict.fromkeys(("drill_node", "unasked_node", "replay_node", "probe_node"), "nodes.bench"),
}
"""Where a node's module is; all others are in `nodes`."""


@dataclass(frozen=True)
class NodeSpec:
    """One node to start.

    Attributes:
        executable: its console script, as `ros2 run molmoact2_ros <executable>` takes it.
        name, namespace: its ROS name.
        config: its parameter file.
        parameters: what is set on top of the parameter file.
        environment: extra environment variables of its process.
        essential: the session ends when this node ends; otherwise its end is only reported.
    """

    executable: str
    name: str
    namespace: str
    config: str
    parameters: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    essential: bool = True

    @property
    def module(self) -> str:
        """The module behind the executable, which `python -m` starts without any installed script."""
        return f"{PACKAGE}.{ROOMS.get(self.executable, 'nodes')}.{self.executable}"

    def ros_arguments(self) -> list[str]:
        """Command-line arguments that give the node its name and parameters."""
        arguments = ["--ros-args", "-r", f"__node:={self.name}", "-r", f"__ns:={self.namespace}"]
        arguments += ["--params-file", self.config]
        for key, value in self.parameters.items():
            arguments += ["-p", f"{key}:={json.dumps(value)}"]
        return arguments


def nodes(options: Options) -> tuple[NodeSpec, ...]:
    """Return the nodes for `options`, in the order in which the data flows.

    Raises:
        ValueError: an option has a value that cannot work; the message says which values can.
    """
    robot = embodiment(options.robot)
    check(options)
    config = options.config or str(share_path(f"config/{robot.family}.yaml"))
    namespace = namespace_of(options)
    checkpoint = options.checkpoint or str(bundled_checkpoint(robot.family))
    link_prefix = options.link_prefix or f"molmoact2_{namespace.strip('/').replace('/', '_')}"
    cameras = list(robot.camera_names)

    def node(executable: str, /, *, essential: bool = True, threads: int = 1, **parameters: Value) -> NodeSpec:
        return NodeSpec(
            executable=executable,
            name=executable.removesuffix("_node"),
            namespace=namespace,
            config=config,
            parameters=MappingProxyType({"robot": robot.name, **parameters}),
            # Numeric libraries start a thread a core in every process, and get into the way of the control loop.
            environment=MappingProxyType({"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}),
            essential=essential,
        )

    def with_parameters(spec: NodeSpec, parameters: Mapping[str, Value]) -> NodeSpec:
        return replace(spec, parameters=MappingProxyType({**spec.parameters, **parameters}))

    def driver(parameters: Mapping[str, Value]) -> NodeSpec:
        return with_parameters(node(f"{robot.family}_driver_node"), parameters)

    found = []
    if options.sim:
        bus = str(Path(tempfile.gettempdir()) / f"{link_prefix}_bus") if options.emulated else ""
        found.append(node("sim_node", seed=options.seed, link_prefix=link_prefix, emulated_bus=bus))
        if options.emulated:
            found.append(driver(emulated_parameters(robot.name, bus)))
        found.append(node("camera_node", names=cameras, sources=[f"sim:{link_prefix}_{name}" for name in cameras]))
    else:
        if not external(options):
            found.append(driver(hardware_parameters(options)))
        elif robot.family == "franka":
            found.append(node("franka_state_node", essential=False))  # without franka_msgs it says so and ends
        if options.serials:
            serials = [f"realsense:{serial}" for serial in options.serials]
            found.append(node("camera_node", names=cameras, sources=serials))
        else:
            found.append(node("camera_node", names=cameras))
    if options.policy == "expert":
        found.append(node("expert_node"))
    elif options.policy == "molmoact2":
        threads = max(1, (os.cpu_count() or 2) // 2)
        found.append(node("policy_node", threads=threads, checkpoint=checkpoint, norm_tag=robot.norm_tag))
    # Our drivers say which commands have gone out to the arm; on a robot their silence is a fault.
    acknowledged: dict[str, Value] = {}
    if not options.sim and not external(options):
        acknowledged["acknowledgement_timeout_s"] = 1.0
    found.append(with_parameters(node("executor_node"), {**acknowledged, **franka_ros2_parameters(options)}))
    if options.visualize or options.film or options.picture:
        found.append(node("visualizer_node", essential=False, checkpoint=checkpoint, base_frame=robot.base_link))
    if options.film or options.picture:
        found.append(node("film_node", essential=False, film=options.film, picture=options.picture))
    if options.record:
        found.append(node("recorder_node", directory=options.record, checkpoint=checkpoint, config_file=config))
    if options.sim:
        found.append(
            node(
                "episode_node",
                task=options.task,
                episodes=options.episodes,
                seed=options.seed,
                episode_timeout_s=float(options.episode_timeout_s),
            )
        )
    return tuple(found)


def franka_ros2_parameters(options: Options) -> dict[str, Value]:
    """Parameters of the executor for franka_ros2: its trajectory controller and its gripper, in the same namespace.

    Only beside this package's own parameter file: one that the user names says it itself.
    """
    robot = embodiment(options.robot)
    if options.sim or options.config or not isinstance(robot, FrankaDroid) or not external(options):
        return {}
    hand = robot.gripper is FRANKA_HAND
    return {
        "output": "joint_trajectory",
        "command_topic": f"{robot.arm.joint_prefix}_arm_controller/joint_trajectory",
        "gripper_output": "franka_gripper" if hand else "gripper_command",
        "gripper_actions": ["franka_gripper" if hand else "robotiq_gripper_controller/gripper_cmd"],
    }


def hardware_parameters(options: Options) -> dict[str, Value]:
    """Parameters of the robot's driver that follow from `robot_ip` and `ports`.

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
    return found


def emulated_parameters(robot: str, folder: str) -> dict[str, Value]:
    """Parameters that lead the driver of `robot` to the emulated bus under `folder`."""
    if robot == "so101":
        return {"port": f"{folder}/so101", "calibration_id": "so101", "calibration_dir": folder, "retry_s": 0.3}
    if robot == "yam":
        channels: dict[str, Value] = {f"{side}_channel": f"{folder}/can_{side}" for side in ("left", "right")}
        return {**channels, "can_interface": "molmoact2_link", "retry_s": 0.3}
    if robot == "franka":
        from molmoact2_ros.simulation.emulators.buses import fci_address

        return {"robot_ip": fci_address(Path(folder).name), "realtime": False, "retry_s": 0.3}
    raise ValueError(f"there is no emulated bus for {robot}; leave out emulated")


def fastdds_profile() -> Path:
    """The Fast DDS profile that gives pictures enough shared memory; goes into FASTRTPS_DEFAULT_PROFILES_FILE."""
    return share_path("config/fastdds.xml")
