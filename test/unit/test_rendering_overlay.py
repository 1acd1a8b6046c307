"""The path in the image is where the arm will be, and every image is drawn from whatever is known so far."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from molmoact2_ros.cameras.calibration import CameraCalibration, load_calibrations
from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.rendering.colours import ramp
from molmoact2_ros.rendering.montage import Caption, canvas_shape, montage
from molmoact2_ros.rendering.overlay import ImagePath, Legend, overlay
from molmoact2_ros.rendering.projection import camera_pose, points_of_depth, project, tip_paths
from molmoact2_ros.simulation.so101_scene import scene_xml

JOINTS = np.array([0.2, -0.6, 0.6, 1.0, 0.3, 0.5])


@pytest.fixture(scope="module")
def cell() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The simulated cell at `JOINTS`."""
    model = mujoco.MjModel.from_xml_string(scene_xml())
    data = mujoco.MjData(model)
    for name, value in zip(SO101.joint_names, JOINTS, strict=True):
        data.qpos[model.joint(name).qposadr[0]] = value
    mujoco.mj_forward(model, data)
    return model, data


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_camera_poses_are_those_of_the_simulated_cell(cell: tuple[mujoco.MjModel, mujoco.MjData], camera: str) -> None:
    model, data = cell
    pose = camera_pose(SO101, camera_calibration("so101", camera), JOINTS)
    index = model.camera(camera).id
    np.testing.assert_allclose(pose[:3, 3], data.cam_xpos[index], atol=1e-6)
    # MuJoCo's camera looks along -z with y up.
    np.testing.assert_allclose(pose[:3, :3] @ np.diag([1, -1, -1]), data.cam_xmat[index].reshape(3, 3), atol=1e-6)


def test_tip_of_the_chunk_starts_at_the_tip_of_the_arm(cell: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = cell
    chunk = JOINTS + np.linspace(0, 0.3, 30)[:, None] * np.array([1, 1, 0, 0, 0, 1])
    (path,) = tip_paths(SO101, chunk)
    link = model.body("gripper_link").id
    expected = data.xpos[link] + data.xmat[link].reshape(3, 3) @ SO101.chains[0][0].tip_xyz
    np.testing.assert_allclose(path.points[0], expected, atol=1e-6)
    assert path.points.shape == (30, 3)
    assert np.all(np.diff(path.openness) > 0)
    assert path.openness.min() >= 0 and path.openness.max() <= 1


def test_chunks_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="must have 6 values"):
        tip_paths(SO101, np.zeros((30, 7)))
    with pytest.raises(ValueError, match="rows, 6"):
        tip_paths(SO101, np.zeros(6))


def camera(mount: str = "base_link") -> CameraCalibration:
    """Looks along +x of its mount from the mount's origin: right is -y, down is -z."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return CameraCalibration(200, 100, np.array([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]]), mount, pose)


def test_projection_of_known_points() -> None:
    points = np.array([[1.0, 0, 0], [1.0, 0.5, 0], [2.0, 0, -0.5], [-1.0, 0, 0]])
    pixels, in_front = project(points, camera(), camera().pose)
    np.testing.assert_allclose(pixels[:3], [[100, 50], [50, 50], [100, 75]])
    assert in_front.tolist() == [True, True, True, False]
    assert np.isnan(pixels[3]).all()


def test_a_moving_camera_needs_the_joints() -> None:
    with pytest.raises(ValueError, match="needs the joint positions"):
        camera_pose(SO101, camera("gripper_link"), None)
    with pytest.raises(ValueError, match="base_link or gripper_link"):
        camera_pose(SO101, camera("elbow"), JOINTS)


def test_depth_points_project_back_to_their_cells() -> None:
    depth = np.random.default_rng(0).uniform(0.3, 2.0, (5, 10)).astype(np.float32)
    points = points_of_depth(depth, camera())
    pixels, in_front = project(points, camera(), np.eye(4))
    assert in_front.all()
    np.testing.assert_allclose(pixels.reshape(5, 10, 2)[2, 3], [70, 50], atol=1e-4)
    np.testing.assert_allclose(points[:, 2], depth.ravel())


def test_the_path_is_drawn_where_it_projects_and_the_past_is_faded() -> None:
    pixels = np.stack([np.linspace(20, 180, 17), np.full(17, 50.0)], axis=1)
    black = np.zeros((100, 200, 3), np.uint8)
    picture = overlay(black, (ImagePath(pixels, np.zeros(17)),), now_row=8.0, scale=1)
    line = picture[50].astype(int)
    assert line[30].sum() > 100 and np.ptp(line[30]) < 10, "past: faded, without colour"
    assert line[110].max() > 200 and np.ptp(line[110]) > 100, "future: full colour"
    assert picture[:35].sum() == 0 and picture[65:].sum() == 0
    assert black.sum() == 0, "the camera's image is left as it is"


def test_rows_behind_the_camera_or_far_outside_leave_a_gap() -> None:
    pixels = np.array([[20.0, 50], [60, 50], [np.nan, np.nan], [140, 50], [1e9, 50], [180, 50]])
    picture = overlay(np.zeros((100, 200, 3), np.uint8), (ImagePath(pixels, np.zeros(6)),), now_row=0.0, scale=1)
    assert picture[50, 40].any()
    assert not picture[50, 75:125].any()
    assert not picture[50, 150:170].any()


def test_only_updated_cells_are_outlined() -> None:
    updated = np.zeros((5, 5), bool)
    updated[1, 3] = True
    picture = overlay(np.zeros((100, 200, 3), np.uint8), (), 0.0, updated, scale=1)
    rows, columns = np.nonzero(picture.any(axis=2))
    assert 20 <= rows.min() < rows.max() < 40
    assert 120 <= columns.min() < columns.max() < 160
    assert not picture[26:34, 126:154].any(), "an outline, not a patch"


def test_an_open_gripper_draws_larger_dots() -> None:
    pixels = np.full((7, 2), 50.0)

    def area(openness: float) -> int:
        path = ImagePath(pixels, np.full(7, openness))
        return int(overlay(np.zeros((100, 100, 3), np.uint8), (path,), 0.0, scale=1).any(axis=2).sum())

    assert area(1.0) > 2 * area(0.0)


def test_horizon_colours_differ_from_end_to_end() -> None:
    colours = np.array([ramp(f) for f in np.linspace(0, 1, 11)])
    assert ramp(-1) == ramp(0) and ramp(2) == ramp(1)
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 20


def test_legend_stays_within_narrow_pictures() -> None:
    legend = Legend("pick up the very small red cube " * 5, "TRACKING", 0.1, None, 1.0)
    for shape in ((60, 80), (240, 320), (480, 640)):
        picture = overlay(np.full((*shape, 3), 90, np.uint8), (), 0.0, None, legend, scale=1)
        assert picture.shape == (*shape, 3)
        assert (picture[: shape[0] - 44] == 90).all()


def test_film_picture_is_made_of_what_there_is() -> None:
    empty = montage(None, None, None, None, Caption())
    assert empty.shape == canvas_shape()
    assert empty.shape[0] % 2 == 0 and empty.shape[1] % 2 == 0, "yuv420p needs even sides"
    red = np.full((240, 320, 3), (200, 0, 0), np.uint8)
    green = np.full((480, 640, 3), (0, 200, 0), np.uint8)
    blue = np.full((70, 70, 3), (0, 0, 200), np.uint8)
    film = montage(
        red, green, blue, red, Caption(task="t" * 300, episode=1, outcome="success", successes=1, finished=1)
    )
    assert tuple(film[280, 320]) == (0, 200, 0)
    assert tuple(film[160, 800]) == (200, 0, 0) and tuple(film[400, 800]) == (200, 0, 0)
    assert tuple(film[160, 1120]) == (0, 0, 200)


def test_a_picture_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        overlay(np.zeros((10, 10), np.uint8), (), 0.0)


def test_cameras_of_a_real_cell_are_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "cameras.yaml"
    entry = (
        "{width: 640, height: 480, k: [600, 0, 320, 0, 600, 240, 0, 0, 1], mount: base_link, xyz: [0.6, 0, 0.4], %s}"
    )
    file.write_text("front: " + entry % "wxyz: [0, 1, 0, 0]")
    front = load_calibrations(file)["front"]
    assert (front.width, front.height, front.mount) == (640, 480, "base_link")
    pixels, _ = project(np.array([[0.7, 0.0, 0.0]]), front, camera_pose(SO101, front, None))
    np.testing.assert_allclose(pixels, [[320 + 600 * 0.1 / 0.4, 240]])
    file.write_text("front: " + entry % "rpy: [0, 0, 0]")
    with pytest.raises(ValueError, match=r"camera 'front' needs .*wxyz"):
        load_calibrations(file)
