"""The cells of Franka and YAM: the published kinematics, a cube that only physics can count as picked, cameras where
the calibration says. (`test_simulation.py` has what all cells share, on the SO-101.)"""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.rendering.projection import camera_pose, project
from molmoact2_ros.simulation.cell import Cell
from molmoact2_ros.simulation.cells import WITH_CELL, make_cell, scene_of
from molmoact2_ros.simulation.experts import Expert, expert_of
from molmoact2_ros.simulation.scene import CellRandomisation

ROBOTS = ("franka", "yam")
STILL = CellRandomisation(radius=(0.47, 0.55), bearing=0.3, start=0.0, light=0, colour=0, camera_m=0, camera_rad=0)


@pytest.fixture(scope="module", params=ROBOTS)
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    cell = make_cell(request.param, seed=5, render=False)
    yield cell
    cell.close()


@pytest.fixture(scope="module")
def expert(cell: Cell) -> Expert:
    return expert_of(cell.robot.name)


def yaw_of(wxyz: np.ndarray) -> float:
    w, x, y, z = wxyz
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def play(cell: Cell, expert: Expert, seconds: float, late_s: float = 0.1) -> None:
    """Drive the cell as the executor would: chunks by time, late, at the robot's rate."""
    rate = cell.robot.rate_hz
    chunk, age = np.empty((0,)), 0
    for tick in range(round(seconds * rate)):
        if tick % max(1, round(rate / 5)) == 0:
            place, turn = cell.object_pose()
            chunk, age = expert(cell.joints()[0], place, yaw_of(turn)), round(late_s * rate)
        cell.command(chunk[min(age, len(chunk) - 1)])
        age += 1
        cell.advance(1 / rate)
        if cell.episode.success:
            return


@pytest.mark.parametrize("episode", range(3))
def test_the_expert_picks_the_cube_and_physics_says_so(cell: Cell, expert: Expert, episode: int) -> None:
    cell.reset(episode)
    play(cell, expert, 8.0)
    assert cell.episode.success
    assert cell.episode.reached
    assert cell.grasped()
    assert cell.cube_height() > 0.05


def test_either_yam_arm_picks_what_lies_nearer_to_it() -> None:
    cell, expert = make_cell("yam", seed=5, render=False), expert_of("yam")
    for side, y in ((0, -0.16), (1, -0.45)):
        cell.reset(0)
        cell.place("red", 0.37, y, 0.4)
        for name in ("green", "blue", "yellow"):
            cell.place(name, 0.1, -0.305 + 0.1 * len(name), 0.0)
        cell.advance(0.1)
        play(cell, expert, 8.0)
        assert cell.episode.success
        moved = np.abs(cell.joints()[0] - cell.scene.start)
        arms = [float(moved[arm].max()) for arm in cell.robot.arms]
        assert arms[side] > 0.3
        assert arms[1 - side] < 0.05, "the other arm waits at its start pose"


def test_a_cube_put_in_the_air_is_no_success(cell: Cell) -> None:
    cell.reset(0)
    for _ in range(20):
        place = cell.object_pose()[0]
        cell.place("red", place[0], place[1], 0.0, z=0.12)
        cell.advance(0.05)
    cell.advance(1.0)
    assert not cell.episode.success


def test_letting_go_ends_the_holding_and_the_deadman_does_not(cell: Cell, expert: Expert) -> None:
    cell.reset(1)
    while cell.episode.held_s < 0.3:
        play(cell, expert, 0.2)
        assert cell.episode.elapsed_s < 10.0
    cell.hold()
    cell.advance(0.4)
    assert cell.grasped()
    assert cell.episode.held_s > 0.6
    open_all = cell.joints()[0]
    for g in cell.robot.gripper_indices:
        open_all[g] = cell.robot.limits.upper[g]
    cell.command(open_all)
    cell.advance(1.0)
    assert cell.episode.held_s == 0.0
    assert not cell.episode.success


def test_the_scene_has_the_kinematics_of_the_embodiment(cell: Cell) -> None:
    random = np.random.default_rng(0)
    robot = cell.robot
    for _ in range(50):
        joints = random.uniform(robot.limits.lower, robot.limits.upper)
        cell.place_arm(joints)
        mujoco.mj_kinematics(cell.model, cell.data)
        for (chain, indices), wrist in zip(robot.chains, robot.wrist_links, strict=True):
            expected = chain.frames(joints[list(indices)])[-2]
            np.testing.assert_allclose(cell.data.body(wrist).xpos, expected[:3, 3], atol=1e-5)
    cell.reset(0)


def test_the_arm_stands_where_it_is_put_and_follows_its_targets(cell: Cell) -> None:
    cell.reset(0)
    start = cell.joints()[0]
    cell.advance(1.0)
    assert np.abs(cell.joints()[0] - start).max() < 0.01, "gravity is compensated, as the drivers do"
    target = start.copy()
    target[0] += 0.2
    cell.command(target)
    cell.advance(2.0)
    assert np.abs(cell.joints()[0] - target).max() < 0.01


def test_bad_commands_are_refused_and_far_ones_clamped(cell: Cell) -> None:
    cell.reset(0)
    before = cell.data.ctrl.copy()
    with pytest.raises(ValueError, match="NaN"):
        cell.command(np.full(cell.robot.dof, np.nan))
    with pytest.raises(ValueError, match=f"{cell.robot.dof} values"):
        cell.command(np.zeros(6))
    np.testing.assert_array_equal(cell.data.ctrl, before)
    cell.command(np.full(cell.robot.dof, 1e6))
    np.testing.assert_array_equal(cell.data.ctrl, cell.robot.limits.upper)


def test_expert_chunks_begin_at_the_arm_and_keep_to_the_limits(cell: Cell, expert: Expert) -> None:
    robot = cell.robot
    arm = np.array([i for i in range(robot.dof) if i not in robot.gripper_indices])
    for episode in range(10):
        cell.reset(100 + episode)
        joints = cell.joints()[0]
        place, turn = cell.object_pose()
        chunk = expert(joints, place, yaw_of(turn))
        assert chunk.shape == (robot.horizon, robot.dof)
        assert np.all(np.abs(chunk[0] - joints)[arm] < robot.max_first_step[arm])
        assert np.all(np.abs(np.diff(chunk, axis=0))[:, arm] < robot.max_step[arm])
        assert np.all(chunk >= robot.limits.lower)
        assert np.all(chunk <= robot.limits.upper)


def test_the_cube_lies_in_the_view_of_the_first_camera(cell: Cell) -> None:
    name = cell.cameras[0]
    calibration = camera_calibration(cell.robot.name, name)
    pose = camera_pose(cell.robot, calibration, None)
    for episode in range(20):
        cell.reset(episode)
        pixels, seen = project(cell.object_pose()[0][None], calibration, pose)
        assert seen.all()
        assert 8 < pixels[0, 0] < calibration.width - 8
        assert 8 < pixels[0, 1] < calibration.height - 8


@pytest.mark.parametrize(("robot", "camera"), [(robot, camera) for robot in ROBOTS for camera in camera_names(robot)])
def test_every_camera_shows_the_cube_where_its_calibration_says(robot: str, camera: str) -> None:
    """Wrist cameras move with their arm: the image, the kinematics and the calibration must agree."""
    still = make_cell(robot, seed=5, randomisation=STILL)
    try:
        body = embodiment(robot)
        calibration = camera_calibration(robot, camera)
        joints = still.joints()[0]
        pose = camera_pose(body, calibration, joints)
        # On the table, on the ray through a point of the image where no finger is.
        ray = pose[:3, :3] @ np.linalg.inv(calibration.k) @ [0.5 * calibration.width, 0.45 * calibration.height, 1.0]
        place = pose[:3, 3] + ray * (still.scene.cube_half - pose[2, 3]) / ray[2]
        for name in ("green", "blue", "yellow"):
            still.place(name, -0.2, 0.3 + 0.1 * len(name), 0.0)
        still.place("red", float(place[0]), float(place[1]), 0.2)
        still.advance(0.05)
        picture = still.render(camera).astype(int)
        assert picture.shape == (calibration.height, calibration.width, 3)
        rows, columns = np.nonzero((picture[..., 0] > 80) & (picture[..., 1] < 60) & (picture[..., 2] < 60))
        assert len(rows) > 20
        pose = camera_pose(body, calibration, still.joints()[0])
        expected, _ = project(still.object_pose()[0][None], calibration, pose)
        size = np.ptp(columns)
        np.testing.assert_allclose([columns.mean(), rows.mean()], expected[0], atol=max(3.0, 0.2 * size))
    finally:
        still.close()


@pytest.mark.parametrize("robot", WITH_CELL)
def test_every_robot_with_a_cell_has_one(robot: str) -> None:
    scene = scene_of(robot)
    assert scene.robot is embodiment(robot)
    assert len(scene.grips) == len(scene.robot.arms)


def test_a_robot_without_a_cell_is_named_with_those_that_have_one() -> None:
    with pytest.raises(ValueError, match="no simulated cell for robot 'franka_robotiq'; there are cells for franka"):
        scene_of("franka_robotiq")
    with pytest.raises(ValueError, match="no camera 'front'; it has exterior, wrist"):
        camera_calibration("panda", "front")
