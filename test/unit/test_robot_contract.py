"""Every robot against a `norm_stats.json` of the released format: order, units, polarity, cameras, rates.

Pins what would break an arm: another robot's scaling, units, order or gripper polarity. What is swapped, doubled or
missing is in `test_robot_mismatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_statistics import QUANTILES, ROBOTS, SETUPS, Stats, both, marked, refusal, write

from molmoact2_ros.embodiments import EMBODIMENTS, ModelFrame, embodiment
from molmoact2_ros.policy import open_checkpoint

# -- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_robot_is_what_its_released_checkpoint_says(model_files: Path, robot: str) -> None:
    tag, setup, horizon, scaled, dof, cameras = SETUPS[robot]
    body = embodiment(robot)
    assert (body.norm_tag, body.setup_type, body.control_mode) == (tag, setup, "absolute joint pose")
    assert (body.dof, body.horizon, body.normalize_gripper, body.camera_names) == (dof, horizon, scaled, cameras)
    assert body.rate_hz == horizon, "one second a chunk"
    opened = open_checkpoint(model_files, body, write(model_files, robot))
    assert opened.cameras == cameras
    assert (opened.horizon, opened.rate_hz) == (horizon, float(horizon))
    assert opened.frame is ModelFrame.TRAINING
    assert opened.notes == ()


@pytest.mark.parametrize("robot", ROBOTS)
def test_units_are_plausible_against_the_quantiles(robot: str) -> None:
    body = embodiment(robot)
    low, median, high = (body.joints_from_model(np.array(QUANTILES[robot][key])) for key in ("q01", "q50", "q99"))
    low, high = np.minimum(low, high), np.maximum(low, high)
    reach = body.limits.upper - body.limits.lower
    assert np.all(low > body.limits.lower - 0.15 * reach)
    assert np.all(high < body.limits.upper + 0.15 * reach)
    assert np.all(high - low > 0.1 * reach), "in wrong units the training would span next to nothing"
    assert np.all(median > body.limits.lower)
    assert np.all(median < body.limits.upper)


@pytest.mark.parametrize("robot", ["so101", "yam"])
def test_the_start_pose_is_the_median_of_the_training(robot: str) -> None:
    body = embodiment(robot)
    np.testing.assert_allclose(body.model_from_joints(body.rest_position), QUANTILES[robot]["q50"], atol=0.02)


def test_the_franka_starts_where_droid_resets_with_its_hand_open() -> None:
    body = embodiment("franka")
    reset = [0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0, 0.0]
    np.testing.assert_allclose(body.model_from_joints(body.rest_position), reset, atol=1e-9)


POLARITY = [
    ("franka", 7, 0.04, 0.0),
    ("franka", 7, 0.0, 1.0),
    ("panda", 7, 0.04, 0.0),
    ("franka_robotiq", 7, 0.0, 0.0),
    ("franka_robotiq", 7, 0.7929, 1.0),
    ("yam", 6, 0.0, 0.0),
    ("yam", 6, 0.0475, 1.0),
    ("yam", 13, 0.0, 0.0),
    ("yam", 13, 0.0475, 1.0),
    ("so101", 5, -0.1745, 0.0),
    ("so101", 5, 1.7453, 100.0),
]


@pytest.mark.parametrize(("robot", "index", "joint", "model"), POLARITY)
def test_grippers_have_the_polarity_of_their_checkpoints(robot: str, index: int, joint: float, model: float) -> None:
    body = embodiment(robot)
    joints = body.rest_position.copy()
    joints[index] = joint
    assert body.model_from_joints(joints)[index] == pytest.approx(model, abs=1e-9)
    vector = body.model_from_joints(body.rest_position)
    vector[index] = model
    assert body.joints_from_model(vector)[index] == pytest.approx(joint, abs=1e-9)


@pytest.mark.parametrize("robot", sorted(EMBODIMENTS))
@pytest.mark.parametrize("frame", list(ModelFrame))
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_states_and_actions_survive_the_way_through_model_vectors(robot: str, frame: ModelFrame, data: Any) -> None:
    body = embodiment(robot)
    share = np.array(data.draw(st.lists(st.floats(-0.1, 1.1), min_size=body.dof, max_size=body.dof)))
    joints = body.limits.lower + share * (body.limits.upper - body.limits.lower)
    np.testing.assert_allclose(
        body.joints_from_model(body.model_from_joints(joints, frame), frame), joints, rtol=0, atol=1e-6
    )
    vector = body.model_from_joints(joints, frame)
    np.testing.assert_allclose(
        body.model_from_joints(body.joints_from_model(vector, frame), frame), vector, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("robot", sorted(EMBODIMENTS))
def test_a_whole_chunk_is_converted_as_its_rows_and_a_wrong_size_is_refused(robot: str) -> None:
    body = embodiment(robot)
    rows = np.random.default_rng(2).uniform(body.limits.lower, body.limits.upper, (body.horizon, body.dof))
    whole = body.model_from_joints(rows)
    np.testing.assert_array_equal(whole, np.stack([body.model_from_joints(row) for row in rows]))
    np.testing.assert_allclose(body.joints_from_model(whole), rows, atol=1e-9)
    for wrong in (np.zeros(body.dof + 1), np.zeros((2, body.dof - 1)), np.zeros(())):
        for convert in (body.model_from_joints, body.joints_from_model):
            with pytest.raises(ValueError, match=f"{body.dof} values"):
                convert(wrong)
    bad = body.rest_position.copy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        body.model_from_joints(bad)


# -- a mismatch stops the launch with a table -----------------------------------------------------------------------


def unscaled_gripper(metadata: Stats) -> None:
    metadata["normalize_gripper"] = False
    both("mask", lambda v: [*v[:5], False])(metadata)


@pytest.mark.parametrize(
    ("robot", "change", "rows"),
    [
        ("yam", lambda m: m.update(camera_keys=["a", "b"]), {"cameras"}),
        ("franka", lambda m: m.update(action_horizon=30, n_action_steps=30), {"chunk"}),
        ("yam", lambda m: m.update(control_mode="delta end-effector pose"), {"control mode"}),
        ("franka", both("q01", lambda v: v[:7]), {"state size", "action size"}),
        ("so101", both("q50", lambda v: [v[0], 90.0 - v[1], v[2] - 90.0, *v[3:]]), {"SO frame"}),
        ("yam", both("names", lambda v: v[7:] + v[:7]), {"joint order"}),
        (
            "so101",
            unscaled_gripper,
            {"gripper scaled"},
        ),
        ("yam", lambda m: m.update(control_mode="x", camera_keys=["a"]), {"control mode", "cameras"}),
    ],
)
def test_the_table_shows_everything_that_differs(
    model_files: Path, robot: str, change: Callable[[Stats], None], rows: set[str]
) -> None:
    text = refusal(model_files, robot, write(model_files, robot, change))
    assert marked(text) == rows, text
    assert f"does not fit {robot}" in text


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("other", ROBOTS)
def test_no_robot_runs_with_another_robots_tag(model_files: Path, robot: str, other: str) -> None:
    tag = write(model_files, other)
    if robot == other:
        open_checkpoint(model_files, embodiment(robot), tag)
        return
    text = refusal(model_files, robot, tag)
    assert {"norm tag", "state size", "action size"} <= marked(text)
    assert embodiment(robot).norm_tag in text
