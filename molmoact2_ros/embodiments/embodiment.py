"""What a robot is to the model and to ROS: joint order, units, limits, cameras, and the one conversion between the two.

Everything inside ROS is in rad and m (REP-103). A model vector is what the checkpoint was trained on: its order, units
and gripper polarity belong to the checkpoint. An `Embodiment` is the only place that maps one to the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from molmoact2_ros.embodiments.kinematics import Chain

Array = NDArray[np.float64]


GRIPPER_MARGIN = 0.25
"""How far beyond its end a gripper's target may lie, share of its stroke. A flow overshoots what is open or closed."""


class ModelFrame(Enum):
    """Which joint frame a checkpoint's vectors are in."""

    TRAINING = "training"
    """The frame of the training data (released checkpoints)."""
    ARM = "arm"
    """The arm's own frame (what is fine-tuned with lerobot today)."""


@dataclass(frozen=True)
class JointLimits:
    """Limits of every joint in ROS order; each array has shape (dof,).

    Units: rad, rad/s, rad/s^2, rad/s^3 (m for prismatic fingers).
    """

    lower: Array
    upper: Array
    velocity: Array
    acceleration: Array
    jerk: Array

    def __post_init__(self) -> None:
        sizes = {name: np.shape(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"joint limits must all have one shape (dof,), got {sizes}")
        if not np.all(self.lower < self.upper):
            raise ValueError("every lower position limit must be below its upper limit")


@dataclass(frozen=True)
class Workspace:
    """The box in which an arm's tip may be: corners `lower` (3,) and `upper` (3,) in the robot's base frame, m.

    The lower z is the floor. The default of a robot is generous: a cell with a table, a wall or a neighbour sets its
    own.
    """

    lower: Array
    upper: Array

    def __post_init__(self) -> None:
        if np.shape(self.lower) != (3,) or np.shape(self.upper) != (3,) or not np.all(self.lower < self.upper):
            raise ValueError(f"a workspace needs corners (3,) with lower < upper, got {self.lower} and {self.upper}")


class Embodiment(ABC):
    """A robot as the policy, the executor and the simulator see it. Instances are constants: build no new state here.

    Attributes:
        name: the name used on the command line, in config files and as the default namespace.
        family: the robot whose config, model and simulated cell serve this one; `name` itself but for a variant.
        norm_tag: the tag in `norm_stats.json` that belongs to this robot.
        setup_type, control_mode: the strings the released checkpoints carry for this robot.
        joint_names: ROS joint order, grippers included, shape (dof,).
        gripper_indices: positions of the grippers in `joint_names`.
        gripper_unit: of the grippers' positions: "rad", or "m" where fingers slide.
        arms: one slice of `joint_names` an arm, gripper excluded; joints of one arm share one time scale.
        camera_names: the cameras in the order of the prompt; the first is the depth image.
        min_cameras: how many of them a checkpoint may use at least.
        rate_hz: rate of the chunk's rows. horizon: rows of a chunk.
        max_step: largest step between two rows of a chunk that is still plausible, (dof,), rad.
        max_first_step: largest distance of the first executed row from the measured position, (dof,), rad.
        rest_position: a safe pose near the median of the training states, (dof,), rad.
        limits: see `JointLimits`.
        base_link: the link of the robot's URDF that stands in the cell, the frame of tips, workspaces and markers.
        wrist_links: for each arm the link that its last arm joint moves; a wrist camera is fixed to it.
        workspaces: for each arm where its tip may be.
        moved_by_hand: what a user does to move a joint by hand that the arm may not move by itself, an order.
        speed_room: so many times their velocity limits the arms' joints may be allowed at most (`scaled_limits`).
        normalize_gripper: whether the checkpoints of this robot scale the gripper like the other joints.
    """

    name: str
    family: str
    norm_tag: str
    setup_type: str
    control_mode: str
    joint_names: tuple[str, ...]
    gripper_indices: tuple[int, ...]
    gripper_unit: str
    arms: tuple[slice, ...]
    camera_names: tuple[str, ...]
    min_cameras: int
    rate_hz: float
    horizon: int
    max_step: Array
    max_first_step: Array
    rest_position: Array
    limits: JointLimits
    base_link: str
    wrist_links: tuple[str, ...]
    workspaces: tuple[Workspace, ...]
    moved_by_hand: str
    speed_room: float
    normalize_gripper: bool

    @property
    def dof(self) -> int:
        """Number of joints in ROS order, grippers included."""
        return len(self.joint_names)

    @property
    def arm_names(self) -> tuple[str, ...]:
        """What each arm is called: `left` of left_joint1, left_joint2 and so on; of a robot with one `arm`."""
        if len(self.arms) == 1:
            return ("arm",)
        return tuple(self.joint_names[arm][0].split("_")[0] for arm in self.arms)

    @cached_property
    def chains(self) -> tuple[tuple[Chain, tuple[int, ...]], ...]:
        """For each arm its kinematic chain from the base to the tip, and the joints of ROS order that drive it. Tips
        come out in the robot's base frame. The first use loads scipy."""
        return self._make_chains()

    @abstractmethod
    def _make_chains(self) -> tuple[tuple[Chain, tuple[int, ...]], ...]:
        """Return `chains`."""

    def velocity_bounds(self, positions: Array) -> tuple[Array, Array]:
        """Lowest (<= 0) and highest (>= 0) velocity (..., dof) permitted at `positions` (..., dof), rad/s (m/s for
        fingers). The nearer a joint is to a position limit, the less it may be there, never the more."""
        high = np.broadcast_to(self.limits.velocity, self.checked(positions, "joint positions").shape).copy()
        return -high, high

    def scaled_limits(self, scale: float) -> JointLimits:
        """The limits with `scale` times the velocities of the arms' joints; those of grippers stay.

        Above 1 accelerations grow as the scale and jerks as its square: a joint that is allowed more velocity alone
        takes so long to get there that new chunks come before it has, and the arm gets slower instead. Below 1 they
        stay: a stop must not take longer.

        Raises:
            ValueError: it is not above 0, or above what this robot's joints can do.
        """
        if not 0.0 < scale <= self.speed_room:
            raise ValueError(
                f"speed_scale is {scale:g}, expected above 0 and at most {self.speed_room:g} for {self.name}"
            )
        velocity, faster = np.ones(self.dof), np.ones(self.dof)
        for arm in self.arms:
            velocity[arm], faster[arm] = scale, max(scale, 1.0)
        limits = self.limits
        return replace(
            limits,
            velocity=limits.velocity * velocity,
            acceleration=limits.acceleration * faster,
            jerk=limits.jerk * faster**2,
        )

    def beyond(self, positions: Array, margin: float) -> Array:
        """How far `positions` (..., dof) lie outside their limits, less the margin: positive where that is too far.

        Args:
            margin: of the arm's joints, rad; a gripper's is `GRIPPER_MARGIN`.
        """
        lower, upper, grippers = self.limits.lower, self.limits.upper, list(self.gripper_indices)
        margins = np.full(self.dof, margin)
        margins[grippers] = GRIPPER_MARGIN * (upper - lower)[grippers]
        return np.maximum(lower - positions, positions - upper) - margins

    def unit(self, joint: int) -> str:
        """Unit of the position of `joint`, an index in ROS order."""
        return self.gripper_unit if joint in self.gripper_indices else "rad"

    @abstractmethod
    def model_from_joints(self, joints: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Map ROS joint positions (..., dof) in rad to model vectors (..., dof) in the checkpoint's units.

        Raises:
            ValueError: the last axis is not `dof`, or a value is not finite.
        """

    @abstractmethod
    def joints_from_model(self, vector: Array, frame: ModelFrame = ModelFrame.TRAINING) -> Array:
        """Inverse of `model_from_joints`."""

    def checked(self, values: Array, what: str) -> Array:
        """Return `values` as float64 (..., dof), refusing a wrong size and non-finite numbers."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != self.dof:
            raise ValueError(
                f"{self.name}: {what} must have {self.dof} values ({', '.join(self.joint_names)}), "
                f"got shape {array.shape}"
            )
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{self.name}: {what} contains NaN or infinity")
        return array

    def reorder(self, names: list[str] | tuple[str, ...], positions: Array) -> Array:
        """Return `positions` (n,), given in the order of `names`, in ROS order (dof,).

        Raises:
            ValueError: a joint of this robot is missing or named twice, or the sizes differ. Joints that the robot does
                not have are ignored, since drivers may publish more than the policy uses.
        """
        if len(names) != len(positions):
            raise ValueError(f"{self.name}: {len(names)} joint names but {len(positions)} positions")
        index = {name: i for i, name in enumerate(names)}
        missing = [name for name in self.joint_names if name not in index]
        if missing:
            raise ValueError(f"{self.name}: joints {missing} are missing from the message, which has {list(names)}")
        if len(index) != len(names):
            raise ValueError(f"{self.name}: a joint is named twice in {list(names)}")
        array = np.asarray(positions, dtype=np.float64)
        return self.checked(array[[index[name] for name in self.joint_names]], "joint positions")
