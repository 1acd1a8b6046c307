"""Forward kinematics of serial chains from published joint origins, in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rotation_from_quaternion(wxyz: tuple[float, float, float, float]) -> Array:
    """Rotation matrix (3, 3) of a quaternion (w, x, y, z) of any length but zero."""
    w, x, y, z = np.asarray(wxyz, dtype=np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rpy(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """Unit quaternion (w, x, y, z) of the fixed-axis angles that a URDF origin has, rad: roll about x first, yaw about
    z last."""
    (cr, cp, cy), (sr, sp, sy) = (f(0.5 * np.array([roll, pitch, yaw])) for f in (np.cos, np.sin))
    return (
        float(cr * cp * cy + sr * sp * sy),
        float(sr * cp * cy - cr * sp * sy),
        float(cr * sp * cy + sr * cp * sy),
        float(cr * cp * sy - sr * sp * cy),
    )


def quaternion_from_rotation(rotation: Array) -> tuple[float, float, float, float]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix (3, 3)."""
    # The eigenvector of the largest eigenvalue: safe for every angle (Bar-Itzhack, 2000).
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, dtype=np.float64)
    symmetric = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    w, x, y, z = np.linalg.eigh(symmetric / 3.0)[1][:, -1]
    sign = -1.0 if w < 0.0 else 1.0
    return float(sign * w), float(sign * x), float(sign * y), float(sign * z)


def rotation_about(axis: Array, angle: Array) -> Array:
    """Rotation matrices (..., 3, 3) about a unit `axis` (3,) by `angle` (...), rad (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.asarray(angle, dtype=np.float64)[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)


@dataclass(frozen=True)
class Joint:
    """A revolute joint: its origin in the parent link, and its axis in its own frame."""

    name: str
    xyz: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Chain:
    """A serial chain of revolute joints and a fixed tip.

    Attributes:
        joints: from the base outwards.
        tip_xyz: the tip in the frame of the last link, m.
        tip_wxyz: the tip's orientation in the frame of the last link.
        base_xyz, base_wxyz: where this arm's base stands in the robot's base frame, m.
    """

    joints: tuple[Joint, ...]
    tip_xyz: tuple[float, float, float]
    tip_wxyz: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    base_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    base_wxyz: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)

    def frames(self, positions: Array) -> Array:
        """Poses (..., joints + 1, 4, 4) of every link and of the tip in the robot's base frame, for `positions` (...,
        joints), rad."""
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape[-1] != len(self.joints):
            raise ValueError(f"chain has {len(self.joints)} joints, got positions of shape {positions.shape}")
        batch = positions.shape[:-1]
        base = _pose(self.base_xyz, self.base_wxyz)
        pose = np.broadcast_to(base, (*batch, 4, 4)).copy()
        out = np.empty((*batch, len(self.joints) + 1, 4, 4))
        for i, joint in enumerate(self.joints):
            pose = pose @ _pose(joint.xyz, joint.wxyz)
            pose[..., :3, :3] = pose[..., :3, :3] @ rotation_about(np.asarray(joint.axis), positions[..., i])
            out[..., i, :, :] = pose
        out[..., -1, :, :] = pose @ _pose(self.tip_xyz, self.tip_wxyz)
        return out

    def tip(self, positions: Array) -> Array:
        """Tip pose (..., 4, 4) in the robot's base frame."""
        return self.frames(positions)[..., -1, :, :]


def _pose(xyz: tuple[float, float, float], wxyz: tuple[float, float, float, float]) -> Array:
    out = np.eye(4)
    out[:3, :3] = rotation_from_quaternion(wxyz)
    out[:3, 3] = xyz
    return out
