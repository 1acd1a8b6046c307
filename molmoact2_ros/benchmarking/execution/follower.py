"""What an arm that keeps its limits makes of set-points, whoever sends them.

A set-point that jumps is nowhere near the arm: no arm jumps. So the lag of an arm is measured as well as that of its
set-points. The arm here is as good as an arm can be: at every tick it goes time-optimally, within the velocity,
acceleration and jerk limits, to the set-point and to the velocity that the last row's worth of set-points had.
"""

from __future__ import annotations

import numpy as np
import ruckig
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

VELOCITY_SHARE = 0.9
"""Of the velocity limit that a target may have, so that it can be caught up with."""
NUDGE = 1e-5
"""Rad."""


def follow(robot: Embodiment, setpoints: Array, rate_hz: float, row_ticks: int) -> Array:
    """Where the arm joints are (n, dof) when they are sent `setpoints` (n, dof); grippers are left as they are sent."""
    arm = [j for j in range(robot.dof) if j not in robot.gripper_indices]
    limits, sent = robot.limits, setpoints[:, arm]
    before = np.concatenate((np.repeat(sent[:1], row_ticks, axis=0), sent))[: len(sent)]
    fastest = VELOCITY_SHARE * limits.velocity[arm]
    speeds = np.clip((sent - before) * rate_hz / row_ticks, -fastest, fastest)
    planner = ruckig.Ruckig(len(arm), 1.0 / rate_hz)
    state, following = ruckig.InputParameter(len(arm)), ruckig.OutputParameter(len(arm))
    state.synchronization = ruckig.Synchronization.No
    state.max_velocity = limits.velocity[arm].tolist()
    state.max_acceleration = limits.acceleration[arm].tolist()
    state.max_jerk = limits.jerk[arm].tolist()
    state.current_position = sent[0].tolist()
    state.current_velocity = state.current_acceleration = state.target_acceleration = [0.0] * len(arm)
    positions = setpoints.copy()
    for tick in range(len(sent)):
        # Ruckig finds no way from some states to some targets (0.19.4); a target a hair or a speed away will do here.
        for target, speed in (
            (sent[tick], speeds[tick]),
            (sent[tick], 0.0 * fastest),
            (sent[tick] + NUDGE, speeds[tick]),
        ):
            state.target_position, state.target_velocity = target.tolist(), speed.tolist()
            try:
                planner.update(state, following)
                break
            except ruckig.RuckigError:
                continue
        else:
            raise RuntimeError(f"no way to the set-point of tick {tick} for the following arm")
        positions[tick, arm] = following.new_position
        following.pass_to_input(state)
    return positions
