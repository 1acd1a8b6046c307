"""Which nodes a robot needs. The launch files and the command line both read it, so that they start the same thing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.share import PACKAGE, share_path

POLICIES = ("molmoact2", "expert")

Value = bool | int | float | str | list[str]
"""What a ROS parameter of this package can hold."""


@dataclass(frozen=True)
class Options:
    """What the user can choose.

    Attributes:
        robot: an embodiment's name.
        sim: start the simulated cell and drive episodes on it; otherwise the driver comes from elsewhere, and the
            camera sources from the config file.
        wire: put the simulated cell behind the emulated bus of the real arm, with the real driver on it.
        policy: `molmoact2`, or `expert` for the scripted expert of the simulated cell.
        checkpoint: directory or Hugging Face id; empty for the checkpoint of the simulated cell that ships here.
        task: what the robot is told.
        episodes: how many episodes the simulated cell runs.
        seed: where the placements of the episodes come from.
        episode_timeout_s: an episode that is neither won nor lost by then counts as a timeout, s.
        record: directory for one bag an episode; empty records nothing.
        film, picture: paths of the run's video and picture; empty makes none.
        visualize: start the visualizer. A film needs it.
        namespace: ROS namespace; empty for the robot's name.
        link_prefix: names the shared memory of the simulated cameras; two cells at once need two.
        config: parameter file; empty for the one that ships here.
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
    link_prefix: str = "molmoact2"
    config: str = ""


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
    config = options.config or str(share_path(f"config/{robot.name}.yaml"))
    namespace = "/" + (options.namespace or robot.name).strip("/")
    checkpoint = options.checkpoint or str(default_checkpoint(robot.name))

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

    def driver(parameters: Mapping[str, Value]) -> NodeSpec:
        return node(f"{robot.name}_driver_node", **parameters)

    found = []
    if options.sim:
        wire = str(Path(tempfile.gettempdir()) / f"{options.link_prefix}_wire") if options.wire else ""
        found.append(node("sim_node", seed=options.seed, link_prefix=options.link_prefix, wire=wire))
        if options.wire:
            found.append(driver(wired_parameters(robot.name, wire)))
        links = [f"sim:{options.link_prefix}_{name}" for name in robot.camera_names]
        found.append(node("camera_node", names=list(robot.camera_names), sources=links))
    else:
        found.append(driver({}))
        found.append(node("camera_node", names=list(robot.camera_names)))
    if options.policy == "expert":
        found.append(node("expert_node"))
    else:
        threads = max(1, (os.cpu_count() or 2) // 2)
        found.append(node("policy_node", threads=threads, checkpoint=checkpoint, norm_tag=robot.norm_tag))
    found.append(node("executor_node"))
    if options.visualize or options.film or options.picture:
        found.append(node("visualizer_node", essential=False, checkpoint=checkpoint))
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


def wired_parameters(robot: str, folder: str) -> dict[str, Value]:
    """Parameters that lead the driver of `robot` to the emulated bus under `folder`."""
    if robot == "so101":
        return {"port": f"{folder}/so101", "calibration_id": "so101", "calibration_dir": folder, "retry_s": 0.3}
    raise ValueError(f"there is no emulated bus for {robot}; leave out wire")


def _check(options: Options) -> None:
    if options.wire and not options.sim:
        raise ValueError("wire needs the simulated cell (sim); on a robot the driver finds the arm's own bus")
    if options.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {options.policy!r}")
    if options.policy == "expert" and not options.sim:
        raise ValueError("the scripted expert knows the simulated cell only; use policy molmoact2 on a robot")
    if not options.task.strip():
        raise ValueError("the task is empty; say what the robot should do, for instance 'pick up the red cube'")
    if options.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {options.episodes}")
    if options.episode_timeout_s <= 0.0:
        raise ValueError(f"the time limit of an episode must be above 0 s, got {options.episode_timeout_s}")


def default_checkpoint(robot: str) -> Path:
    """Directory of the checkpoint of the simulated cell that ships with this package."""
    return Path(__file__).parent / "data" / f"{robot}_cell"


def fastdds_profile() -> Path:
    """The Fast DDS profile that gives pictures enough shared memory; goes into FASTRTPS_DEFAULT_PROFILES_FILE."""
    return share_path("config/fastdds.xml")
