"""What is swapped, doubled, missing or in other units between a robot and its checkpoint, and where it is caught.

Each is shown to be caught where data can show it, before the arm may move; what no data can show is said by a test as
well.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from released_statistics import QUANTILES, ROBOTS, SO_SWAPPED, YAM_NAMES, Stats, both, marked, refusal, write

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.policy import open_checkpoint
from molmoact2_ros.policy.agreement import TrainedStates, order_problem


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


def test_a_released_checkpoint_beside_another_layouts_processors_is_refused(model_files: Path) -> None:
    """Nothing says which of the two scalings, and of the two frames, belongs to the weights."""
    tag = write(model_files, "so101")
    step = {
        "registry_name": "molmoact2_state_frame_transform",
        "config": {"joint_signs": [1, -1, 1, 1, 1, 1], "joint_offsets": [0, 90, 90, 0, 0, 0]},
    }
    (model_files / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    assert "of two layouts" in refusal(model_files, "so101", tag)
    (model_files / "policy_preprocessor.json").unlink()


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
