"""Which nodes a robot needs. The launch files and the command line both read it, so that they start the same thing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import yaml

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.franka_droid import FRANKA_HAND, FrankaDroid
from molmoact2_ros.share import PACKAGE, share_path

POLICIES = ("molmoact2", "expert", "none")
DRIVERS = ("auto", "node", "external")

Value = bool | int | float | str | list[str] | list[float]
"""What a ROS parameter of this package can hold."""


@dataclass(frozen=True)
class Options:
    """What the user can choose.

    Attributes:
        robot: an embodiment's name.
        sim: start the simulated cell and drive episodes on it; otherwise the robot's driver, with the camera sources
            of the config file.
        wire: put the simulated cell behind the emulated bus of the real arm, with the real driver on it.
        policy: `molmoact2`, `expert` for the scripted expert of the simulated cell, or `none` on a robot that is led
            by hand or by another program.
        checkpoint: directory or Hugging Face id; empty for the checkpoint of the simulated cell that ships here.
        task: what the robot is told.
        episodes: how many episodes the simulated cell runs.
        seed: where the placements of the episodes come from.
        episode_timeout_s: an episode that is neither won nor lost by then counts as a timeout, s.
        record: directory for one bag an episode; empty records nothing.
        film, picture: paths of the run's video and picture; empty makes none.
        visualize: start the visualizer. A film needs it.
        namespace: ROS namespace; empty for the robot's name.
        link_prefix: names the shared memory of the simulated cameras, since two cells at once need two; empty for one
            that follows from the namespace.
        config: parameter file; empty for the one that ships here.
        driver: `node` starts this package's driver, `external` none (franka_ros2, or one of your own, in the same
            namespace); `auto` is `node`, but for a Franka without `robot_ip`.
        robot_ip: address of a Franka. ports: serial port of an SO-100/101, or the CAN channels of the left and the
            right YAM. serials: of the RealSense cameras, in the order of the robot's cameras. Empty leaves what the
            config file says.
    """

    robot: str = "so101"
    sim: bool = True
    wire: bool = False
    policy: str = "molmoact2"
    checkpoint: str = ""
    task: str = "pick up the red cube"
    episodes: int = 10
    seed: int = 1000
    episode_timeout_s: float = 30.0
    record: str = ""
    film: str = ""
    picture: str = ""
    visualize: bool = True
    namespace: str = ""
    link_prefix: str = ""
    config: str = ""
    driver: str = "auto"
    robot_ip: str = ""
    ports: tuple[str, ...] = ()
    serials: tuple[str, ...] = ()


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
        return f"{PACKAGE}.nodes.{self.executable}"

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
    _check(options)
    config = options.config or str(share_path(f"config/{robot.family}.yaml"))
    namespace = namespace_of(options)
    checkpoint = options.checkpoint or str(default_checkpoint(robot.name))
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
        wire = str(Path(tempfile.gettempdir()) / f"{link_prefix}_wire") if options.wire else ""
        found.append(node("sim_node", seed=options.seed, link_prefix=link_prefix, wire=wire))
        if options.wire:
            found.append(driver(wired_parameters(robot.name, wire)))
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


@dataclass(frozen=True)
class StaticFrame:
    """A frame that never moves in its parent: `xyz` in m, `wxyz` a unit quaternion."""

    parent: str
    child: str
    xyz: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]


def camera_frames(options: Options) -> tuple[StaticFrame, ...]:
    """Where the cameras' optical frames are, by the calibration file that the config names or by the simulated cell.

    A camera without a calibration has no frame.
    """
    from molmoact2_ros.embodiments.kinematics import quaternion_from_rotation
    from molmoact2_ros.rendering.projection import Calibration, load_calibrations
    from molmoact2_ros.simulation.calibration import camera_calibration

    robot = embodiment(options.robot)
    config = yaml.safe_load(Path(options.config or share_path(f"config/{robot.family}.yaml")).read_text()) or {}
    file = config.get("/**/visualizer", {}).get("ros__parameters", {}).get("calibration_file", "")
    found: dict[str, Calibration] = {}
    if file:
        found = load_calibrations(file)
    elif options.sim:
        found = {name: camera_calibration(robot.name, name) for name in robot.camera_names}
    out = []
    for name, calibration in found.items():
        x, y, z = (float(v) for v in calibration.pose[:3, 3])
        turn = quaternion_from_rotation(calibration.pose[:3, :3])
        out.append(StaticFrame(calibration.mount, f"{name}_optical_frame", (x, y, z), turn))
    return tuple(out)


def namespace_of(options: Options) -> str:
    """The namespace of all nodes, with its leading slash."""
    return "/" + (options.namespace or embodiment(options.robot).name).strip("/")


def external(options: Options) -> bool:
    """Whether the robot's driver is started by somebody else."""
    if options.driver != "auto":
        return options.driver == "external"
    return embodiment(options.robot).family == "franka" and not options.robot_ip


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


def wired_parameters(robot: str, folder: str) -> dict[str, Value]:
    """Parameters that lead the driver of `robot` to the emulated bus under `folder`."""
    if robot == "so101":
        return {"port": f"{folder}/so101", "calibration_id": "so101", "calibration_dir": folder, "retry_s": 0.3}
    if robot == "yam":
        channels: dict[str, Value] = {f"{side}_channel": f"{folder}/can_{side}" for side in ("left", "right")}
        return {**channels, "can_interface": "molmoact2_link", "retry_s": 0.3}
    if robot == "franka":
        from molmoact2_ros.simulation.emulators.wired import fci_address

        return {"robot_ip": fci_address(Path(folder).name), "realtime": False, "retry_s": 0.3}
    raise ValueError(f"there is no emulated bus for {robot}; leave out wire")


def _check(options: Options) -> None:
    if options.wire and not options.sim:
        raise ValueError("wire needs the simulated cell (sim); on a robot the driver finds the arm's own bus")
    if options.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {options.policy!r}")
    if options.policy == "expert" and not options.sim:
        raise ValueError("the scripted expert knows the simulated cell only; use policy molmoact2 on a robot")
    if options.policy == "none" and options.sim:
        raise ValueError("the simulated cell runs episodes, and those need a policy: molmoact2 or expert")
    if not options.task.strip():
        raise ValueError("the task is empty; say what the robot should do, for instance 'pick up the red cube'")
    missing = missing_checkpoint(options)
    if missing:
        raise ValueError(missing)
    if options.driver not in DRIVERS:
        raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, got {options.driver!r}")
    count = len(embodiment(options.robot).camera_names)
    if options.serials and len(options.serials) != count:
        names = ", ".join(embodiment(options.robot).camera_names)
        raise ValueError(f"serials must be {count}, one for each of {names}, got {len(options.serials)}")
    if options.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {options.episodes}")
    if options.episode_timeout_s <= 0.0:
        raise ValueError(f"the time limit of an episode must be above 0 s, got {options.episode_timeout_s}")


def default_checkpoint(robot: str) -> Path:
    """Directory where the checkpoint of the simulated cell of `robot` is, for robots that have one."""
    return Path(__file__).parent / "data" / f"{embodiment(robot).family}_cell"


def missing_checkpoint(options: Options) -> str:
    """Why the policy has no checkpoint to run with, and what to do; empty when it has."""
    if options.policy != "molmoact2" or options.checkpoint:
        return ""
    released = _RELEASED[embodiment(options.robot).family]
    if not options.sim:
        return f"policy molmoact2 needs a checkpoint on a robot (for instance {released})"
    own = default_checkpoint(options.robot)
    if (own / "config.json").is_file():
        return ""
    return (
        f"there is no trained checkpoint of the simulated {options.robot} cell (looked in {own}); let the scripted "
        f"expert drive (policy expert), or name a checkpoint (for instance {released})"
    )


_RELEASED = {
    "so101": "allenai/MolmoAct2-SO100_101",
    "franka": "allenai/MolmoAct2-DROID",
    "yam": "allenai/MolmoAct2-BimanualYAM",
}


def fastdds_profile() -> Path:
    """The Fast DDS profile that gives pictures enough shared memory; goes into FASTRTPS_DEFAULT_PROFILES_FILE."""
    return share_path("config/fastdds.xml")
