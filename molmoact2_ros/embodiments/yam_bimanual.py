"""Two YAM arms at one table: left j1..j6, left gripper, right j1..j6, right gripper.

Model vectors hold the joints in rad and each gripper as an open share: 0 closed, 1 open (the opposite of DROID). ROS
holds the stroke of a finger in m, 0 closed, 0.0475 open. The robot's base frame is the left arm's base; the right arm
stands 0.61 m to its right.

Sources: `urdf/yam.urdf` for chains, ranges and velocities, i2rt for the motors, allenai/MolmoAct2-BimanualYAM for
units, polarity and medians.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame, Workspace
from molmoact2_ros.embodiments.urdf import robot_urdf

if TYPE_CHECKING:
    from molmoact2_ros.embodiments.kinematics import Chain

Array = NDArray[np.float64]

SIDES = ("left", "right")
ARM_JOINTS = 6
GRIPPERS = (6, 13)
_URDF = robot_urdf("yam")
GRIPPER_STROKE = _URDF.joints["left_gripper"].upper
"""Travel of one finger, m; both fingers move."""

# No limits are published but what the motors can do (DM4340 10 rad/s, DM4310 30 rad/s, unloaded). The velocities of the
# URDF are a cautious choice: a quarter of the slower motor for the three joints that carry the arm, a little more for
# the light wrist; these accelerations reach that speed in 0.2 s, and these jerks reach the accelerations in 0.05 s.
_ARM_ACCELERATION = np.array([12.0, 12.0, 12.0, 18.0, 18.0, 18.0])
_ARM_JERK = np.array([240.0, 240.0, 240.0, 360.0, 360.0, 360.0])
# Not published either; the stroke takes about half a second.
_GRIPPER_ACCELERATION, _GRIPPER_JERK = 1.2, 24.0

_MEDIAN = np.array(
    [-0.073, 1.449, 1.283, -0.802, 0.113, -0.222, 0.733, 0.082, 1.542, 1.252, -0.682, -0.129, 0.192, 0.697]
)
"""Published q50 of the training states, model units."""


_JOINTS = tuple(
    name for side in SIDES for name in (*(f"{side}_joint{i}" for i in range(1, ARM_JOINTS + 1)), f"{side}_gripper")
)
_LOWER, _UPPER, _VELOCITY = _URDF.limits(_JOINTS)


def _both(arm: Array, gripper: float) -> Array:
    return np.tile(np.append(arm, gripper), 2)


class YamBimanual(Embodiment):
    """Two YAM arms with linear grippers, as i2rt drives them."""

    name = "yam"
    family = "yam"
    norm_tag = "yam_dual_molmoact2"
    setup_type = "bimanual yam robotic arms in molmoact2"
    control_mode = "absolute joint pose"
    joint_names = _JOINTS
    gripper_indices = GRIPPERS
    gripper_unit = "m"
    arms = (slice(0, 6), slice(7, 13))
    camera_names = ("top", "left", "right")
    min_cameras = 3
    rate_hz = 30.0
    horizon = 30
    moved_by_hand = "switch driver/hand_guiding on, move it inside by hand, switch the guiding off"
    # 5 and 7 rad/s, half and a quarter of what the motors turn at.
    speed_room = 2.0
    normalize_gripper = False
    # What a working YAM cell uses with this model; the grippers may open or close at once.
    max_step = _both(np.full(ARM_JOINTS, 0.2), 2.0 * GRIPPER_STROKE)
    max_first_step = _both(np.full(ARM_JOINTS, 0.3), 2.0 * GRIPPER_STROKE)
    limits = JointLimits(
        lower=_LOWER,
        upper=_UPPER,
        velocity=_VELOCITY,
        acceleration=_both(_ARM_ACCELERATION, _GRIPPER_ACCELERATION),
        jerk=_both(_ARM_JERK, _GRIPPER_JERK),
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

    def _make_chains(self) -> tuple[tuple[Chain, tuple[int, ...]], ...]:
        return (
            (_URDF.chain("left_base_link", "left_tcp"), (0, 1, 2, 3, 4, 5)),
            (_URDF.chain("right_base_link", "right_tcp", root="left_base_link"), (7, 8, 9, 10, 11, 12)),
        )

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
