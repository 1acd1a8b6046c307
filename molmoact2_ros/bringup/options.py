"""What a user can choose when a robot is started, and which choices cannot work."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.share import bundled_checkpoint

POLICIES = ("molmoact2", "expert", "none")
DRIVERS = ("auto", "node", "external")
OPERATORS = ("", "keys", "lines")
RELEASED = {
    "so101": "allenai/MolmoAct2-SO100_101",
    "franka": "allenai/MolmoAct2-DROID",
    "yam": "allenai/MolmoAct2-BimanualYAM",
}
"""The released checkpoint of each family, as an example in messages."""


@dataclass(frozen=True)
class Options:
    """What the user can choose.

    Attributes:
        robot: an embodiment's name.
        sim: start the simulated cell and drive episodes on it; otherwise the robot's driver and its cameras.
        emulated: put the simulated cell behind the emulated bus of the real arm, with the real driver on it.
        policy: `molmoact2`, `expert` for the scripted expert of the simulated cell, or `none` on a robot that is led
            by hand or by another program.
        checkpoint: directory or Hugging Face id; empty for the checkpoint of the simulated cell that ships here.
        task: what the robot is told.
        episodes: how many episodes the simulated cell runs; 0 leaves it to the user, as a robot is: nothing is armed,
            told or reset by itself.
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
            right YAM. calibration_id: of an SO-100/101, what `lerobot-calibrate` was told as --robot.id. Empty leaves
            what the config file says.
        cameras: where the images of a robot come from, each `<name>=<source>`, such as
            `front=v4l2:/dev/v4l/by-path/...`; empty leaves what the config file says.
        speed_scale: times the speed of the arms' joints, for executor and driver alike; 0 leaves what the files say.
        teleop: what a person takes over with, `KIND[:[ID@]PORT]`: `so101_leader:blue@/dev/serial/by-id/...`,
            `yam_leader:can_left_leader,can_right_leader`, `gamepad` or `keyboard`; empty: nothing. Without a port the
            simulated cell gets an emulated SO leader.
        operator: a console on the other end of the operator node: `keys` has a key that stops the arm, whose silence
            is a stop, too; `lines` only shows; empty: there is none.
        panel: serve the operator's page for a browser on this machine.
    """

    robot: str = "so101"
    sim: bool = True
    emulated: bool = False
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
    calibration_id: str = ""
    cameras: tuple[str, ...] = ()
    speed_scale: float = 0.0
    operator: str = ""
    panel: bool = False
    teleop: str = ""


def namespace_of(options: Options) -> str:
    """The namespace of all nodes, with its leading slash."""
    return "/" + (options.namespace or embodiment(options.robot).name).strip("/")


def external(options: Options) -> bool:
    """Whether the robot's driver is started by somebody else."""
    if options.driver != "auto":
        return options.driver == "external"
    return embodiment(options.robot).family == "franka" and not options.robot_ip


def camera_sources(options: Options) -> dict[str, str]:
    """The source of each camera that `cameras` names.

    Raises:
        ValueError: an entry is not of the form <name>=<source>, or names a camera twice.
    """
    found: dict[str, str] = {}
    for entry in options.cameras:
        name, _, source = (part.strip() for part in entry.partition("="))
        if not name or not source or name in found:
            wrong = f"{name} twice" if name in found else repr(entry)
            raise ValueError(f"cameras must be {camera_example(options.robot)}, got {wrong}")
        found[name] = source
    # In the order of the robot, whose first camera the depth image belongs to; others after them.
    own = embodiment(options.robot).camera_names
    return dict(sorted(found.items(), key=lambda item: own.index(item[0]) if item[0] in own else len(own)))


def camera_example(robot: str) -> str:
    """What `cameras` may be, for messages."""
    sources = ("v4l2:/dev/v4l/by-path/...", "realsense:<serial>", "topic:<topic>")
    names = embodiment(robot).camera_names
    return ",".join(f"{name}={source}" for name, source in zip(names, sources, strict=False))


def check(options: Options) -> None:
    """Raise ValueError for what cannot work; the message says what can."""
    if options.emulated and not options.sim:
        raise ValueError("emulated needs the simulated cell (sim); on a robot the driver finds the arm's own bus")
    if options.policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {options.policy!r}")
    if options.policy == "expert" and not options.sim:
        raise ValueError("the scripted expert knows the simulated cell only; use policy molmoact2 on a robot")
    if options.policy == "none" and options.sim and options.episodes:
        raise ValueError("the simulated cell runs episodes, and those need a policy: molmoact2 or expert")
    if not options.task.strip():
        raise ValueError("the task is empty; say what the robot should do, for instance 'pick up the red cube'")
    missing = missing_checkpoint(options)
    if missing:
        raise ValueError(missing)
    if options.driver not in DRIVERS:
        raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, got {options.driver!r}")
    if options.sim and options.cameras:
        raise ValueError("the simulated cell has cameras of its own; leave out cameras, or set sim to false")
    if options.operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS[1:])} or empty, got {options.operator!r}")
    if options.speed_scale:
        embodiment(options.robot).scaled_limits(options.speed_scale)
    if options.episodes < 0:
        raise ValueError(f"episodes must be at least 1, or 0 to drive the cell yourself; got {options.episodes}")
    if options.episode_timeout_s <= 0.0:
        raise ValueError(f"the time limit of an episode must be above 0 s, got {options.episode_timeout_s}")


def missing_checkpoint(options: Options) -> str:
    """Why the policy has no checkpoint to run with, and what to do; empty when it has."""
    if options.policy != "molmoact2" or options.checkpoint:
        return ""
    released = RELEASED[embodiment(options.robot).family]
    if not options.sim:
        return f"policy molmoact2 needs a checkpoint on a robot (for instance {released})"
    own = bundled_checkpoint(embodiment(options.robot).family)
    if (own / "config.json").is_file():
        return ""
    return (
        f"there is no trained checkpoint of the simulated {options.robot} cell (looked in {own}); let the scripted "
        f"expert drive (policy expert), or name a checkpoint (for instance {released})"
    )
