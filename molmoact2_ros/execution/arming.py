"""What speaks against arming, in one sentence, and where the start pose is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.feedback import Feedback

Array = NDArray[np.float64]

COMES_IN_RAD = 0.1
"""An arm joint that rests so far outside its limits, on its stop or sagged, comes back by itself. A driver's gate lets
commands pass up to there."""


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
    refused: str = "",
) -> str:
    """Why the arm must not be armed now; empty when nothing speaks against it.

    `heard_ns`: when the last usable chunk came. `to_start`: the arm is going to the start pose next, without a policy.
    `refused`: why the newest chunk was not usable.
    """
    stale = feedback.stale(now_ns)
    if stale is not None:
        return stale
    unsteady = feedback.unsteady(now_ns)
    if unsteady:
        return unsteady
    measured = feedback.position
    assert measured is not None
    limits = robot.limits
    margin = max(config.position_margin, COMES_IN_RAD)
    beyond = robot.beyond(measured, margin)
    j = int(np.argmax(beyond))
    if beyond[j] > 0.0:
        far = (
            "" if j in robot.gripper_indices else f", further than the {margin:g} rad from which it comes in by itself"
        )
        return (
            f"{robot.joint_names[j]} is at {measured[j]:.3f} {robot.unit(j)}, outside its limits "
            f"{limits.lower[j]:.3f} to {limits.upper[j]:.3f}{far}; {robot.moved_by_hand}"
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
        hint = f"the last one was refused: {refused}" if refused else "is the policy running, and does it have a task?"
        if heard_ns is None:
            return f"no usable action chunk has come yet; {hint}"
        silence = (now_ns - heard_ns) * 1e-9
        if silence > config.chunk_timeout_s:
            limit = config.chunk_timeout_s
            return f"no usable action chunk for {silence:.2f} s (limit {limit:.2f} s); {hint}"
    return ""
