"""Where the tip goes during a chunk, and where that is in a camera's image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibration import CameraCalibration, distorted, mount_poses, undistorted
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

NEAREST_M = 0.01
"""A point nearer to the camera plane than this is not drawn: its pixel is meaningless."""
MOST_POINTS = 60_000
_EDGE = 0.08
"""Neighbours whose depths differ by more, share of the distance, belong to different things."""


@dataclass(frozen=True)
class TipPath:
    """The way of one arm's tip during a chunk.

    Attributes:
        poses: of the tip in the base frame at every row, (rows, 4, 4), m.
        openness: of the arm's gripper at every row, (rows,), 0 closed, 1 open.
    """

    poses: Array
    openness: Array

    @property
    def points(self) -> Array:
        """Tip positions (rows, 3), m."""
        return self.poses[:, :3, 3]


def tip_paths(embodiment: Embodiment, chunk: Array) -> tuple[TipPath, ...]:
    """Paths of the tips, one an arm, for `chunk` (rows, dof) in rad, ROS order."""
    chunk = embodiment.checked(chunk, "a chunk")
    if chunk.ndim != 2:
        raise ValueError(f"{embodiment.name}: a chunk must have shape (rows, {embodiment.dof}), got {chunk.shape}")
    limits = embodiment.limits
    out = []
    for i, (chain, joints) in enumerate(embodiment.chains):
        openness = np.ones(len(chunk))
        if i < len(embodiment.gripper_indices):
            g = embodiment.gripper_indices[i]
            openness = np.clip((chunk[:, g] - limits.lower[g]) / (limits.upper[g] - limits.lower[g]), 0.0, 1.0)
        out.append(TipPath(chain.tip(chunk[:, list(joints)]), openness))
    return tuple(out)


def camera_pose(embodiment: Embodiment, calibration: CameraCalibration, joints: Array | None) -> Array:
    """Pose (4, 4) of the optical frame in the base frame.

    `joints` (dof,) in ROS order are needed for a camera on a wrist link only.

    Raises:
        ValueError: the mount is unknown, or the camera moves and no joints were given.
    """
    return mount_poses(embodiment, calibration.mount, joints) @ calibration.pose


def project(points: Array, calibration: CameraCalibration, pose: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Pixels (n, 2) of `points` (n, 3) in the base frame, for a camera at `pose` (4, 4), and which are in front of it.

    A pixel may lie outside the image: a line to it is still drawn up to the edge. Pixels of points behind the
    camera are NaN.
    """
    inverse = np.linalg.inv(pose)
    local = np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
    in_front = local[:, 2] > NEAREST_M
    pixels = np.full((len(local), 2), np.nan)
    flat = local[in_front, :2] / local[in_front, 2:3]
    if np.any(calibration.d):
        # A polynomial means nothing far outside the image: there it may lead back into it.
        distance = np.linalg.norm(flat, axis=1, keepdims=True)
        near = flat * np.minimum(1.0, calibration.widest / np.maximum(distance, 1e-12))
        flat = flat + distorted(near, calibration.d) - near
    k = np.asarray(calibration.k)
    pixels[in_front] = flat @ k[:2, :2].T + k[:2, 2]
    return pixels, in_front


def camera_rays(calibration: CameraCalibration, height: int, width: int) -> Array:
    """Directions (height, width, 3), z 1, in the optical frame through the cells of a grid over the whole view."""
    u, v = np.meshgrid(
        (np.arange(width) + 0.5) * calibration.width / width, (np.arange(height) + 0.5) * calibration.height / height
    )
    k = np.asarray(calibration.k)
    flat = undistorted(np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]], axis=-1), calibration.d)
    return np.concatenate([flat, np.ones_like(u)[..., None]], axis=-1)


def points_of_depth(depth: NDArray[np.float32], calibration: CameraCalibration) -> NDArray[np.float32]:
    """Points (h * w, 3) in the optical frame of an image `depth` (h, w) of distances along the optical axis, m.

    The image covers the camera's whole view, squashed to its own shape, as the model saw it.
    """
    return (camera_rays(calibration, *depth.shape) * depth[..., None]).reshape(-1, 3).astype(np.float32)


def refined_depth(depth: NDArray[np.float32], calibration: CameraCalibration, spacing_m: float) -> NDArray[np.float32]:
    """`depth` (h, w), m, with so many values that neighbouring points are about `spacing_m` apart: a cloud of points of
    that size has no holes, near or far. Never fewer values than given, and at most `MOST_POINTS` in all.

    Between values that belong together it is even; at an edge it stays what one of the two says.
    """
    good = np.isfinite(depth)
    if not good.any():
        return depth
    across = float(np.percentile(depth[good], 75.0)) * calibration.width / (depth.shape[1] * calibration.k[0, 0])
    times = int(np.clip(np.ceil(across / spacing_m), 1, max(1, int(np.sqrt(MOST_POINTS / depth.size)))))
    if times == 1:
        return depth
    size = (depth.shape[1] * times, depth.shape[0] * times)
    known = np.where(good, depth, 0.0).astype(np.float32)
    around = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(known, around) - cv2.erode(known, around) > _EDGE * known  # what is unknown has one, too
    stepped = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    even = cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR)
    close = cv2.resize(edge.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) == 0
    return np.asarray(np.where(close, even, stepped), dtype=np.float32)
