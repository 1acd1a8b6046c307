"""Parameters of the executor node, and the configuration of the executor that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from molmoact2_ros.embodiments import Embodiment, Workspace
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS
from molmoact2_ros.nodes.ros.parameters import Parameter

OUTPUTS = ("driver", "forward_command", "joint_trajectory")
GRIPPER_OUTPUTS = ("in_array", "gripper_command", "parallel_gripper_command", "franka_gripper")
NONE = [0.0]
"""An array that is not set: ROS parameters have no empty arrays of numbers."""

PARAMETERS = (
    Parameter("command_rate_hz", 100.0, "Set-points a second.", 20.0, 500.0),
    Parameter("output", "driver", f"Form of the commands: {', '.join(OUTPUTS)}; driver: executor/command alone."),
    Parameter("command_topic", "controller/commands", "Where forward_command and joint_trajectory go."),
    Parameter("trajectory_lead_s", 0.03, "How long a trajectory may be on its way to the controller, s.", 0.0, 0.2),
    Parameter("gripper_output", "in_array", f"Form of the grippers' commands: {', '.join(GRIPPER_OUTPUTS)}."),
    Parameter("gripper_actions", [""], "One action name a gripper; franka_gripper: the name before /grasp and /move."),
    Parameter("gripper_effort", 20.0, "Largest effort or grasping force of a gripper action, N.", 0.0, 200.0),
    Parameter("gripper_speed", 0.1, "Speed of the fingers in a franka_gripper action, m/s.", 0.01, 0.2),
    Parameter("gripper_step", 0.1, "Share of the stroke that is worth a new goal.", 0.01, 1.0),
    Parameter("gripper_interval_s", 0.3, "Least time between two goals of a gripper, s.", 0.05, 5.0),
    Parameter("binary_grippers", False, "Grippers are told to be open or closed, with hysteresis, never between."),
    Parameter("blend_s", 0.2, "Shortest time to fade out the difference to a new chunk, s.", 0.02, 1.0),
    Parameter("slow_down_s", 0.3, "How long to slow down to rest around a chunk's end, s.", 0.05, 1.0),
    Parameter("ensemble", 1, "How many overlapping chunks are averaged; 1 follows the newest alone.", 1, 16),
    Parameter(
        "ensemble_decay", 0.01, "Exponential weights of the average; above 0 older chunks count more.", -5.0, 5.0
    ),
    Parameter(
        "e_stop_heartbeat_s", 0.0, "Silence of every e_stop publisher that stops the arm, s; 0: none.", 0.0, 10.0
    ),
    *JOINT_STATE_PARAMETERS,
    Parameter("joint_state_timeout_s", 0.25, "Oldest encoder reading to move on, s.", 0.02, 2.0),
    Parameter(
        "chunk_timeout_s", 2.0, "Oldest observation to be followed, and for arming the last chunk, s.", 0.1, 60.0
    ),
    Parameter("acknowledgement_timeout_s", 0.0, "Silence of driver/acknowledgement, s; 0: it gives none.", 0.0, 5.0),
    Parameter("max_future_s", 0.1, "How far a stamp may lie in the future, s.", 0.0, 1.0),
    Parameter("position_margin", 0.05, "How far a target of an arm's joint may lie outside its limits, rad.", 0.0, 0.5),
    Parameter("max_tracking_error", 0.25, "Largest distance of an arm joint from its commands, rad.", 0.01, 1.0),
    Parameter("tracking_window_s", 0.3, "Commands so far back count against servo lag, s.", 0.02, 2.0),
    Parameter("tracking_error_s", 0.2, "How long the tracking error must last to be a fault, s.", 0.0, 2.0),
    Parameter("frozen_s", 0.3, "Readings equal to the last bit for so long are frozen, s.", 0.05, 5.0),
    Parameter("frozen_travel", 0.05, "... while an arm joint was told to move so far, rad.", 0.001, 1.0),
    Parameter("refusal_s", 0.1, "How long the limits' planner may refuse before the motion is halted, s.", 0.0, 2.0),
    Parameter("max_tick_gap_s", 0.25, "A longer gap in the command loop or its clock halts the motion, s.", 0.02, 2.0),
    Parameter("arming_steady_s", 0.3, "Joint states must have agreed for so long before arming, s; 0: no.", 0.0, 5.0),
    Parameter("arming_spread", 0.05, "How far an arm joint's readings may lie apart in that time, rad.", 0.001, 0.5),
    Parameter(
        *("start_pose", NONE, "Pose of executor/go_to_start, all joints, rad or m; [0.0]: the robot's rest pose."),
        of_robot=lambda robot: [float(value) for value in robot.rest_position],
    ),
    Parameter("start_tolerance", 0.0, "Arming is refused further from the start pose, rad; 0: anywhere.", 0.0, 3.2),
    Parameter("ramp_on_arming", False, "Go to the start pose at once after arming."),
    Parameter("ramp_speed", 0.25, "Share of the velocity limits that the ramp reaches.", 0.01, 1.0),
    Parameter(
        "speed_scale", 1.0, "Times the speed that chunks may ask of the arm; the driver's must be no less.", 0.05, 3.0
    ),
    Parameter("arm_needs_chunk", False, "Refuse to arm while no policy sends usable chunks."),
    Parameter(
        *("workspace_lower", NONE, "Lower corner of each arm's box, x y z, m; [0.0]: the robot's own."),
        of_robot=lambda robot: [float(value) for box in robot.workspaces for value in box.lower],
    ),
    Parameter(
        *("workspace_upper", NONE, "Upper corner of each arm's box, x y z, m; [0.0]: the robot's own."),
        of_robot=lambda robot: [float(value) for box in robot.workspaces for value in box.upper],
    ),
    Parameter(
        "leader_timeout_s", 0.25, "A leader whose newest reading is older is lost, and the arm holds, s.", 0.05, 2.0
    ),
    Parameter(
        "leader_max_speed", 15.0, "Joints of a leader that move faster jump, and the arm holds, rad/s.", 1.0, 50.0
    ),
    Parameter(
        *(
            "leader_match_rad",
            0.0,
            "How near its joints must be to the arm's before a leader drives, rad; 0: anywhere.",
        ),
        *(0.0, 1.0),
    ),
    Parameter("leader_match_timeout_s", 5.0, "How long a leader may take to come that near, s.", 0.5, 60.0),
    Parameter("realtime_priority", 0, "SCHED_FIFO priority of the command loop; 0 leaves it normal.", 0, 99),
    Parameter("cpu", -1, "CPU that the command loop stays on; -1 for any.", -1, 1023),
)

_SAME = (
    *("blend_s", "slow_down_s", "ensemble", "ensemble_decay", "joint_state_timeout_s", "chunk_timeout_s"),
    *("acknowledgement_timeout_s", "max_future_s", "position_margin", "max_tracking_error", "tracking_window_s"),
    *("tracking_error_s", "frozen_s", "frozen_travel", "refusal_s", "max_tick_gap_s", "start_tolerance"),
    *("unstamped_joint_states", "arming_steady_s", "arming_spread"),
    *("leader_timeout_s", "leader_max_speed", "leader_match_rad", "leader_match_timeout_s"),
    *("ramp_on_arming", "ramp_speed", "speed_scale", "arm_needs_chunk", "binary_grippers"),
)
"""Parameters that have the name of a field of the configuration."""


def config_of(robot: Embodiment, param: Callable[[str], Any]) -> ExecutorConfig:
    """The configuration that the parameters make.

    Raises:
        ValueError: a parameter does not fit the others or the robot; the message says which values do.
    """
    _check_outputs(robot, param)
    values: dict[str, Any] = {name: param(name) for name in _SAME}
    pose = tuple(float(value) for value in param("start_pose"))
    return ExecutorConfig(
        rate_hz=float(param("command_rate_hz")),
        lead_s=float(param("trajectory_lead_s")) if param("output") == "joint_trajectory" else 0.0,
        start_pose=pose if len(pose) > 1 else (),
        workspaces=workspaces_of(robot, param("workspace_lower"), param("workspace_upper")),
        **values,
    )


def _check_outputs(robot: Embodiment, param: Callable[[str], Any]) -> None:
    for name, known in (("output", OUTPUTS), ("gripper_output", GRIPPER_OUTPUTS)):
        if param(name) not in known:
            raise ValueError(f"{name} is {param(name)!r}, expected one of {', '.join(known)}")
    names = [name for name in param("gripper_actions") if name]
    if param("gripper_output") != "in_array" and len(names) != len(robot.gripper_indices):
        raise ValueError(
            f"gripper_actions must name one action for each of the {len(robot.gripper_indices)} grippers, got {names}"
        )


def workspaces_of(robot: Embodiment, lower: list[float], upper: list[float]) -> tuple[Workspace, ...] | None:
    """The boxes that `workspace_lower` and `workspace_upper` say; None for the robot's own.

    Raises:
        ValueError: there are too many or too few values, or a corner is on the wrong side of the other.
    """
    if len(lower) <= 1 and len(upper) <= 1:
        return None
    arms = len(robot.arms)
    if len(lower) != 3 * arms or len(upper) != 3 * arms:
        raise ValueError(
            f"workspace_lower and workspace_upper need {3 * arms} values, x y z for each of {arms} arms; "
            f"got {len(lower)} and {len(upper)}"
        )
    corners = zip(np.reshape(lower, (arms, 3)), np.reshape(upper, (arms, 3)), strict=True)
    return tuple(Workspace(np.array(low, dtype=float), np.array(high, dtype=float)) for low, high in corners)
