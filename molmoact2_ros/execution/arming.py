"""What speaks against arming, in one sentence, and the way to the start pose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.ramp import Ramp
from molmoact2_ros.execution.workspace import WorkspaceGuard

Array = NDArray[np.float64]


def start_pose(robot: Embodiment, config: ExecutorConfig) -> Array:
    """Where the ramp goes (dof,), rad."""
    return np.array(config.start_pose) if config.start_pose else robot.rest_position


def reason_not_to_arm(
    robot: Embodiment,
    config: ExecutorConfig,
    feedback: Feedback,
    heard_ns: int | None,
    now_ns: int,
    to_start: bool,
) -> str:
    """Why the arm must not be armed now; empty when nothing speaks against it.

    `heard_ns`: when the last usable chunk came. `to_start`: the arm is going to the start pose next, without a policy.
    """
    stale = feedback.stale(now_ns)
    if stale is not None:
        return stale
    measured = feedback.position
    assert measured is not None
    limits = robot.limits
    beyond = robot.beyond(measured, config.position_margin)
    j = int(np.argmax(beyond))
    if beyond[j] > 0.0:
        return (
            f"{robot.joint_names[j]} is at {measured[j]:.3f} {robot.unit(j)}, outside its limits "
            f"{limits.lower[j]:.3f} to {limits.upper[j]:.3f}; move it back by hand"
        )
    if to_start:
        return ""
    if config.start_tolerance > 0.0:
        distance = np.abs(measured - start_pose(robot, config))
        distance[list(robot.gripper_indices)] = 0.0
        j = int(np.argmax(distance))
        if distance[j] > config.start_tolerance:
            return (
                f"{robot.joint_names[j]} is {distance[j]:.3f} rad from the start pose (limit "
                f"{config.start_tolerance:g}); call executor/go_to_start"
            )
    if config.arm_needs_chunk:
        if heard_ns is None:
            return "no usable action chunk has come yet; is the policy running, and does it have a task?"
        silence = (now_ns - heard_ns) * 1e-9
        if silence > config.chunk_timeout_s:
            return (
                f"no usable action chunk for {silence:.2f} s (limit {config.chunk_timeout_s:.2f} s); is the policy "
                "running, and does it have a task?"
            )
    return ""


def ramp_to_start(
    robot: Embodiment, config: ExecutorConfig, limiter: Limiter, guard: WorkspaceGuard, rest: Array, begin_ns: int
) -> Ramp:
    """The slow way from the last command to the start pose; grippers begin where they are to go (`rest` (dof,)).

    Raises:
        ValueError: the way leaves the workspace.
    """
    goal = np.clip(start_pose(robot, config), limiter.safe.lower, limiter.safe.upper)
    start = limiter.motion.position.copy()
    grippers = list(robot.gripper_indices)
    start[grippers] = rest[grippers]
    ramp = Ramp(start, goal, robot.limits, grippers, config.ramp_speed, begin_ns)
    outside = guard.first_outside(ramp.way())
    if outside is not None:
        raise ValueError(outside[1])
    return ramp
