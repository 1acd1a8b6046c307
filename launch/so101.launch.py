"""Starts what an SO-100/101 needs: the nodes and parameters of `molmoact2 sim`, since both read `bringup.py`.

ros2 launch molmoact2_ros so101.launch.py task:="pick up the red cube"
ros2 launch molmoact2_ros so101.launch.py sim:=false checkpoint:=/path/to/checkpoint config:=/path/to/my_so101.yaml
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from molmoact2_ros.bringup import POLICIES, Options, fastdds_profile, nodes, share_path

DEFAULTS = Options()
QUIETER = {"episode_node": {"status_hz": 0.2}}
"""The command line draws a live line from its status; here every one is a line on the screen."""
ARGUMENTS = (
    ("sim", "true", "Start the simulated cell and run episodes on it; false: the driver is started elsewhere.", True),
    ("task", DEFAULTS.task, "What the robot is told in the simulated cell; on a robot publish it on `task`.", False),
    ("policy", DEFAULTS.policy, "Who decides; the expert knows the simulated cell only.", POLICIES),
    ("checkpoint", "", "Checkpoint directory or Hugging Face id; empty: the one of the simulated cell.", False),
    ("episodes", str(DEFAULTS.episodes), "How many episodes the simulated cell runs.", False),
    ("seed", str(DEFAULTS.seed), "Where the placements of the simulated cell come from.", False),
    ("record", "", "Directory for one MCAP bag an episode; empty: record nothing.", False),
    ("namespace", "", "ROS namespace; empty: the robot's name.", False),
    ("config", "", "Parameter file; empty: the one of this package.", False),
    ("visualize", "true", "Start the visualizer.", True),
    ("rviz", "false", "Start RViz and the robot's model.", True),
)


def declare(name: str, default: str, description: str, choices: bool | tuple[str, ...]) -> DeclareLaunchArgument:
    """Return one launch argument; `choices` True means true or false."""
    values = ("true", "false") if choices is True else choices
    limits = {"choices": list(values)} if values else {}
    return DeclareLaunchArgument(name, default_value=default, description=description, **limits)


def options_of(values: dict[str, str]) -> Options:
    """Return the bringup options for the launch arguments `values`.

    Raises:
        ValueError: an argument that must be a number is none.
    """
    return Options(
        sim=values["sim"] == "true",
        policy=values["policy"],
        checkpoint=values["checkpoint"],
        task=values["task"],
        episodes=int(values["episodes"]),
        seed=int(values["seed"]),
        record=values["record"],
        namespace=values["namespace"],
        config=values["config"],
        visualize=values["visualize"] == "true",
    )


def start(context) -> list:
    """Return the actions for the arguments in `context`."""
    values = {name: LaunchConfiguration(name).perform(context) for name, *_ in ARGUMENTS}
    options = options_of(values)
    specs = nodes(options)
    actions = []
    for spec in specs:
        action = Node(
            package="molmoact2_ros",
            executable=spec.executable,
            name=spec.name,
            namespace=spec.namespace,
            parameters=[spec.config, {**spec.parameters, **QUIETER.get(spec.executable, {})}],
            additional_env=dict(spec.environment),
            output="screen",
        )
        actions.append(action)
        if spec.essential:  # the end of the last episode, like the end of a node that is needed, ends the launch
            end = EmitEvent(event=Shutdown(reason=f"{spec.name} has ended"))
            actions.append(RegisterEventHandler(OnProcessExit(target_action=action, on_exit=[end])))
    if values["rviz"] == "true":
        model = share_path(f"urdf/{options.robot}.urdf").read_text()
        rviz = str(share_path(f"config/{options.robot}.rviz"))
        namespace = specs[0].namespace
        actions += [
            Node(
                package="robot_state_publisher",
                executable="robot_state_publisher",
                namespace=namespace,
                parameters=[{"robot_description": model}],
            ),
            Node(package="rviz2", executable="rviz2", namespace=namespace, arguments=["-d", rviz]),
        ]
    return actions


def generate_launch_description() -> LaunchDescription:
    """Return the launch description; ROS calls this."""
    return LaunchDescription(
        [
            *(declare(*argument) for argument in ARGUMENTS),
            SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", str(fastdds_profile())),
            OpaqueFunction(function=start),
        ]
    )
