"""Metres for relative depth: scale and offset by what is known of the scene, robustly, with the error that is left.

Known are the robot's own links by its kinematics, the table by its height, and what a depth camera sees. Each says how
far some rays of the camera go. What stands on the table, or is not as the URDF has it, disagrees with the rest: a
repeated median bears with almost half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.embodiments import Workspace
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.projection import camera_rays

Array = NDArray[np.float64]

GRID = (64, 64)
"""Rays (rows, columns) over the camera's view at which something may be known."""
MOST = 300
"""Points of each kind that a fit takes, evenly chosen: all kinds weigh alike, and a fit takes milliseconds."""
LEAST = 20
FURTHEST_M = 5.0
"""No cell's depth is shown further away."""
SPREAD = 0.1
"""Share of the image's values that the known ones must cover: with less, the rest would be a guess."""
WORST = 0.15
"""Median error, share of the distance, at which the relative depth does not show this scene."""

_MEDIAN = 5


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a view: `name` of where from, and the distance along the optical axis, `GRID`, m, NaN where
    nothing is."""

    name: str
    depth: Array


@dataclass(frozen=True)
class DepthFit:
    """What makes metres of a relative depth image.

    Attributes:
        scale, offset: of its values; the result is 1 / distance where `inverse`, else the distance, m.
        error_m: median error over all known points, those that disagree included.
        agreeing: share of the known points within three times the usual error.
        errors_m: median error of each kind of known points, by its name.
        points: how many points there were.
    """

    scale: float
    offset: float
    inverse: bool
    error_m: float
    agreeing: float
    errors_m: dict[str, float]
    points: int

    def metres(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distances (h, w) along the optical axis of a relative image (h, w), m; NaN beyond `FURTHEST_M`."""
        return _metres(np.asarray(picture, np.float64), self.scale, self.offset, self.inverse).astype(np.float32)

    @property
    def words(self) -> str:
        """The fit for people."""
        kinds = ", ".join(f"{name} {100.0 * error:.1f} cm" for name, error in self.errors_m.items())
        return (
            f"fitted to {' and '.join(self.errors_m)}: median error {100.0 * self.error_m:.1f} cm ({kinds}), "
            f"{100.0 * self.agreeing:.0f} % of {self.points} points agree"
        )


def _metres(values: Array, scale: float, offset: float, inverse: bool) -> Array:
    out = scale * values + offset
    if inverse:
        out = 1.0 / np.where(out > 1.0 / FURTHEST_M, out, np.nan)
    return np.where((out > 0.0) & (out <= FURTHEST_M), out, np.nan)


def arm_depth(body: Body, joints: Array, calibration: CameraCalibration, camera: Array) -> Known:
    """The robot's links at `joints` (dof,) as the camera at `camera` (4, 4) sees them; their rims are left out."""
    depth = body.depth(joints, camera_rays(calibration, *GRID), camera)
    seen = np.isfinite(depth)
    inner = cv2.erode(seen.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
    return Known("arm", np.where(inner, depth, np.nan))


def table_depth(
    height_m: float, boxes: Sequence[Workspace], arm: Known | None, calibration: CameraCalibration, camera: Array
) -> Known:
    """The plane at `height_m` over the robot's base where it lies in the workspaces, and the robot is not before it."""
    rays = camera_rays(calibration, *GRID)
    directions = rays @ camera[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (height_m - camera[2, 3]) / directions[..., 2]
    depth = np.where(np.isfinite(depth) & (depth > 0.0), depth, np.nan)
    places = camera[:3, 3] + directions * depth[..., None]
    within = np.zeros(depth.shape, dtype=bool)
    for box in boxes:
        within |= np.all((places[..., :2] > box.lower[:2]) & (places[..., :2] < box.upper[:2]), axis=-1)
    if arm is not None:  # a real arm is thicker than its model, and throws shadows
        near = cv2.dilate(np.isfinite(arm.depth).astype(np.uint8), np.ones((7, 7), np.uint8))
        within &= near == 0
    return Known("table", np.where(within, depth, np.nan))


def camera_depth(depth: NDArray[np.float32]) -> Known:
    """What a depth camera says, `depth` (h, w) over the same view, m; not positive or not finite is unknown."""
    picked = _at_grid(np.asarray(depth, np.float64))
    return Known("depth camera", np.where(np.isfinite(picked) & (picked > 0.0), picked, np.nan))


def fit_depth(picture: NDArray[np.float32], known: Sequence[Known], inverse: bool) -> DepthFit:
    """Scale and offset of a relative depth image (h, w) that covers the camera's whole view.

    Args:
        inverse: its values grow with 1 / distance (nearer is larger), as Depth-Anything's do; else with the distance.

    Raises:
        ValueError: too little is known, or it does not go together with the image; the message says which.
    """
    from scipy.optimize import least_squares
    from scipy.stats import siegelslopes

    values = _at_grid(_smooth(picture))
    parts = {one.name: chosen for one in known if len(chosen := _chosen(values, one.depth)) >= LEAST}
    if not parts:
        seen = ", ".join(f"{one.name} {np.isfinite(one.depth).sum()}" for one in known) or "nothing"
        raise ValueError(f"too little in view is known to fit it: of {values.size} rays {seen}; at least {LEAST}")
    x, z = np.concatenate(list(parts.values())).T
    usual = np.nanpercentile(values, (2.0, 98.0))
    if np.ptp(np.percentile(x, (5.0, 95.0))) < SPREAD * np.ptp(usual) or np.ptp(x) == 0.0:
        raise ValueError("all that is known in view has almost the same depth; the rest would be a guess")
    y = 1.0 / z if inverse else z
    # The image is what is noisy, so it is fitted to the known and the line turned round: the other way, noise makes the
    # slope too flat, the more the less of the image's values are known.
    slope, offset = siegelslopes(x, y)
    usual_error = 1.4826 * float(np.median(np.abs(slope * y + offset - x)))
    if usual_error > 0.0:
        slope, offset = least_squares(
            lambda p: p[0] * y + p[1] - x, (slope, offset), loss="soft_l1", f_scale=usual_error
        ).x
    if not slope > 0.0:
        raise ValueError("the image is the other way round than what is known; is the camera where its file says?")
    slope, offset = 1.0 / slope, -offset / slope
    made = {name: _metres(part[:, 0], slope, offset, inverse) for name, part in parts.items()}
    # What comes out beyond every distance counts as that far.
    errors = {name: np.abs(np.nan_to_num(made[name], nan=FURTHEST_M) - parts[name][:, 1]) for name in parts}
    together = np.concatenate(list(errors.values()))
    error = float(np.median(together))
    if error > WORST * float(np.median(z)):
        raise ValueError(
            f"it does not go together with what is known: median error {100.0 * error:.0f} cm; is the camera where "
            "its file says, and the table at table_height_m?"
        )
    return DepthFit(
        scale=float(slope),
        offset=float(offset),
        inverse=inverse,
        error_m=error,
        agreeing=float(np.mean(together <= max(3.0 * 1.4826 * error, 1e-6))),
        errors_m={name: float(np.median(values)) for name, values in errors.items()},
        points=len(x),
    )


def _smooth(picture: NDArray[np.float32]) -> Array:
    """`picture` without the noise of single pixels, where it has many for each ray."""
    picture = np.asarray(picture, np.float32)
    many = min(np.array(picture.shape) // GRID) >= _MEDIAN and bool(np.isfinite(picture).all())
    return np.asarray(cv2.medianBlur(picture, _MEDIAN) if many else picture, np.float64)


def _at_grid(image: Array) -> Array:
    """The values of an image (h, w) at the rays of `GRID`, as they are: a mean over an edge is no depth at all."""
    rows, columns = (
        ((np.arange(count) + 0.5) * size / count).astype(int) for count, size in zip(GRID, image.shape, strict=True)
    )
    return image[np.ix_(rows, columns)]


def _chosen(values: Array, depth: Array) -> Array:
    """Pairs (n, 2) of value and known depth, evenly chosen."""
    good = np.isfinite(values) & np.isfinite(depth)
    pairs = np.stack([values[good], depth[good]], axis=1)
    return pairs[np.linspace(0, len(pairs) - 1, min(MOST, len(pairs))).astype(int)] if len(pairs) else pairs
