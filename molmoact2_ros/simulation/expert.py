"""The scripted expert of the SO-101 cell: from any state, the chunk that a patient operator would play next.

The expert has no memory. What it does next follows from the joints and the cube's place alone, so that its chunks can
be given as labels in states that it would never reach by itself, and a policy can learn to recover from its own
errors. It moves the grip point in straight lines with the gripper pointing down: over the cube, down, close, up, and
stays there. Inverse kinematics comes from mink, solved once on a grid over the arm's plane and interpolated.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.simulation.so101_scene import CUBE_HALF, GRIP_POINT, PAN_AXIS, PARALLEL_JAW, scene_xml

Array = NDArray[np.float64]

OPEN = 1.0
CLOSED = -0.12
"""Jaw targets, rad. Closed asks for less than the cube's width, so that the servo presses."""
HELD = PARALLEL_JAW + 0.09
"""A jaw no wider than this, with the cube between the pads, holds it."""
EMPTY = PARALLEL_JAW - 0.10
"""A jaw narrower than this holds nothing."""
CLEARANCE = 0.075
"""Height of the grip point over the table from which it descends, m."""
LIFT = 0.105
"""Height of the grip point that the cube is lifted to, m."""
OFFSET = 0.007
"""How far inwards of the cube's centre the grip point goes down, so that the fixed finger, on the inner side, has
room, m."""
TILT = 0.25
"""Difference of the arm's joints from those of a gripper that points down, beyond which it must be pushing, rad."""
SPEED = 0.14
"""Largest speed of the grip point, m/s."""
JAW_SPEED = 3.0
DWELL = 5
"""Rows between the jaw's closing and the lift."""


@cache
def _plane_table() -> RegularGridInterpolator:
    """Lift, elbow and wrist flex (3,) for a grip point at (radius from the pan axis, height), gripper pointing down."""
    import mink
    import mujoco

    model = mujoco.MjModel.from_xml_string(scene_xml(with_objects=False))
    configuration = mink.Configuration(model)
    task = mink.FrameTask("grip", "site", position_cost=1.0, orientation_cost=[0.05, 0.05, 0.0])
    q = configuration.q.copy()
    q[:] = [0.0, -0.46, 0.66, 1.37, 0.0, 0.5]
    radii, heights = np.linspace(0.11, 0.275, 16), np.linspace(-0.01, 0.15, 11)
    table = np.empty((len(radii), len(heights), 3))
    # The gripper points down where the grip frame equals the base frame.
    for i, radius in enumerate(radii):
        for j, height in enumerate(heights if i % 2 == 0 else heights[::-1]):
            task.set_target(mink.SE3.from_translation(np.array([PAN_AXIS[0] + radius, 0.0, height])))
            for _ in range(15):
                configuration.update(q)
                error = task.compute_error(configuration)
                if np.linalg.norm(error[:3]) < 1e-5 and np.linalg.norm(error[3:5]) < 1e-3:
                    break
                velocity = mink.solve_ik(configuration, [task], 1.0, "daqp", damping=1e-6)
                velocity[[0, 4, 5]] = 0.0
                q = configuration.integrate(velocity, 1.0)
            table[i, j if i % 2 == 0 else len(heights) - 1 - j] = q[1:4]
    return RegularGridInterpolator((radii, heights), table, bounds_error=False, fill_value=None)


def joints_for(point: Array) -> Array:
    """Arm joints (..., 5) that bring the grip point to `point` (..., 3) in the base frame, gripper pointing down."""
    planar = point[..., :2] - PAN_AXIS
    pan = -np.arctan2(planar[..., 1], planar[..., 0])
    bent = _plane_table()(np.stack([np.linalg.norm(planar, axis=-1), point[..., 2]], axis=-1)).reshape(*pan.shape, 3)
    return np.concatenate([pan[..., None], bent, np.zeros_like(pan)[..., None]], axis=-1)


def grip_point(joints: Array) -> Array:
    """Grip point (3,) in the base frame for joints (6,)."""
    link = SO101.chains[0][0].frames(joints[:5])[4]
    return link[:3, :3] @ np.asarray(GRIP_POINT) + link[:3, 3]


def expert_chunk(joints: Array, cube: Array, rate_hz: float = 30.0, horizon: int = 30) -> Array:
    """Chunk (horizon, 6) of joint targets, rad, that continues from `joints` (6,) towards lifting the cube at `cube`
    (3,).

    Row i is the target (i + 1) / rate after the reading.
    """
    dt = 1.0 / rate_hz
    point = grip_point(joints)
    jaw = float(joints[5])
    residual = joints[:5] - joints_for(point)
    direction = cube[:2] - PAN_AXIS
    direction = direction / np.linalg.norm(direction)
    grasp = np.array([*(cube[:2] - OFFSET * direction), CUBE_HALF + 0.001])
    between = _between(point, cube)
    # A gripper that is tilted near the table stands on something: back up before anything else.
    blocked = point[2] < CLEARANCE - 0.02 and float(np.linalg.norm(residual[1:4])) > TILT and not between
    holding = between and EMPTY < jaw <= HELD
    closing = 0
    rows = np.empty((horizon, 6))
    for i in range(horizon):
        across = float(np.hypot(*(point[:2] - grasp[:2])))
        if holding:
            target, jaw_target = np.array([point[0], point[1], LIFT]), CLOSED
        elif blocked:
            target, jaw_target = np.array([point[0], point[1], CLEARANCE]), OPEN
            blocked = point[2] < CLEARANCE - 0.005
        elif closing or (across < 0.012 and point[2] < grasp[2] + 0.008 and jaw > HELD):
            closing += 1
            target, jaw_target = point, CLOSED
            holding = closing > DWELL and jaw <= HELD
        elif across > 0.010 + 0.25 * max(point[2] - grasp[2] - 0.004, 0.0) or jaw < 0.7 * OPEN:
            # Not over the cube, or not open: rise first when low, then go across.
            height = CLEARANCE if point[2] > CLEARANCE - 0.02 or across < 0.010 else CLEARANCE + 0.01
            target = np.array([grasp[0], grasp[1], height])
            if point[2] < CLEARANCE - 0.02:
                target[:2] = point[:2]
            jaw_target = OPEN
        else:
            target, jaw_target = grasp, OPEN
        step = target - point
        distance = float(np.linalg.norm(step))
        if distance > 1e-9:
            # Slow down over the last centimetres.
            speed = min(SPEED, 0.03 + 5.0 * distance)
            point = point + step * min(1.0, speed * dt / distance)
        jaw_limit = (PARALLEL_JAW if between or closing else CLOSED) if jaw_target == CLOSED else OPEN
        jaw += float(np.clip(max(jaw_target, jaw_limit) - jaw, -JAW_SPEED * dt, JAW_SPEED * dt))
        residual = residual * 0.85
        rows[i, :5] = joints_for(point) + residual
        rows[i, 5] = jaw_target
    return np.clip(rows, SO101.limits.lower, SO101.limits.upper)


def _between(point: Array, cube: Array) -> bool:
    """The cube is where the pads would hold it."""
    return bool(np.hypot(*(point[:2] - cube[:2])) < 0.022 and abs(point[2] - cube[2]) < 0.02)
