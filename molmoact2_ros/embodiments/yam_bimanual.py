"""Two YAM arms at one table: left j1..j6, left gripper, right j1..j6, right gripper.

Model vectors hold the joints in rad and each gripper as an open share: 0 closed, 1 open (the opposite of DROID). ROS
holds the stroke of a finger in m, 0 closed, 0.0475 open. The robot's base frame is the left arm's base; the right arm
stands 0.61 m to its right.

Sources: the i2rt model for the chain and the ranges, i2rt for the motors, allenai/MolmoAct2-BimanualYAM for units,
polarity and medians.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame, Workspace
from molmoact2_ros.embodiments.kinematics import Chain, Joint, quaternion_from_rpy

Array = NDArray[np.float64]

SIDES = ("left", "right")
ARM_JOINTS = 6
GRIPPERS = (6, 13)
GRIPPER_STROKE = 0.0475
"""Travel of one finger, m; both fingers move."""
RIGHT_BASE = (0.0, -0.61, 0.0)
"""Base of the right arm in the base frame of the left one, m."""
TCP_Z = 0.14465
"""The point between the fingertips from the last joint, along its z, m."""

_PI = np.pi
_ORIGINS = (
    ((0.0, 0.0, 0.068), (0.0, _PI / 2, _PI), (-1.0, 0.0, 0.0)),
    ((-0.0455, -0.0339, -0.02), (0.0, 0.0, -_PI), (0.0, 1.0, 0.0)),
    ((0.0, -0.0688, 0.264), (0.0, 0.0, -_PI), (0.0, 1.0, 0.0)),
    ((-0.060, -0.0688, -0.245), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((-0.0405, 0.0339, -0.074), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
    ((0.0405, 0.0, -0.0356), (_PI, 0.0, _PI / 2), (0.0, 0.0, 1.0)),
)
"""Origin (m, rpy rad) of each joint in the link before it, and its axis."""

_ARM_LOWER = np.array([-2.618, 0.0, 0.0, -1.693, -1.5708, -2.0944])
_ARM_UPPER = np.array([3.1416, 3.6652, 3.1416, 1.5708, 1.5708, 2.0944])
# No limits are published but what the motors can do (DM4340 10 rad/s, DM4310 30 rad/s, unloaded). These are a cautious
# choice: a quarter of the slower motor for the three joints that carry the arm, a little more for the light wrist;
# accelerations that reach that speed in 0.2 s, and jerks that reach those accelerations in 0.05 s.
_ARM_VELOCITY = np.array([2.5, 2.5, 2.5, 3.5, 3.5, 3.5])
_ARM_ACCELERATION = np.array([12.0, 12.0, 12.0, 18.0, 18.0, 18.0])
_ARM_JERK = np.array([240.0, 240.0, 240.0, 360.0, 360.0, 360.0])
# Not published either; the stroke takes about half a second.
_GRIPPER_VELOCITY, _GRIPPER_ACCELERATION, _GRIPPER_JERK = 0.12, 1.2, 24.0

_MEDIAN = np.array(
    [-0.073, 1.449, 1.283, -0.802, 0.113, -0.222, 0.733, 0.082, 1.542, 1.252, -0.682, -0.129, 0.192, 0.697]
)
"""Published q50 of the training states, model units."""


def arm_chain(side: str) -> Chain:
    """The chain of one arm, from its base to the point between the fingertips, in the base frame of the left arm."""
    joints = tuple(
        Joint(f"{side}_joint{i}", xyz, quaternion_from_rpy(*rpy), axis)
        for i, (xyz, rpy, axis) in enumerate(_ORIGINS, start=1)
    )
    return Chain(
        joints,
        tip_xyz=(0.0, 0.0, TCP_Z),
        tip_wxyz=quaternion_from_rpy(0.0, 0.0, _PI / 2),  # the fingers move along the tip's y
        base_xyz=RIGHT_BASE if side == "right" else (0.0, 0.0, 0.0),
    )


def _both(arm: Array, gripper: float) -> Array:
    return np.tile(np.append(arm, gripper), 2)


class YamBimanual(Embodiment):
    """Two YAM arms with linear grippers, as i2rt drives them."""

    name = "yam"
    family = "yam"
    norm_tag = "yam_dual_molmoact2"
    setup_type = "bimanual yam robotic arms in molmoact2"
    control_mode = "absolute joint pose"
    joint_names = tuple(
        name for side in SIDES for name in (*(f"{side}_joint{i}" for i in range(1, ARM_JOINTS + 1)), f"{side}_gripper")
    )
    gripper_indices = GRIPPERS
    gripper_unit = "m"
    arms = (slice(0, 6), slice(7, 13))
    camera_names = ("top", "left", "right")
    min_cameras = 3
    rate_hz = 30.0
    horizon = 30
    normalize_gripper = False
    # What a working YAM cell uses with this model; the grippers may open or close at once.
    max_step = _both(np.full(ARM_JOINTS, 0.2), 2.0 * GRIPPER_STROKE)
    max_first_step = _both(np.full(ARM_JOINTS, 0.3), 2.0 * GRIPPER_STROKE)
    limits = JointLimits(
        lower=_both(_ARM_LOWER, 0.0),
        upper=_both(_ARM_UPPER, GRIPPER_STROKE),
        velocity=_both(_ARM_VELOCITY, _GRIPPER_VELOCITY),
        acceleration=_both(_ARM_ACCELERATION, _GRIPPER_ACCELERATION),
        jerk=_both(_ARM_JERK, _GRIPPER_JERK),
    )
    chains = (
        (arm_chain("left"), (0, 1, 2, 3, 4, 5)),
        (arm_chain("right"), (7, 8, 9, 10, 11, 12)),
    )
    base_link = "left_base_link"
    wrist_links = ("left_link6", "right_link6")
    # Each arm's reach around its base. The two boxes overlap: the arms work on one table and may hand things over.
    workspaces = (
        Workspace(np.array([-0.30, -0.75, -0.02]), np.array([0.80, 0.70, 0.85])),
        Workspace(np.array([-0.30, -1.31, -0.02]), np.array([0.80, 0.14, 0.85])),
    )

    def __init__(self) -> None:
        self.rest_position = self.joints_from_model(_MEDIAN)

    def model_from_joints(self, joints: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Rad and strokes in m -> rad and open shares. `frame` makes no difference: there is one."""
        out = self.checked(joints, "joint positions").copy()
        out[..., list(GRIPPERS)] /= GRIPPER_STROKE
        return out

    def joints_from_model(self, vector: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Rad and open shares -> rad and strokes in m."""
        out = self.checked(vector, "model vector").copy()
        out[..., list(GRIPPERS)] *= GRIPPER_STROKE
        return out


YAM = YamBimanual()
