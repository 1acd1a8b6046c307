"""What is drawn against what the simulator knows: the path in the images, the clouds, depth that is fitted.

Without ROS and without real time; the figures do not depend on the machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.depth import load_depth_decoder
from molmoact2_ros.rendering.depth_fit import Known, arm_depth, camera_depth, fit_depth, table_depth
from molmoact2_ros.rendering.projection import camera_pose, project, tip_paths
from molmoact2_ros.share import bundled_checkpoint
from molmoact2_ros.simulation.cell import Cell
from molmoact2_ros.simulation.cells import make_cell, scene_of
from molmoact2_ros.simulation.experts import expert_of
from molmoact2_ros.training.depth_codes import encode, learn_codebook

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco  # reads MUJOCO_GL when imported

Array = NDArray[np.float64]

ROBOTS = ("so101", "franka", "yam")
CODES, SIDE, GRID = 128, 320, 10
"""The released VQ-VAE: as many codes, an image of so many pixels a side, so many cells a side."""
_BALL_M = 0.006


@dataclass(frozen=True)
class PathError:
    """Distance between the drawn path and the rendered tip, pixels of the camera's image, over `rows` rows in view."""

    robot: str
    camera: str
    rows: int
    median_px: float
    worst_px: float


@dataclass(frozen=True)
class DepthError:
    """Of a cloud: the median of |depth - the simulator's|, cm, over all pixels and over those nearer than `near_m`."""

    what: str
    images: int
    median_cm: float
    near_cm: float
    said_cm: float
    """What the fit itself says; NaN without one."""


NEAR_M = 1.5


def path_errors(robot: str, episodes: int = 3, seed: int = 1000, shaken: bool = False) -> list[PathError]:
    """The expert's chunks, drawn, against a ball at the tip that the simulator renders at each row's joints.

    Args:
        shaken: the cameras stand a little beside what their calibration says, anew each episode, as in the cell that
            policies run in; else exactly there.
    """
    spread = scene_of(robot).randomisation
    exact = replace(spread, camera_m=0.0, camera_rad=0.0)
    cell, expert = make_cell(robot, seed, spread if shaken else exact), expert_of(robot)
    found: dict[str, list[float]] = {camera: [] for camera in cell.cameras}
    calibrations = {camera: camera_calibration(robot, camera) for camera in cell.cameras}
    first = calibrations[cell.cameras[0]]
    renderer = mujoco.Renderer(cell.model, first.height, first.width)
    try:
        for number in range(episodes):
            cell.reset(number)
            place, _ = cell.object_pose()
            rows = expert(cell.joints()[0], place, 0.0)
            paths = tip_paths(cell.robot, rows)
            for row in range(0, len(rows), 3):
                cell.place_arm(rows[row])
                mujoco.mj_forward(cell.model, cell.data)
                joints = cell.joints()[0]
                for camera, calibration in calibrations.items():
                    pose = camera_pose(cell.robot, calibration, joints)
                    for arm, path in enumerate(paths):
                        seen = _rendered_tip(cell, renderer, camera, arm)
                        drawn = project(path.points[row : row + 1], calibration, pose)[0][0]
                        if seen is not None and np.isfinite(drawn).all():
                            found[camera].append(float(np.linalg.norm(seen - drawn)))
    finally:
        renderer.close()
        cell.close()
    return [
        PathError(robot, camera, len(errors), float(np.median(errors)), max(errors))
        for camera, errors in found.items()
        if errors
    ]


def _rendered_tip(cell: Cell, renderer: mujoco.Renderer, camera: str, arm: int) -> Array | None:
    """Middle (2,) of a ball at the tip of `arm` in the rendered image, pixels; None where it is not wholly in view."""
    link = cell.model.body(cell.robot.wrist_links[arm]).id
    chain, _ = cell.robot.chains[arm]
    tip = cell.data.xpos[link] + cell.data.xmat[link].reshape(3, 3) @ chain.tip_xyz
    renderer.update_scene(cell.data, camera)
    scene = renderer.scene
    scene.ngeom = 1  # the ball alone: nothing is before it
    scene.nlight = 0  # it shines by itself: a lit side would draw its middle away
    mujoco.mjv_initGeom(
        scene.geoms[0],
        mujoco.mjtGeom.mjGEOM_SPHERE,
        np.full(3, _BALL_M),
        tip,
        np.eye(3).ravel(),
        np.array([0.0, 1.0, 0.0, 1.0], np.float32),
    )
    scene.geoms[0].emission = 1.0
    picture = renderer.render().astype(int)
    ball = (picture[..., 1] > 60) & (picture[..., 1] > picture[..., 0] + 50) & (picture[..., 1] > picture[..., 2] + 50)
    rows, columns = np.nonzero(ball)
    height, width = ball.shape
    if not len(rows) or rows.min() == 0 or columns.min() == 0 or rows.max() == height - 1 or columns.max() == width - 1:
        return None
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def _scene(cell: Cell, number: int) -> NDArray[np.float32]:
    """Depth image (h, w), m, of placement `number`, the arm somewhere on the way of the expert's first chunk."""
    cell.reset(number)
    place, _ = cell.object_pose()
    rows = expert_of(cell.robot.name)(cell.joints()[0], place, 0.0)
    cell.place_arm(rows[(7 * number) % len(rows)])
    mujoco.mj_forward(cell.model, cell.data)
    return cell.render_depth(cell.cameras[0])


def predicted_cloud(images: int = 12, seed: int = 1000) -> DepthError:
    """The small checkpoint's predicted depth against the simulator's, the same views."""
    from molmoact2_ros.policy import Observation, open_policy

    robot = embodiment("so101")
    place = bundled_checkpoint(robot.family)
    policy = open_policy(place, robot, robot.norm_tag, backend="torch", device="cpu")
    decoder = load_depth_decoder(place)
    cell = make_cell("so101", seed)
    errors, near = [], []
    try:
        for number in range(images):
            truth = _scene(cell, number)
            policy.reset()
            views = {camera: cell.render(camera) for camera in cell.cameras}
            seen = Observation(views, dict.fromkeys(views, 0), cell.joints()[0], 0, "pick up the red cube")
            codes = policy.infer(seen).depth_codes
            assert codes is not None, "the bundled checkpoint has depth reasoning"
            depth = decoder.decode(codes)
            miss = np.abs(depth - _like(truth, depth))
            errors.append(miss.ravel())
            near.append(miss[_like(truth, depth) < NEAR_M])
    finally:
        cell.close()
    return DepthError(
        "small checkpoint",
        images,
        100.0 * float(np.median(np.concatenate(errors))),
        100.0 * float(np.median(np.concatenate(near))),
        float("nan"),
    )


def fitted_clouds(robot: str, images: int = 12, seed: int = 1000) -> list[DepthError]:
    """Relative depth as the released VQ-VAE gives it, made of the simulator's, and fitted to what is known.

    Inverse depth, scaled to 0..1 an image, coded by 128 patches that other placements taught, and decoded again.
    """
    cell = make_cell(robot, seed)
    body, calibration = Body(cell.robot), camera_calibration(robot, cell.cameras[0])
    try:
        patches = np.concatenate([_patches(_relative(_scene(cell, 1000 + number))) for number in range(30)])
        codebook = learn_codebook(patches, CODES, seed)
        errors: dict[str, list[tuple[Array, Array, float]]] = {}
        for number in range(images):
            truth = _scene(cell, number)
            picture = _coded(_relative(truth), codebook)
            joints = cell.joints()[0]
            pose = camera_pose(cell.robot, calibration, joints)
            arm = arm_depth(body, joints, calibration, pose)
            table = table_depth(0.0, cell.robot.workspaces, arm, calibration, pose)
            known: dict[str, list[Known]] = {
                "arm and table": [arm, table],
                "arm": [arm],
                "table": [table],
                "depth camera": [camera_depth(truth)],
            }
            for name, parts in known.items():
                try:
                    fit = fit_depth(picture, parts, inverse=True)
                except ValueError:
                    continue
                made, wanted = fit.metres(picture), _like(truth, picture)
                miss = np.abs(np.where(np.isfinite(made), made, np.nan) - wanted)
                good = np.isfinite(miss)
                errors.setdefault(name, []).append((miss[good], miss[good & (wanted < NEAR_M)], fit.error_m))
    finally:
        cell.close()
    return [
        DepthError(
            name,
            len(parts),
            100.0 * float(np.median(np.concatenate([part[0] for part in parts]))),
            100.0 * float(np.median(np.concatenate([part[1] for part in parts]))),
            100.0 * float(np.median([part[2] for part in parts])),
        )
        for name, parts in errors.items()
    ]


def _like(depth: NDArray[np.float32], picture: NDArray[np.float32]) -> NDArray[np.float32]:
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST), np.float32)


def _relative(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse depth (SIDE, SIDE), scaled to 0..1."""
    inverse = cv2.resize(1.0 / depth, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low, high = float(inverse.min()), float(inverse.max())
    return np.asarray((inverse - low) / (high - low), np.float32)


def _patches(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    patch = SIDE // GRID
    return picture.reshape(GRID, patch, GRID, patch).transpose(0, 2, 1, 3).reshape(-1, patch, patch)


def _coded(picture: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.float32]:
    patch = SIDE // GRID
    cells = codebook[encode(_patches(picture), codebook)].reshape(GRID, GRID, patch, patch)
    return np.asarray(cells.transpose(0, 2, 1, 3).reshape(SIDE, SIDE), np.float32)
