"""The SO-100/101 embodiment: units, frame, gripper, order. A mistake here breaks an arm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from molmoact2_ros.embodiments import EMBODIMENTS, ModelFrame, embodiment
from molmoact2_ros.embodiments.kinematics import Chain, Joint, pose_of
from molmoact2_ros.execution.chunk import Chunk, ChunkMessage, Refusal, chunk_from_message

ROBOT = embodiment("so101")
MEDIAN_MODEL = np.array([3.1, 123.2, 124.4, 57.9, -11.0, 9.2])
"""Published q50 of the training states, model units."""


def random_joints(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(ROBOT.limits.lower, ROBOT.limits.upper, (n, ROBOT.dof))


@pytest.mark.parametrize("frame", list(ModelFrame))
def test_round_trip_is_exact_in_both_frames(frame: ModelFrame) -> None:
    joints = random_joints(1000)
    back = ROBOT.joints_from_model(ROBOT.model_from_joints(joints, frame), frame)
    np.testing.assert_allclose(back, joints, atol=1e-12)


def test_training_frame_flips_and_shifts_the_shoulder_and_shifts_the_elbow() -> None:
    zero = np.zeros(6)
    zero[5] = ROBOT.limits.lower[5]
    np.testing.assert_allclose(ROBOT.model_from_joints(zero), [0, 90, 90, 0, 0, 0], atol=1e-12)
    lifted = zero.copy()
    lifted[1] = np.radians(10.0)
    assert ROBOT.model_from_joints(lifted)[1] == pytest.approx(80.0)
    assert ROBOT.model_from_joints(lifted, ModelFrame.ARM)[1] == pytest.approx(10.0)


def test_gripper_is_0_closed_and_100_open_at_the_ends_of_the_jaw() -> None:
    for end, percent in ((ROBOT.limits.lower[5], 0.0), (ROBOT.limits.upper[5], 100.0)):
        joints = np.zeros(6)
        joints[5] = end
        for frame in ModelFrame:
            assert ROBOT.model_from_joints(joints, frame)[5] == pytest.approx(percent)


def test_rest_position_is_the_published_median_and_inside_the_limits() -> None:
    np.testing.assert_allclose(ROBOT.model_from_joints(ROBOT.rest_position), MEDIAN_MODEL, atol=0.02)
    assert np.all(ROBOT.rest_position > ROBOT.limits.lower)
    assert np.all(ROBOT.rest_position < ROBOT.limits.upper)


def test_applying_the_frame_twice_or_not_at_all_would_move_the_shoulder_far() -> None:
    right = ROBOT.joints_from_model(MEDIAN_MODEL)
    twice = ROBOT.joints_from_model(ROBOT.model_from_joints(ROBOT.joints_from_model(MEDIAN_MODEL), ModelFrame.ARM))
    assert abs(twice[1] - right[1]) > 0.5


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((2, 7)), np.float64(1.0)])
def test_a_wrong_size_is_refused_and_named(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must have 6 values"):
        ROBOT.model_from_joints(bad)


def test_non_finite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        ROBOT.joints_from_model(np.array([0, 0, np.nan, 0, 0, 0]))


def test_reorder_follows_names_and_refuses_what_is_missing_or_double() -> None:
    names = list(reversed(ROBOT.joint_names))
    np.testing.assert_array_equal(ROBOT.reorder(names, np.arange(6.0)), np.arange(6.0)[::-1])
    np.testing.assert_array_equal(ROBOT.reorder(["extra", *ROBOT.joint_names], np.arange(7.0)), np.arange(1.0, 7.0))
    with pytest.raises(ValueError, match="missing"):
        ROBOT.reorder(names[:5], np.zeros(5))
    with pytest.raises(ValueError, match="twice"):
        ROBOT.reorder([*names, names[0]], np.zeros(7))
    with pytest.raises(ValueError, match="6 joint names but 5"):
        ROBOT.reorder(names, np.zeros(5))


def test_unknown_robot_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="so101"):
        embodiment("spot")


def test_chain_of_two_quarter_turns_ends_where_it_must() -> None:
    def at(x: float, y: float, z: float) -> np.ndarray:
        return pose_of(Rotation.identity(), (x, y, z))

    joints = (Joint("a", at(0, 0, 1), np.array([0, 0, 1])), Joint("b", at(1, 0, 0), np.array([0, 1, 0])))
    chain = Chain(joints, at(0.5, 0, 0))
    tip = chain.tip(np.array([np.pi / 2, np.pi / 2]))
    np.testing.assert_allclose(tip[:3, 3], [0, 1, 0.5], atol=1e-12)


def test_arm_chain_reaches_its_published_length_when_straight_forward() -> None:
    chain = ROBOT.chains[0][0]
    # At zero the arm points forward with the gripper level: 0.391 m from the base, 0.226 m high.
    np.testing.assert_allclose(chain.tip(np.zeros(5))[:3, 3], [0.391, 0.0, 0.226], atol=1e-3)
    batch = chain.tip(random_joints(4)[:, :5])
    assert batch.shape == (4, 4, 4)
    with pytest.raises(ValueError, match="5 joints"):
        chain.tip(np.zeros(6))


@pytest.mark.parametrize("name", sorted(EMBODIMENTS))
def test_a_gripper_may_overshoot_by_a_share_of_its_stroke_and_a_joint_by_the_margin(name: str) -> None:
    """In rad and m alike: 0.05 is little for a joint, and more than the whole stroke of a sliding finger."""
    robot = embodiment(name)
    gripper, stroke = robot.gripper_indices[0], robot.limits.upper - robot.limits.lower
    joint = robot.arms[0].start

    def chunk(index: int, beyond: float) -> object:
        rows = np.tile(robot.rest_position, (2, 1))
        rows[:, index] = robot.limits.upper[index] + beyond
        message = ChunkMessage(0, robot.joint_names, rows, [(row + 1) / robot.rate_hz for row in range(2)])
        return chunk_from_message(robot, message, 0.05)

    assert isinstance(chunk(joint, 0.04), Chunk) and isinstance(chunk(gripper, 0.2 * stroke[gripper]), Chunk)
    for index, beyond, unit in ((joint, 0.06, "rad"), (gripper, 0.3 * stroke[gripper], robot.gripper_unit)):
        refusal = chunk(index, beyond)
        assert isinstance(refusal, Refusal) and refusal.kind == "position"
        assert f" {unit} of {robot.joint_names[index]}" in refusal.reason
    assert robot.gripper_unit == ("m" if name in ("franka", "panda", "yam") else "rad")
