"""What is drawn beside the path is right by the simulator: shapes of the arm, fitted depth, spread, limits, notices."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact2_ros.benchmarking.views import truth
from molmoact2_ros.benchmarking.views.report import BEGIN, page, placed
from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.rendering.body import Body
from molmoact2_ros.rendering.depth_fit import (
    FURTHEST_M,
    GRID,
    Known,
    arm_depth,
    camera_depth,
    fit_depth,
    table_depth,
)
from molmoact2_ros.rendering.forecast import CHUNKS, Executed, Forecast, Forecasts, tube
from molmoact2_ros.rendering.notices import captioned, legend, notice
from molmoact2_ros.rendering.projection import (
    MOST_POINTS,
    TipPath,
    camera_pose,
    camera_rays,
    points_of_depth,
    refined_depth,
)
from molmoact2_ros.rendering.touching import touched_joints, touched_sides, who_drives
from molmoact2_ros.simulation.cells import make_cell

ROBOTS = ("so101", "franka", "yam")


# -- against the simulator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROBOTS)
def test_the_path_is_drawn_where_the_gripper_is_rendered(name: str) -> None:
    errors = truth.path_errors(name, episodes=1)
    assert {error.camera for error in errors} == set(embodiment(name).camera_names)
    assert all(error.rows >= 4 and error.worst_px < 3.0 for error in errors), errors


@pytest.mark.parametrize("name", ROBOTS)
def test_links_are_as_far_from_the_camera_as_they_are_rendered_and_relative_depth_becomes_metres(name: str) -> None:
    """Depth as the released decoder gives it: larger is nearer, 0 to 1 in each image, without a unit."""
    cell = make_cell(name, seed=5)
    try:
        robot, camera = cell.robot, cell.cameras[0]
        calibration, body = camera_calibration(name, camera), Body(robot)
        for number in range(2):
            rendered = truth._scene(cell, number)
            joints = cell.joints()[0]
            pose = camera_pose(robot, calibration, joints)
            arm = arm_depth(body, joints, calibration, pose)
            seen = np.isfinite(arm.depth)
            assert seen.sum() > 60
            assert np.median(np.abs(arm.depth - camera_depth(rendered).depth)[seen]) < 0.01

            table = table_depth(0.0, robot.workspaces, arm, calibration, pose)
            relative = truth._relative(rendered)
            fit = fit_depth(relative, (arm, table), inverse=True)
            miss = np.abs(fit.metres(relative) - truth._like(rendered, relative))
            assert np.nanmedian(miss) < 0.02, fit.words
            assert fit.error_m < 0.03 and fit.agreeing > 0.6
            assert "arm" in fit.words and "table" in fit.words and " cm" in fit.words
    finally:
        cell.close()


# -- the fit --------------------------------------------------------------------------------------------------------


def plane(least: float = 0.5, most: float = 1.5) -> np.ndarray:
    return np.linspace(least, most, GRID[0])[:, None] * np.ones(GRID)


def test_a_fit_bears_with_a_third_of_what_it_knows_being_wrong() -> None:
    depth = plane()
    picture = (0.8 / depth - 0.3).astype(np.float32)
    wrong = depth.copy()
    wrong[:, : GRID[1] // 3] *= 1.4
    fit = fit_depth(picture, (Known("table", wrong),), inverse=True)
    np.testing.assert_allclose(fit.metres(picture), depth, rtol=0.03)
    assert 0.55 < fit.agreeing < 0.8, "those that do not agree are counted"


def test_distances_are_fitted_as_well_as_their_inverse_and_what_is_far_beyond_has_none() -> None:
    depth = plane()
    picture = (3.0 * depth + 7.0).astype(np.float32)
    fit = fit_depth(picture, (Known("depth camera", depth),), inverse=False)
    np.testing.assert_allclose(fit.metres(picture), depth, atol=1e-3)
    assert fit.error_m < 1e-3
    far = fit.metres(np.array([[3.0 * 2.0 * FURTHEST_M + 7.0]], np.float32))
    assert np.isnan(far).all()


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ((), "too little in view is known"),
        ((Known("arm", np.full(GRID, np.nan)),), "too little in view is known .* arm 0"),
        ((Known("arm", np.where(plane() < 0.52, plane(), np.nan)),), "almost the same depth"),
        ((Known("arm", plane()[::-1]),), "the other way round"),
        ((Known("arm", np.random.default_rng(0).uniform(0.3, 3.0, GRID)),), "does not go together|other way round"),
    ],
)
def test_what_cannot_be_fitted_says_why(known: tuple[Known, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit_depth((1.0 / plane()).astype(np.float32), known, inverse=True)


def test_holes_of_a_depth_camera_are_unknown() -> None:
    image = plane().astype(np.float32)
    image[10:20] = 0.0
    image[30:40] = np.nan
    assert np.isfinite(camera_depth(image).depth).sum() == (GRID[0] - 20) * GRID[1]


# -- clouds ---------------------------------------------------------------------------------------------------------


def test_points_are_as_dense_as_they_are_large_and_edges_stay_sharp() -> None:
    calibration = camera_calibration("so101", "front")
    coarse = np.full((10, 10), 0.6, np.float32)
    coarse[:, 5:] = 1.2
    fine = refined_depth(coarse, calibration, 0.005)
    points = points_of_depth(fine, calibration).reshape(*fine.shape, 3)
    assert np.linalg.norm(points[0, 0] - points[0, 1]) < 0.006
    assert set(np.unique(fine)) == {np.float32(0.6), np.float32(1.2)}, "nothing hangs between near and far"
    assert refined_depth(coarse, calibration, 1e-6).size <= MOST_POINTS
    assert refined_depth(coarse, calibration, 10.0) is coarse


# -- chunks ---------------------------------------------------------------------------------------------------------


def chunk(stamp_s: float, offset: float = 0.0, rows: int = 30) -> Forecast:
    """A tip that moves along x at 0.3 m/s by the clock, `offset` m beside the line."""
    times = np.arange(1, rows + 1) / 30.0
    poses = np.tile(np.eye(4), (rows, 1, 1))
    poses[:, 0, 3] = 0.3 * (stamp_s + times)
    poses[:, 1, 3] = offset
    return Forecast(round(stamp_s * 1e9), times, (TipPath(poses, np.ones(rows)),), 0.1)


def test_chunks_that_agree_have_no_spread_and_others_as_much_as_they_differ() -> None:
    chunks = Forecasts()
    assert chunks.spread() is None
    chunks.add(chunk(10.0))
    assert np.isnan(chunks.spread()).all(), "one alone says nothing of how sure it is"
    chunks.add(chunk(10.2))
    spread = chunks.spread()
    assert spread is not None and spread.shape == (1, 30)
    np.testing.assert_allclose(spread[0, :24], 0.0, atol=1e-9)
    assert np.isnan(spread[0, 24:]).all(), "where the earlier one has ended, the newest is alone"
    chunks.add(chunk(10.4, offset=0.03))
    spread = chunks.spread()
    assert spread is not None
    np.testing.assert_allclose(spread[0, :17], 0.03 * np.sqrt(2) / 3, atol=1e-9)


def test_earlier_chunks_fade_and_leave_when_their_horizon_is_over() -> None:
    chunks = Forecasts()
    for i in range(CHUNKS + 3):
        chunks.add(chunk(10.0 + 0.1 * i))
    now_ns = round((10.0 + 0.1 * (CHUNKS + 2)) * 1e9)
    earlier = chunks.earlier(now_ns)
    fresh = [freshness for freshness, _ in earlier]
    assert fresh == sorted(fresh) and fresh[0] > 0.0 and fresh[-1] < 1.0 and len(fresh) == CHUNKS - 1
    for _, (points,) in earlier:
        assert points[0, 0] >= 0.3 * now_ns * 1e-9 - 1e-6, "what lies behind is not shown"
    assert chunks.earlier(now_ns + 2_000_000_000) == []
    chunks.add(chunk(1.0))
    assert chunks.newest is not None and chunks.newest.stamp_ns == 10**9 and chunks.earlier(10**9) == []


def test_the_way_that_the_tips_have_come_is_as_long_as_said() -> None:
    way = Executed()
    assert way.ways() == ()
    for i in range(1000):
        if way.due(i * 10_000_000):
            way.add(i * 10_000_000, np.array([[0.001 * i, 0.0, 0.0], [0.0, 0.001 * i, 0.0]]))
    left, right = way.ways()
    assert 70 < len(left) <= 91, "thinned, and three seconds long"
    assert left[-1, 0] - left[0, 0] == pytest.approx(0.3, abs=0.005)
    np.testing.assert_allclose(right[:, 1], left[:, 0])


def test_a_tube_is_around_its_path() -> None:
    points = np.stack([np.linspace(0, 0.3, 10), np.zeros(10), np.linspace(0, 0.2, 10)], axis=1)
    radii = np.linspace(0.01, 0.02, 10)
    triangles = tube(points, radii)
    assert triangles.shape == (9 * 8 * 2, 3, 3)
    away = np.linalg.norm(triangles.reshape(-1, 1, 3) - points, axis=2).min(axis=1)
    assert away.min() > 0.009 and away.max() < 0.021
    radii[4:6] = np.nan
    assert len(tube(points, radii)) == 6 * 8 * 2, "a gap where the spread is not known"
    assert len(tube(points[:1], radii[:1])) == 0
    assert np.isfinite(tube(np.zeros((5, 3)), np.full(5, 0.01))).all(), "a tip that stands still"


# -- limits, who drives, words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROBOTS)
def test_limits_that_are_touched_are_named_where_they_are(name: str) -> None:
    robot = embodiment(name)
    assert touched_joints(robot, robot.rest_position) == []
    joints = robot.rest_position.copy()
    joints[1] = robot.limits.lower[1]
    (limit,) = touched_joints(robot, joints)
    assert limit.words == f"{robot.joint_names[1]} at its lower limit"
    chain, indices = robot.chains[0]
    np.testing.assert_allclose(limit.place, chain.frames(joints[list(indices)])[1, :3, 3])
    for arm in range(len(robot.arms)):
        assert touched_sides(robot, robot.rest_position, robot.workspaces, arm) == []


def test_a_tip_at_the_floor_of_its_workspace_is_told() -> None:
    robot = embodiment("so101")
    chain, indices = robot.chains[0]
    tip = chain.tip(robot.rest_position[list(indices)])[:3, 3]
    box = type(robot.workspaces[0])(np.array([-1.0, -1.0, tip[2] - 0.005]), np.array([1.0, 1.0, 1.0]))
    (side,) = touched_sides(robot, robot.rest_position, (box,), 0)
    assert side.words == "tip at the workspace's floor"
    np.testing.assert_allclose(side.place, tip)


def test_who_drives_is_said_by_the_executor_or_by_its_state() -> None:
    assert who_drives("TRACKING", {}) == "policy"
    assert who_drives("HOLDING", {}) == who_drives("FAULT", {}) == "nobody"
    assert who_drives("TRACKING", {"drives": "teleop"}) == "teleop"
    assert who_drives("", {}) == ""


def test_words_fit_into_their_pictures() -> None:
    long = "no depth decoder in /a/very/long/path " * 12
    picture = notice("No depth", long)
    assert picture.shape == (480, 640, 3)
    assert (picture[:, 620:] == picture[0, 0]).all(), "no word is cut at the right"
    grey = np.full((240, 320, 3), 90, np.uint8)
    assert (captioned(grey, "fitted to arm: median error 1.2 cm " * 4)[:120] == 90).all()
    assert (grey == 90).all(), "the picture that is given stays"
    assert (legend()[:, -10:] == legend()[0, -1]).all()


def test_rays_go_through_the_middles_of_their_cells() -> None:
    calibration = camera_calibration("franka", "exterior")
    rays = camera_rays(calibration, 2, 2)
    assert rays.shape == (2, 2, 3)
    np.testing.assert_allclose(rays[..., 2], 1.0)
    np.testing.assert_allclose(rays[0, 0, :2], -rays[1, 1, :2], atol=1e-9)


def test_the_bench_replaces_its_own_part_of_the_page_and_no_other() -> None:
    errors = [truth.PathError("so101", "front", 30, 0.1, 0.3)]
    fitted = {"so101": [truth.DepthError("arm", 6, 1.0, 0.9, 1.1)]}
    first = placed("# Views\n\nFrom elsewhere.\n", page(errors, [], None, fitted, []))
    again = placed(first + "\nAlso from elsewhere.\n", page(errors, errors, None, fitted, []))
    assert again.count(BEGIN) == 1 and "| so101 | front | 30 | 0.10 | 0.30 | 0.10 | 0.30 |" in again
    assert "\nFrom elsewhere." in again and "Also from elsewhere." in again
