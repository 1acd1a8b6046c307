"""Grippers: decisions with hysteresis, goals that are worth it; ensembles leave them alone."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact2_ros.execution.chunk import Chunk
from molmoact2_ros.execution.ensemble import Ensemble
from molmoact2_ros.execution.gripper import BinaryGrippers, GripperGoals

LOWER, UPPER = np.array([-1.0, 0.0]), np.array([1.0, 0.04])


def decided(values: list[float], present: float) -> list[float]:
    rows = np.zeros((len(values), 2))
    rows[:, 1] = np.array(values) * 0.04
    out = BinaryGrippers([1], LOWER, UPPER).decide(rows, np.array([0.0, present * 0.04]))
    np.testing.assert_array_equal(out[:, 0], 0.0)
    return (out[:, 1] / 0.04).tolist()


def test_a_decision_is_one_end_or_the_other_and_does_not_flicker() -> None:
    assert decided([0.45, 0.55, 0.5, 0.59], present=0.0) == [0.0, 0.0, 0.0, 0.0]
    assert decided([0.45, 0.55, 0.5, 0.41], present=1.0) == [1.0, 1.0, 1.0, 1.0]
    assert decided([0.2, 0.7, 0.5, 0.3, 0.5], present=0.0) == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_never_a_goal_a_tick() -> None:
    goals = GripperGoals(0.0, 0.04, step=0.1, interval_s=0.2)
    sent = [goals.update(0.04 * i / 200, i * 10_000_000) for i in range(200)]
    assert sum(goal is not None for goal in sent) <= 11
    assert goals.update(0.04, 10_000_000_000) == pytest.approx(0.04)
    assert goals.update(0.0385, 11_000_000_000) is None


def test_a_target_at_the_end_of_the_stroke_is_reached() -> None:
    goals = GripperGoals(0.0, 0.04, step=0.1, interval_s=0.0)
    assert goals.update(0.002, 1) is not None
    assert goals.update(0.0, 2) == 0.0


def test_binary_goals_are_the_two_ends_with_hysteresis() -> None:
    goals = GripperGoals(0.0, 0.04, interval_s=0.0, binary=True)
    goals.begin(0.03)
    shares = [0.9, 0.55, 0.45, 0.41, 0.39, 0.45, 0.55, 0.59, 0.61, 0.5]
    sent = [goals.update(0.04 * share, i) for i, share in enumerate(shares)]
    assert [goal for goal in sent if goal is not None] == [0.0, 0.04]
    assert sent[4] == 0.0
    assert sent[8] == 0.04


def test_a_gripper_that_is_where_it_should_be_gets_no_goal() -> None:
    goals = GripperGoals(0.0, 0.04)
    goals.begin(0.021)
    assert goals.update(0.0212, 10**9) is None
    goals.forget()
    assert goals.update(0.0212, 2 * 10**9) == pytest.approx(0.0212)


# -- ensembles ----------------------------------------------------------------------------------------------------


def chunk(stamp_s: float, value: float, gripper: float) -> Chunk:
    return Chunk(round(stamp_s * 1e9), 10.0, np.tile([value, gripper], (20, 1)))


def test_overlapping_chunks_are_averaged_with_exponential_weights() -> None:
    ensemble = Ensemble(3, 0.5, [1])
    ensemble.merge(chunk(0.0, 1.0, 0.0))
    merged = ensemble.merge(chunk(0.4, 2.0, 1.0))
    old, new = 1.0, np.exp(-0.5)
    np.testing.assert_allclose(merged.rows[:10, 0], (old * 1.0 + new * 2.0) / (old + new))
    # Nothing of the older chunk is left at the end of the newer one, and its weight goes without a step.
    np.testing.assert_allclose(merged.rows[-4:, 0], 2.0)
    assert np.abs(np.diff(merged.rows[:, 0])).max() < 0.25
    np.testing.assert_array_equal(merged.rows[:, 1], 1.0)
    assert merged.stamp_ns == 400_000_000


def test_an_ensemble_of_one_is_the_newest_chunk() -> None:
    ensemble = Ensemble(1, 0.5, [1])
    ensemble.merge(chunk(0.0, 1.0, 0.0))
    np.testing.assert_array_equal(ensemble.merge(chunk(0.1, 2.0, 1.0)).rows, chunk(0.1, 2.0, 1.0).rows)


def test_a_moving_average_follows_the_motion_in_time() -> None:
    ensemble = Ensemble(4, 0.1, [])
    t = (np.arange(20) + 1) / 10.0
    for stamp in (0.0, 0.2, 0.4, 0.6):
        merged = ensemble.merge(Chunk(round(stamp * 1e9), 10.0, (stamp + t)[:, None] * np.ones((1, 2))))
    np.testing.assert_allclose(merged.rows[:, 0], 0.6 + t, atol=1e-9)


def test_what_was_forgotten_has_no_weight() -> None:
    ensemble = Ensemble(3, 0.5, [])
    ensemble.merge(chunk(0.0, 1.0, 0.0))
    ensemble.forget()
    np.testing.assert_array_equal(ensemble.merge(chunk(0.1, 2.0, 1.0)).rows[:, 0], 2.0)
