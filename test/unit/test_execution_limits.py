"""The limiter: whatever the reference does, no set-point leaves a limit, and a stop always fits."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import assert_within_limits
from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion, Stop, within_limits

ROBOT = embodiment("so101")
PERIOD = 0.01
GROUPS = [list(range(5)), [5]]


def random_state(rng: np.random.Generator) -> Motion:
    """A state of motion inside the limits."""
    limits = ROBOT.limits
    while True:
        motion = Motion(
            rng.uniform(limits.lower, limits.upper),
            rng.uniform(-limits.velocity, limits.velocity),
            rng.uniform(-limits.acceleration, limits.acceleration),
        )
        good = within_limits(motion, limits)
        if good.any():
            rest = ROBOT.rest_position
            return Motion(
                np.where(good, motion.position, rest),
                np.where(good, motion.velocity, 0.0),
                np.where(good, motion.acceleration, 0.0),
            )


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_ends_at_rest_within_the_extent_it_announced(seed: int) -> None:
    limits = ROBOT.limits
    motion = random_state(np.random.default_rng(seed))
    stop = Stop.of(motion, limits.acceleration, limits.jerk)
    low, high = stop.extent()
    way = [stop.at(t) for t in np.linspace(0.0, stop.duration, 4001)]
    positions = np.array([state.position for state in way])
    assert np.all(positions >= low - 1e-9) and np.all(positions <= high + 1e-9)
    np.testing.assert_allclose(positions.min(axis=0), low, atol=1e-6)
    np.testing.assert_allclose(positions.max(axis=0), high, atol=1e-6)
    assert stop.at(stop.duration).still
    just_before = stop.at(stop.duration * (1 - 1e-9))
    np.testing.assert_allclose(just_before.velocity, 0.0, atol=1e-6)
    assert max(np.abs(state.acceleration / limits.acceleration).max() for state in way) <= 1 + 1e-9


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.01, 0.3, 3.0, 100.0, 1e6]))
def test_no_set_point_leaves_a_limit_whatever_the_reference_does(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    limiter = Limiter(ROBOT.limits, GROUPS, PERIOD)
    limiter.reset(rng.uniform(ROBOT.limits.lower, ROBOT.limits.upper))
    commands = [limiter.motion.position]
    target = ROBOT.rest_position
    for tick in range(150):
        if tick % int(rng.integers(1, 20)) == 0:
            target = limiter.motion.position + rng.normal(0.0, size, 6)
            slope, bend = rng.normal(0.0, size, 6), rng.normal(0.0, 10 * size, 6)
        braked = [bool(rng.random() < 0.1), bool(rng.random() < 0.1)]
        reference = lambda s, p=target, v=slope, a=bend: Motion(p + v * s + a * s * s / 2, v + a * s, a)  # noqa: E731
        commands.append(limiter.step(reference, braked))
        assert within_limits(limiter.motion, ROBOT.limits).all()
    assert_within_limits(np.array(commands), ROBOT.limits, PERIOD)


def test_a_reference_inside_the_limits_is_followed_exactly() -> None:
    limiter = Limiter(ROBOT.limits, GROUPS, PERIOD)
    limiter.reset(ROBOT.rest_position)
    for tick in range(300):
        t = tick * PERIOD

        def smooth(s: float, t: float = t) -> Motion:
            # Starts with zero velocity and acceleration, as the arm does.
            x, w = t + s, 2.0
            depth = 0.1 * (1 - np.cos(w * x)) ** 2
            speed = 0.2 * w * (1 - np.cos(w * x)) * np.sin(w * x)
            bend = 0.2 * w * w * (np.sin(w * x) ** 2 + (1 - np.cos(w * x)) * np.cos(w * x))
            one = np.ones(6)
            return Motion(ROBOT.rest_position + depth * one, speed * one, bend * one)

        np.testing.assert_allclose(limiter.step(smooth, [False, False]), smooth(PERIOD).position, atol=1e-12)
    assert limiter.limited_ticks == 0


def test_joints_of_an_arm_arrive_together() -> None:
    limiter = Limiter(ROBOT.limits, GROUPS, PERIOD)
    limiter.reset(np.zeros(6))
    goal = np.array([0.8, 0.1, 0.4, 0.05, 0.2, 0.0])
    progress = []
    for _ in range(400):
        position = limiter.step(lambda s: Motion.at_rest(goal), [False, False])
        progress.append(position[:5] / goal[:5])
    done = [int(np.argmax(np.array(progress)[:, j] > 0.999)) for j in range(5)]
    assert progress[-1] == pytest.approx(np.ones(5), abs=1e-6)
    assert max(done) - min(done) <= 12, done


def test_a_refusal_of_ruckig_brakes_and_says_why() -> None:
    limiter = Limiter(ROBOT.limits, GROUPS, PERIOD)
    limiter.reset(ROBOT.rest_position)
    for _ in range(20):
        limiter.step(lambda s: Motion.at_rest(ROBOT.rest_position + 0.5), [False, False])
    assert not limiter.motion.still
    nowhere = Motion.at_rest(np.full(6, np.nan))
    stop = Stop.of(limiter.motion, ROBOT.limits.acceleration, ROBOT.limits.jerk)
    expected = stop.at(PERIOD).position
    np.testing.assert_allclose(limiter.step(lambda s: nowhere, [False, False]), expected, atol=1e-12)
    assert limiter.refusal
    for _ in range(200):
        limiter.step(lambda s: nowhere, [False, False])
    assert limiter.motion.still


def test_an_initial_position_outside_the_limits_is_refused() -> None:
    limiter = Limiter(ROBOT.limits, GROUPS, PERIOD)
    with pytest.raises(ValueError, match="outside their position limits"):
        limiter.reset(ROBOT.limits.upper + 0.1)
