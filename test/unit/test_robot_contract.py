"""Every robot against a `norm_stats.json` of the released format: order, units, polarity, cameras, rates.

Pins what would break an arm: another robot's scaling, a doubled or missing SO frame transform, a swapped gripper
polarity, swapped arms, swapped cameras. Each is shown to be caught where data can show it, before the arm may move;
what no data can show is said by a test as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoints import make_checkpoint

from molmoact2_ros.embodiments import EMBODIMENTS, ModelFrame, embodiment
from molmoact2_ros.policy import CheckpointError, open_checkpoint
from molmoact2_ros.policy.agreement import TrainedStates, order_problem

Stats = dict[str, Any]
ROBOTS = ("franka", "so101", "yam")
SO_SWAPPED = ("shoulder_lift", "shoulder_pan", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
YAM_NAMES = [f"{side}_{j}" for side in ("left", "right") for j in (*(f"joint{i}" for i in range(1, 7)), "gripper")]
# Published quantiles of YAM and SO. DROID's are not published on the page of facts: a plausible set, inside the limits,
# with the gripper over its whole stroke.
QUANTILES: dict[str, dict[str, list[float]]] = {
    "yam": {
        "q01": [-0.66, 0.004, 0.014, -1.374, -0.359, -0.93, 0.051, -0.494, 0.005, 0.017, -1.424, -0.974, -0.472, 0.033],
        "q50": [-0.073, 1.449, 1.283, -0.802, 0.113, -0.222, 0.733, 0.082, 1.542, 1.252, -0.682, -0.129, 0.192, 0.697],
        "q99": [0.47, 2.244, 2.008, 0.134, 0.883, 0.334, 0.987, 0.738, 2.285, 2.061, 0.24, 0.53, 0.962, 0.995],
    },
    "so101": {
        "q01": [-41.9, 43.7, 38.4, 5.7, -63.5, 0.9],
        "q50": [3.1, 123.2, 124.4, 57.9, -11.0, 9.2],
        "q99": [48.3, 185.3, 173.1, 91.8, 42.9, 44.1],
    },
    "franka": {
        "q01": [-0.8, -0.9, -0.7, -2.7, -1.0, 1.0, -1.5, 0.0],
        "q50": [0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.0, 0.05],
        "q99": [0.8, 1.1, 0.7, -0.9, 1.0, 3.4, 1.6, 1.0],
    },
}
NAMES = {"yam": YAM_NAMES, "so101": None, "franka": None}
SETUPS = {
    "franka": ("franka_droid", "single franka robotic arm in droid", 15, False, 8, ("exterior", "wrist")),
    "so101": (
        "so100_so101_molmoact2",
        "single so100/so101 robotic arm in molmoact2",
        30,
        True,
        6,
        ("front", "wrist"),
    ),
    "yam": ("yam_dual_molmoact2", "bimanual yam robotic arms in molmoact2", 30, False, 14, ("top", "left", "right")),
}
"""Tag, setup_type, horizon, normalize_gripper, dimensions and cameras as the checkpoints were released."""


def released(robot: str) -> Stats:
    """The metadata of a tag in the released format, from the published facts alone."""
    _, setup, horizon, scaled, dof, cameras = SETUPS[robot]
    mask = [True] * dof
    for g in (6, 13) if robot == "yam" else (dof - 1,):
        mask[g] = scaled
    stats = {**QUANTILES[robot], "mask": mask, "count": 1000}
    if NAMES[robot]:
        stats["names"] = NAMES[robot]
    return {
        "action_key": "action",
        "state_keys": ["observation.state"],
        "camera_keys": [f"observation.images.{name}" for name in cameras],
        "normalize_gripper": scaled,
        "action_horizon": horizon,
        "n_action_steps": horizon,
        "setup_type": setup,
        "control_mode": "absolute joint pose",
        "action_stats": dict(stats),
        "state_stats": dict(stats),
    }


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory whose statistics the tests replace."""
    return make_checkpoint(tmp_path_factory.mktemp("contract"))


def write(directory: Path, robot: str, change: Callable[[Stats], None] = lambda stats: None) -> str:
    """Put the released statistics of `robot`, changed by `change`, beside the model; returns the tag."""
    metadata = released(robot)
    change(metadata)
    tag = SETUPS[robot][0]
    content = {"format": "molmoact2_norm_stats.v1", "norm_mode": "q01_q99", "metadata_by_tag": {tag: metadata}}
    (directory / "norm_stats.json").write_text(json.dumps(content))
    (directory / "policy_preprocessor.json").unlink(missing_ok=True)
    return tag


def refusal(directory: Path, robot: str, tag: str, cameras: tuple[str, ...] | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(directory, embodiment(robot), tag, cameras)
    return str(error.value)


def both(key: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Stats], None]:
    """Change one list in the statistics of states and actions."""

    def edit(metadata: Stats) -> None:
        for kind in ("state_stats", "action_stats"):
            metadata[kind][key] = change(list(metadata[kind][key]))

    return edit


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


def marked(text: str) -> set[str]:
    """Names of the rows of the table in `text` that are marked as different."""
    return {line.split("  ")[1].strip() for line in text.splitlines() if line.startswith("  ") and " != " in line}


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


# -- what is swapped, doubled or missing ------------------------------------------------------------------------------


def trained(robot: str) -> TrainedStates:
    return TrainedStates(QUANTILES[robot], embodiment(robot), ModelFrame.TRAINING)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_policy_may_begin_anywhere_in_its_training_states(robot: str) -> None:
    body = embodiment(robot)
    assert trained(robot).problem(body.rest_position) == ""
    random = np.random.default_rng(3)
    for _ in range(200):
        share = random.uniform(size=body.dof)
        state = np.array(QUANTILES[robot]["q01"]) * (1 - share) + np.array(QUANTILES[robot]["q99"]) * share
        assert trained(robot).problem(body.joints_from_model(state)) == ""


def so_arm_degrees(joints: np.ndarray) -> np.ndarray:
    return embodiment("so101").model_from_joints(joints, ModelFrame.ARM)


def test_a_doubled_so_transform_is_caught_by_the_statistics(model_files: Path) -> None:
    """A checkpoint whose states are in the arm's frame already: the transform would be applied once more."""
    body = embodiment("so101")
    arm = {
        key: so_arm_degrees(body.joints_from_model(np.array(values))).tolist()
        for key, values in QUANTILES["so101"].items()
    }
    arm["q01"][1], arm["q99"][1] = arm["q99"][1], arm["q01"][1]

    def change(metadata: Stats) -> None:
        for kind in ("state_stats", "action_stats"):
            metadata[kind].update(arm)

    text = refusal(model_files, "so101", write(model_files, "so101", change))
    assert "another frame" in text
    assert "SO frame" in marked(text)


def test_a_missing_so_transform_is_caught_by_the_statistics(model_files: Path) -> None:
    """The file says that the transform happens elsewhere, the statistics are behind it, and nobody here runs it."""
    tag = write(model_files, "so101")
    step = {
        "registry_name": "molmoact2_state_frame_transform",
        "config": {"joint_signs": [1, -1, 1, 1, 1, 1], "joint_offsets": [0, 90, 90, 0, 0, 0]},
    }
    (model_files / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    assert "it would be missing" in refusal(model_files, "so101", tag)


@pytest.mark.parametrize("fault", ["doubled", "missing"])
def test_a_driver_in_the_wrong_so_frame_is_caught_by_the_first_state(fault: str) -> None:
    """The arm stands at its start pose, but the driver reports training degrees as if they were the arm's, or the
    inverse once too often: the first state then lies far from all training states."""
    body = embodiment("so101")
    model = body.model_from_joints(body.rest_position)
    if fault == "doubled":
        reported = body.joints_from_model(model, ModelFrame.ARM)
    else:
        reported = body.joints_from_model(so_arm_degrees(body.rest_position))
    problem = trained("so101").problem(reported)
    assert "far from the training states" in problem
    assert "frame or the units" in problem


def test_a_swapped_jaw_of_the_so101_is_caught_by_the_first_state() -> None:
    """A nearly closed jaw is reported as nearly open, where the training never was."""
    body = embodiment("so101")
    swapped = body.rest_position.copy()
    swapped[5] = body.limits.upper[5] - (swapped[5] - body.limits.lower[5])
    problem = trained("so101").problem(swapped)
    assert problem.startswith("gripper is at")
    assert "polarity" in problem


@pytest.mark.parametrize("robot", ["yam", "franka"])
def test_no_state_can_show_a_swapped_polarity_where_the_training_covers_the_whole_stroke(robot: str) -> None:
    """What no data can show must not be claimed to be caught; the polarity is pinned by the tests of the conversion."""
    body = embodiment(robot)
    for g in body.gripper_indices:
        swapped = body.rest_position.copy()
        swapped[g] = body.limits.upper[g] - swapped[g]
        assert trained(robot).problem(swapped) == ""


@pytest.mark.parametrize(
    ("robot", "scale"), [("so101", 0.01), ("yam", 100.0), ("yam", 0.0475 / 4), ("franka", 100.0), ("franka", 0.01)]
)
def test_a_gripper_in_other_units_is_caught_by_the_statistics(model_files: Path, robot: str, scale: float) -> None:
    grippers = embodiment(robot).gripper_indices

    def scaled(values: list[float]) -> list[float]:
        return [value * scale if i in grippers else value for i, value in enumerate(values)]

    def change(metadata: Stats) -> None:
        for key in ("q01", "q50", "q99"):
            both(key, scaled)(metadata)

    assert "units" in refusal(model_files, robot, write(model_files, robot, change))


def test_swapped_arms_are_caught_by_the_names_of_the_statistics(model_files: Path) -> None:
    text = refusal(model_files, "yam", write(model_files, "yam", both("names", lambda v: v[7:] + v[:7])))
    assert "the arms are swapped" in text


def test_swapped_arms_behind_the_right_names_show_in_the_first_state_only_when_they_stand_apart() -> None:
    """At the start pose both arms look alike, and no data can tell; an arm at the edge of its own range can."""
    body = embodiment("yam")
    start = body.rest_position
    assert trained("yam").problem(np.roll(start, 7)) == ""
    apart = body.joints_from_model(np.array(QUANTILES["yam"]["q50"]))
    apart[5], apart[12] = -1.4, 1.4  # the wrists turned outwards, each on its own side of its range
    assert trained("yam").problem(apart) == ""
    assert "far from the training states" in trained("yam").problem(np.roll(apart, 7))


def test_swapped_cameras_are_caught_by_their_names(model_files: Path) -> None:
    tag = write(model_files, "yam")
    text = refusal(model_files, "yam", tag, ("top", "right", "left"))
    assert "cameras are given as top, right, left" in text
    assert "trained on top, left, right" in text
    swapped = write(model_files, "yam", lambda m: m.update(camera_keys=["x.top", "x.right", "x.left"]))
    assert open_checkpoint(model_files, embodiment("yam"), swapped).cameras == ("top", "right", "left")


@pytest.mark.parametrize(
    ("names", "robot", "part"),
    [
        ([f"{name}.pos" for name in SO_SWAPPED], "so101", "entry 0"),
        (["gripper", *(f"joint_{i}" for i in range(7))], "franka", "grippers are entries (0,)"),
        ([f"joint_{i}" for i in range(8)], "franka", ""),
        (["a", "b"], "franka", ""),
        (YAM_NAMES, "yam", ""),
    ],
)
def test_names_of_another_order_are_told_from_names_of_another_data_set(
    names: list[str], robot: str, part: str
) -> None:
    found = order_problem(names, embodiment(robot))
    assert part in found and bool(found) == bool(part)
