"""The simulated SO-101 cell: it stands where hardware would, and success is a matter of physics."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.cameras.frame_link import FrameReader, FrameWriter
from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.simulation.cell import So101Cell
from molmoact2_ros.simulation.expert import expert_chunk, grip_point, joints_for
from molmoact2_ros.simulation.runner import CellRunner
from molmoact2_ros.simulation.scene import CellRandomisation
from molmoact2_ros.simulation.so101_scene import TICK


@pytest.fixture(scope="module")
def cell():
    cell = So101Cell(seed=7)
    yield cell
    cell.close()


def play_expert(cell: So101Cell, seconds: float, delay_rows: int = 4) -> None:
    """Drive the cell as the executor would: chunks by time, late, at 30 Hz."""
    chunk, age = None, 0
    for tick in range(round(seconds * 30)):
        if tick % 6 == 0:
            chunk, age = expert_chunk(cell.joints()[0], cell.object_pose()[0]), delay_rows
        cell.command(chunk[min(age, 29)])
        age += 1
        cell.advance(1 / 30)
        if cell.episode.success:
            return


@pytest.mark.parametrize("episode", range(6))
def test_the_expert_picks_the_cube_and_physics_says_so(cell: So101Cell, episode: int) -> None:
    cell.reset(episode)
    play_expert(cell, 12.0)
    assert cell.episode.success
    assert cell.episode.reached
    assert cell.grasped()
    assert cell.cube_height() > 0.05


def test_a_cube_put_in_the_air_is_no_success(cell: So101Cell) -> None:
    cell.reset(0)
    for _ in range(20):
        place = cell.object_pose()[0]
        cell.place("red", place[0], place[1], 0.0, z=0.08)
        cell.advance(0.05)
    cell.advance(1.0)
    assert not cell.episode.success


def test_lifting_for_less_than_a_second_is_no_success(cell: So101Cell) -> None:
    cell.reset(1)
    while cell.episode.held_s < 0.5:
        play_expert(cell, 0.2)
        assert cell.episode.elapsed_s < 15.0
    cell.command(np.array([*cell.joints()[0][:5], 1.0]))
    cell.advance(2.0)
    assert cell.episode.held_s == 0.0
    assert not cell.episode.success


def test_a_jaw_that_closed_on_nothing_opens_again_and_the_cube_is_still_picked(cell: So101Cell) -> None:
    cell.reset(2)
    cell.command(np.array([*cell.joints()[0][:5], -0.12]))
    cell.advance(0.6)
    assert cell.joints()[0][5] < 0.05
    play_expert(cell, 12.0)
    assert cell.episode.success


def test_the_same_seed_and_episode_give_the_same_scene_and_another_seed_another(cell: So101Cell) -> None:
    cell.reset(3)
    first, picture = cell.object_pose()[0], cell.render("front")
    cell.reset(4)
    assert np.linalg.norm(cell.object_pose()[0] - first) > 1e-3
    cell.reset(3)
    np.testing.assert_array_equal(cell.object_pose()[0], first)
    np.testing.assert_array_equal(cell.render("front"), picture)
    other = So101Cell(seed=8, render=False)
    other.reset(3)
    assert np.linalg.norm(other.object_pose()[0] - first) > 1e-3


def test_placements_are_within_reach_and_the_cube_is_seen_by_the_front_camera(cell: So101Cell) -> None:
    calibration = camera_calibration("so101", "front")
    for episode in range(20):
        cell.reset(episode)
        place = cell.object_pose()[0]
        above = np.array([*place[:2], 0.075])
        joints = np.append(joints_for(above), 0.5)
        assert np.all(joints >= SO101.limits.lower)
        assert np.all(joints <= SO101.limits.upper)
        np.testing.assert_allclose(grip_point(joints), above, atol=2e-3)
        seen = np.linalg.inv(calibration.pose) @ np.append(place, 1.0)
        pixel = calibration.k @ seen[:3] / seen[2]
        assert 8 < pixel[0] < calibration.width - 8
        assert 8 < pixel[1] < calibration.height - 8


def test_the_picture_shows_the_cube_where_the_calibration_says() -> None:
    still = So101Cell(seed=5, randomisation=CellRandomisation(light=0, colour=0, camera_m=0, camera_rad=0))
    still.place("red", 0.20, 0.12, 0.3)
    still.advance(0.1)
    red = still.render("front").astype(int)
    mask = (red[..., 0] > 90) & (red[..., 1] < 60) & (red[..., 2] < 60)
    rows, columns = np.nonzero(mask)
    calibration = camera_calibration("so101", "front")
    seen = np.linalg.inv(calibration.pose) @ np.append(still.object_pose()[0], 1.0)
    expected = (calibration.k @ seen[:3] / seen[2])[:2]
    np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=3.0)
    still.close()


def test_the_scene_has_the_published_kinematics(cell: So101Cell) -> None:
    import mujoco

    rng = np.random.default_rng(0)
    for _ in range(50):
        cell.data.qpos[:6] = rng.uniform(SO101.limits.lower, SO101.limits.upper)
        mujoco.mj_kinematics(cell.model, cell.data)
        frames = SO101.chains[0][0].frames(cell.data.qpos[:5])
        np.testing.assert_allclose(cell.data.body("gripper_link").xpos, frames[4, :3, 3], atol=1e-5)
    cell.reset(0)


def test_readings_come_in_encoder_ticks_and_a_bad_command_is_refused(cell: So101Cell) -> None:
    cell.reset(0)
    ticks = cell.joints()[0] / TICK
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-6)
    before = cell.data.ctrl.copy()
    with pytest.raises(ValueError, match="NaN"):
        cell.command(np.full(6, np.nan))
    with pytest.raises(ValueError, match="6 values"):
        cell.command(np.zeros(5))
    np.testing.assert_array_equal(cell.data.ctrl, before)
    cell.command(np.full(6, 1e6))
    np.testing.assert_array_equal(cell.data.ctrl, SO101.limits.upper)


def test_expert_chunks_start_at_the_arm_and_keep_to_the_limits() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        point = np.array([rng.uniform(0.17, 0.26), rng.uniform(-0.15, 0.15), rng.uniform(0.05, 0.12)])
        joints = np.append(joints_for(point), rng.uniform(-0.1, 1.2))
        cube = np.array([rng.uniform(0.19, 0.25), rng.uniform(-0.12, 0.12), 0.014])
        chunk = expert_chunk(joints, cube)
        assert chunk.shape == (30, 6)
        assert np.all(np.abs(chunk[0, :5] - joints[:5]) < 0.12)
        assert np.all(np.abs(np.diff(chunk[:, :5], axis=0)) < SO101.max_step[:5])
        assert np.all(chunk >= SO101.limits.lower)
        assert np.all(chunk <= SO101.limits.upper)


def test_a_frame_link_hands_over_the_newest_whole_frame_once() -> None:
    name = f"test_link_{time.time_ns()}"
    with pytest.raises(FileNotFoundError):
        FrameReader(name)
    writer = FrameWriter(name, 24, 32)
    try:
        reader = FrameReader(name)
        assert reader.wait(0.0) is None
        for value in range(7):
            writer.write(np.full((24, 32, 3), value, np.uint8), 1000 + value)
        rgb, stamp = reader.wait(0.0)
        assert stamp == 1006
        assert np.all(rgb == 6)
        assert reader.wait(0.0) is None
        with pytest.raises(ValueError, match="shape"):
            writer.write(np.zeros((24, 31, 3), np.uint8), 0)
        # A link that a killed run left behind is taken over.
        again = FrameWriter(name, 24, 32)
        again.write(np.full((24, 32, 3), 9, np.uint8), 5)
        fresh = FrameReader(name)
        assert fresh.wait(0.0)[1] == 5
        fresh.close()
        again.close()
        reader.close()
    finally:
        writer.forget()


def test_a_running_cell_reads_at_its_rate_resets_and_holds_when_commands_cease() -> None:
    readings = []
    got = threading.Event()

    def on_reading(snapshot) -> None:
        readings.append(snapshot)
        got.set()

    prefix = f"test_{time.time_ns()}"
    runner = CellRunner(
        make_cell=lambda: So101Cell(seed=3),
        links={"front": f"{prefix}_front"},
        on_reading=on_reading,
        clock=time.time_ns,
        command_timeout_s=0.2,
    )
    try:
        runner.start()
        reader = FrameReader(f"{prefix}_front")
        assert reader.wait(5.0) is not None
        reader.close()
        runner.reset(4)
        assert readings[-1].episode.number == 4 or wait_for(lambda: readings[-1].episode.number == 4)
        runner.command(readings[-1].positions + np.array([0.5, 0, 0, 0, 0, 0]))
        assert wait_for(lambda: runner.timeout_holds == 1)
        assert wait_for(lambda: abs(readings[-1].velocities[0]) < 0.01)
        held = readings[-1].positions[0]
        assert wait_for(lambda: len(readings) > 0 and readings[-1].stamp_ns > time.time_ns() - 50_000_000)
        assert abs(readings[-1].positions[0] - held) < 0.02
        stamps = [r.stamp_ns for r in readings]
        assert all(later > earlier for earlier, later in pairwise(stamps))
    finally:
        runner.close()
    with pytest.raises(FileNotFoundError):
        FrameReader(f"{prefix}_front")


def wait_for(condition, timeout_s: float = 10.0) -> bool:
    """Whether `condition` came true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False
