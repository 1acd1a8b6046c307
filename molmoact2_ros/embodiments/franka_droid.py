"""Franka arms in the DROID set-up: seven joints and a gripper.

Model vectors hold the joints in rad and the gripper as a closed share: 0 open, 1 closed (1 - width / max width). ROS
holds the position of the gripper's driving joint: for the Franka Hand half of the width in m (0 closed, 0.04 open), for
a Robotiq 2F-85 the knuckle in rad (0 open, 0.7929 closed).

Sources: `urdf/franka.urdf` for the chain (of FR3 and FER alike) and the FR3's ranges and velocities, the limits page of
the Franka documentation for the rest, droid for rate, reset pose and largest step, allenai/MolmoAct2-DROID for units
and polarity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame, Workspace
from molmoact2_ros.embodiments.urdf import robot_urdf

if TYPE_CHECKING:
    from molmoact2_ros.embodiments.kinematics import Chain

Array = NDArray[np.float64]

ARM_JOINTS = 7
GRIPPER = 7
_URDF = robot_urdf("franka")
_FINGER = _URDF.joints["fr3_finger_joint1"]
FINGER_STROKE = _FINGER.upper
"""Travel of one finger of the Franka Hand, m: half of the width."""


@dataclass(frozen=True)
class ArmModel:
    """One model of arm; every array has shape (7,), rad, rad/s, rad/s^2, rad/s^3.

    `offset` (rad/s) and `deceleration` (rad/s^2) belong to the FR3's position-dependent velocity limit; None where the
    limit is the same everywhere.
    """

    joint_prefix: str
    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    offset: Array | None = None
    deceleration: Array | None = None


_LOWER, _UPPER, _VELOCITY = _URDF.limits(f"fr3_joint{i}" for i in range(1, ARM_JOINTS + 1))
FR3_ARM = ArmModel(
    joint_prefix="fr3",
    lower=_LOWER,
    upper=_UPPER,
    velocity=_VELOCITY,
    acceleration=np.full(7, 10.0),
    jerk=np.full(7, 5000.0),
    offset=np.array([0.6599, 0.2517, 0.2, 0.3533, 0.5757, 0.4878, 0.4628]),
    deceleration=np.array([6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0]),
)
FER_ARM = ArmModel(
    joint_prefix="panda",
    lower=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
    upper=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
    velocity=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]),
    acceleration=np.array([15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]),
    jerk=np.array([7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0]),
)


@dataclass(frozen=True)
class GripperModel:
    """A gripper by its driving joint.

    Attributes:
        joint: its ROS name, after the arm's prefix where `prefixed`.
        unit: of its position. opened, closed: its positions at the ends.
        upper: the joint's upper limit; the lower one is 0.
        velocity, acceleration, jerk: what it is asked for at most. The Franka Hand's fingers reach 0.1 m/s each; the
            others are not published and chosen so that the stroke takes half a second.
        tip_link, tip_z: the point between the fingertips is `tip_z` (m) along z of this link of the FR3's model.
    """

    joint: str
    prefixed: bool
    unit: str
    opened: float
    closed: float
    upper: float
    velocity: float
    acceleration: float
    jerk: float
    tip_link: str
    tip_z: float


FRANKA_HAND = GripperModel(
    joint="finger_joint1",
    prefixed=True,
    unit="m",
    opened=FINGER_STROKE,
    closed=0.0,
    upper=FINGER_STROKE,
    velocity=_FINGER.velocity,
    acceleration=1.0,
    jerk=20.0,
    tip_link="fr3_hand_tcp",
    tip_z=0.0,
)
ROBOTIQ_2F85 = GripperModel(
    joint="robotiq_85_left_knuckle_joint",
    prefixed=False,
    unit="rad",
    opened=0.0,
    closed=0.7929,
    upper=0.8,
    velocity=2.0,
    acceleration=20.0,
    jerk=400.0,
    # On the flange like the hand; 163 mm is the length of the closed gripper without its coupling.
    tip_link="fr3_hand",
    tip_z=0.163,
)


class FrankaDroid(Embodiment):
    """A Franka arm as DROID uses it. FR3 and FER differ in their limits, the grippers in the joint that drives them."""

    family = "franka"
    norm_tag = "franka_droid"
    setup_type = "single franka robotic arm in droid"
    control_mode = "absolute joint pose"
    gripper_indices = (GRIPPER,)
    arms = (slice(0, ARM_JOINTS),)
    camera_names = ("exterior", "wrist")
    min_cameras = 2
    rate_hz = 15.0
    horizon = 15
    moved_by_hand = "press the user stop, guide it inside by hand, release the stop"
    # Its controller ends the motion beyond its limits.
    speed_room = 1.0
    normalize_gripper = False
    # The reach of the arm (0.855 m to the flange) and its hand around the shoulder; the floor is the plane the base
    # stands on, less what a soft object gives way.
    workspaces = (Workspace(np.array([-0.90, -0.95, -0.02]), np.array([0.95, 0.95, 1.25])),)

    def __init__(self, name: str, arm: ArmModel, gripper: GripperModel) -> None:
        self.name = name
        self.arm, self.gripper = arm, gripper
        self.gripper_unit = gripper.unit
        finger = f"{arm.joint_prefix}_{gripper.joint}" if gripper.prefixed else gripper.joint
        self.joint_names = (*(f"{arm.joint_prefix}_joint{i}" for i in range(1, ARM_JOINTS + 1)), finger)
        self.base_link, self.wrist_links = f"{arm.joint_prefix}_link0", (f"{arm.joint_prefix}_link7",)
        self.limits = JointLimits(
            lower=np.append(arm.lower, 0.0),
            upper=np.append(arm.upper, gripper.upper),
            velocity=np.append(arm.velocity, gripper.velocity),
            acceleration=np.append(arm.acceleration, gripper.acceleration),
            jerk=np.append(arm.jerk, gripper.jerk),
        )
        # DROID moves a joint by at most 0.2 rad a step. A first row may be a step and a half away, since chunks come
        # late. The gripper may be told to open or close at once.
        self.max_step = np.append(np.full(ARM_JOINTS, 0.2), 2.0 * gripper.upper)
        self.max_first_step = np.append(np.full(ARM_JOINTS, 0.3), 2.0 * gripper.upper)
        self.rest_position = np.append(np.pi * np.array([0.0, -0.2, 0.0, -0.8, 0.0, 0.6, 0.0]), gripper.opened)

    def _make_chains(self) -> tuple[tuple[Chain, tuple[int, ...]], ...]:
        from molmoact2_ros.embodiments.kinematics import Chain

        chain = _URDF.chain("fr3_link0", self.gripper.tip_link)
        joints = (replace(joint, name=joint.name.replace("fr3", self.arm.joint_prefix)) for joint in chain.joints)
        tip = chain.tip_pose.copy()
        tip[:3, 3] += self.gripper.tip_z * tip[:3, 2]
        return ((Chain(tuple(joints), tip), tuple(range(ARM_JOINTS))),)

    def velocity_bounds(self, positions: Array) -> tuple[Array, Array]:
        """As the FR3 has it: the nearer a joint is to its end, the slower it may go there."""
        positions = self.checked(positions, "joint positions")
        low, high = super().velocity_bounds(positions)
        if self.arm.offset is None or self.arm.deceleration is None:
            return low, high
        q = positions[..., :ARM_JOINTS]
        for bound, distance, sign in ((high, self.arm.upper - q, 1.0), (low, q - self.arm.lower, -1.0)):
            reach = np.sqrt(2.0 * self.arm.deceleration * np.maximum(distance, 0.0)) - self.arm.offset
            bound[..., :ARM_JOINTS] = sign * np.minimum(self.arm.velocity, np.maximum(0.0, reach))
        return low, high

    def model_from_joints(self, joints: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Rad and the gripper's joint -> rad and the closed share. `frame` makes no difference: there is one."""
        out = self.checked(joints, "joint positions").copy()
        out[..., GRIPPER] = (out[..., GRIPPER] - self.gripper.opened) / (self.gripper.closed - self.gripper.opened)
        return out

    def joints_from_model(self, vector: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Rad and the closed share -> rad and the gripper's joint."""
        out = self.checked(vector, "model vector").copy()
        out[..., GRIPPER] = self.gripper.opened + out[..., GRIPPER] * (self.gripper.closed - self.gripper.opened)
        return out


FRANKA = FrankaDroid("franka", FR3_ARM, FRANKA_HAND)
FRANKA_ROBOTIQ = FrankaDroid("franka_robotiq", FR3_ARM, ROBOTIQ_2F85)
PANDA = FrankaDroid("panda", FER_ARM, FRANKA_HAND)
PANDA_ROBOTIQ = FrankaDroid("panda_robotiq", FER_ARM, ROBOTIQ_2F85)
