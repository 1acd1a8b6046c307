"""Forward kinematics of serial chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def pose_of(rotation: Rotation, xyz: ArrayLike) -> Array:
    """Pose (4, 4) of a rotation and a place (3,), m."""
    out = np.eye(4)
    out[:3, :3] = rotation.as_matrix()
    out[:3, 3] = xyz
    return out


@dataclass(frozen=True, eq=False)
class Joint:
    """A revolute joint: where it stands in the link before it, `origin` (4, 4), and the unit `axis` (3,) it turns
    about, in its own frame."""

    name: str
    origin: Array
    axis: Array

    @property
    def xyz(self) -> Array:
        """Place (3,) in the link before it, m."""
        return self.origin[:3, 3]


@dataclass(frozen=True, eq=False)
class Chain:
    """A serial chain of revolute joints and a fixed tip.

    Attributes:
        joints: from the base outwards.
        tip_pose: the tip (4, 4) in the frame of the last link.
        base_pose: where this arm's base (4, 4) stands in the robot's base frame.
    """

    joints: tuple[Joint, ...]
    tip_pose: Array
    base_pose: Array = field(default_factory=lambda: np.eye(4))
    _origins: Sequence[Array] = field(init=False, repr=False)
    _axes: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_origins", [joint.origin for joint in self.joints])
        object.__setattr__(self, "_axes", np.array([joint.axis for joint in self.joints], dtype=np.float64))

    @property
    def tip_xyz(self) -> Array:
        """The tip (3,) in the frame of the last link, m."""
        return self.tip_pose[:3, 3]

    @property
    def base_xyz(self) -> Array:
        """Where this arm's base stands (3,) in the robot's base frame, m."""
        return self.base_pose[:3, 3]

    def frames(self, positions: Array) -> Array:
        """Poses (..., joints + 1, 4, 4) of every link and of the tip in the robot's base frame, for `positions` (...,
        joints), rad."""
        positions = np.asarray(positions, dtype=np.float64)
        if not positions.ndim or positions.shape[-1] != len(self.joints):
            raise ValueError(f"chain has {len(self.joints)} joints, got positions of shape {positions.shape}")
        # All joints of all rows in one call: a call a joint costs twice as much, and this runs in the command loop.
        vectors = (positions[..., None] * self._axes).reshape(-1, 3)
        turns = Rotation.from_rotvec(vectors).as_matrix().reshape(*positions.shape, 3, 3)
        out = np.empty((*positions.shape[:-1], len(self.joints) + 1, 4, 4))
        pose = self.base_pose
        for i, origin in enumerate(self._origins):
            link = out[..., i, :, :]
            link[...] = pose @ origin
            link[..., :3, :3] = link[..., :3, :3] @ turns[..., i, :, :]
            pose = link
        out[..., -1, :, :] = pose @ self.tip_pose
        return out

    def tip(self, positions: Array) -> Array:
        """Tip pose (..., 4, 4) in the robot's base frame."""
        return self.frames(positions)[..., -1, :, :]
