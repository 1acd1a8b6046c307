"""The limits of every robot, typed once more from the published pages; jumps, bases, variants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_ros.embodiments import EMBODIMENTS, ModelFrame, embodiment
from molmoact2_ros.embodiments.so101 import TRAVEL
from molmoact2_ros.execution.chunk import Chunk, ChunkMessage, chunk_from_message


def test_variants_differ_from_their_family_in_what_they_should_only() -> None:
    for robot in EMBODIMENTS.values():
        plain = embodiment(robot.family)
        assert robot.norm_tag == plain.norm_tag
        assert robot.camera_names == plain.camera_names
        assert (robot.rate_hz, robot.horizon) == (plain.rate_hz, plain.horizon)
    fr3, fer = embodiment("franka"), embodiment("panda")
    assert np.any(fr3.limits.upper != fer.limits.upper)
    np.testing.assert_array_equal(fer.velocity_bounds(fer.rest_position)[1], fer.limits.velocity)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_fr3_is_slower_near_its_ends_and_may_always_leave_them(data: Any) -> None:
    body = embodiment("franka")
    share = np.array(data.draw(st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8)))
    q = body.limits.lower + share * (body.limits.upper - body.limits.lower)
    low, high = body.velocity_bounds(q)
    assert np.all(low <= 0.0)
    assert np.all(high >= 0.0)
    assert np.all(high <= body.limits.velocity)
    assert np.all(low >= -body.limits.velocity)
    at_top = body.velocity_bounds(body.limits.upper)
    np.testing.assert_array_equal(at_top[1][:7], np.zeros(7))
    assert np.all(at_top[0][:7] < -1.0)
    # Published: joint 1 at 0 rad may go at its full speed; 0.1 rad before its end at sqrt(2 * 6 * 0.1) - 0.6599.
    near = np.append(body.limits.upper[:7] - 0.1, 0.0)
    assert body.velocity_bounds(near)[1][0] == pytest.approx(np.sqrt(1.2) - 0.6599)
    assert body.velocity_bounds(body.rest_position)[1][0] == pytest.approx(2.62)


PUBLISHED = {
    "franka": {
        "lower": [-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508, 0.0],
        "upper": [2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508, 0.04],
        "velocity": [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26],
        "acceleration": [10.0] * 7,
        "jerk": [5000.0] * 7,
    },
    "panda": {
        "lower": [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973, 0.0],
        "upper": [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973, 0.04],
        "velocity": [2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61],
        "acceleration": [15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0],
        "jerk": [7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0],
    },
    "yam": {
        "lower": [-2.618, 0.0, 0.0, -1.693, -1.5708, -2.0944, 0.0] * 2,
        "upper": [3.1416, 3.6652, 3.1416, 1.5708, 1.5708, 2.0944, 0.0475] * 2,
    },
    # In degrees pan 122, lift 108, wrist_flex 111: wider than by design, see the test of arms as they are built.
    "so101": {
        "lower": [-2.1293, -1.8850, -1.69, -1.9373, -2.744, -0.1745],
        "upper": [2.1293, 1.8850, 1.69, 1.9373, 2.841, 1.7453],
    },
}


@pytest.mark.parametrize("robot", sorted(PUBLISHED))
def test_limits_are_the_published_ones(robot: str) -> None:
    limits = embodiment(robot).limits
    for key, values in PUBLISHED[robot].items():
        np.testing.assert_allclose(getattr(limits, key)[: len(values)], values, rtol=0.0, atol=5e-5, err_msg=key)


def test_an_so101_may_be_where_arms_as_they_are_built_go_and_its_model_vectors_stay_what_they_were() -> None:
    """Poses of public calibrations and recordings: folded up on the stop, and the furthest of five follower arms."""
    body = embodiment("so101")
    folded = [0.0, -106.0, 96.0, 75.0, 0.0, 0.0]
    poses = np.array([folded, [120.0, 106.0, 0, 109.0, 0, 50.0], [-120.0, -103.0, 0, -101.5, 0, 100.0]])
    joints = body.joints_from_model(poses, ModelFrame.ARM)
    assert np.all(body.beyond(joints, 0.0) <= 0.0)
    chunk = np.linspace(joints[0], joints[0] + [0.1, 0.2, -0.2, 0.1, 0.0, 0.1], 30)
    times = [(i + 1) / body.rate_hz for i in range(30)]
    taken = chunk_from_message(body, ChunkMessage(0, body.joint_names, chunk.tolist(), times), 0.0)
    assert isinstance(taken, Chunk)
    np.testing.assert_array_equal(taken.rows, chunk)
    # 90 degrees of lift are pi/2 whatever its limits; the jaw's 0 and 100 are the URDF's ends.
    vector = body.model_from_joints(np.array([0.0, -np.pi / 2, 0.0, 0.0, 0.0, 0.7854]), ModelFrame.ARM)
    np.testing.assert_allclose(vector, [0.0, -90.0, 0.0, 0.0, 0.0, 50.0], atol=1e-9)
    np.testing.assert_allclose(TRAVEL, [220.0, 200.0, 193.66, 190.0, 320.0, 110.0], atol=0.1)


def test_unpublished_limits_of_the_yam_stay_well_below_what_its_motors_do() -> None:
    limits = embodiment("yam").limits
    for arm in embodiment("yam").arms:
        motors = np.array([10.0, 10.0, 10.0, 30.0, 30.0, 30.0])
        assert np.all(limits.velocity[arm] <= 0.25 * motors)


@pytest.mark.parametrize(("robot", "first", "step"), [("franka", 0.3, 0.2), ("yam", 0.3, 0.2), ("so101", 0.5, 0.2)])
def test_jump_limits_are_those_of_working_cells(robot: str, first: float, step: float) -> None:
    body = embodiment(robot)
    for arm in body.arms:
        np.testing.assert_array_equal(body.max_first_step[arm], first)
        np.testing.assert_array_equal(body.max_step[arm], step)
    for g in body.gripper_indices:
        assert body.max_step[g] >= body.limits.upper[g] - body.limits.lower[g], "a gripper may open at once"


def test_the_right_yam_stands_beside_the_left_one_and_workspaces_hold_the_start_poses() -> None:
    left, right = (chain.tip(np.zeros(6)) for chain, _ in embodiment("yam").chains)
    np.testing.assert_allclose(right[:3, 3] - left[:3, 3], [0.0, -0.61, 0.0], atol=1e-12)
    np.testing.assert_allclose(right[:3, :3], left[:3, :3], atol=1e-12)
    for robot in EMBODIMENTS.values():
        for (chain, indices), workspace in zip(robot.chains, robot.workspaces, strict=True):
            tip = chain.tip(robot.rest_position[list(indices)])[:3, 3]
            assert np.all(tip > workspace.lower)
            assert np.all(tip < workspace.upper)
