"""Limits that depend on the position (FR3): never exceeded, from no state, by no set-point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion, Stop
from molmoact2_ros.execution.safe_set import SafeSet

FR3 = embodiment("franka")
PERIOD = 0.004
GROUPS = [list(range(7)), [7]]


def limiter() -> Limiter:
    return Limiter(FR3.limits, GROUPS, PERIOD, FR3.velocity_bounds)


def assert_permitted(commands: np.ndarray) -> None:
    """The mean velocity of every tick is permitted at both of its ends."""
    speeds = np.diff(commands, axis=0) / PERIOD
    for ends in (commands[:-1], commands[1:]):
        low, high = FR3.velocity_bounds(ends)
        assert np.all(speeds >= low - 1e-9) and np.all(speeds <= high + 1e-9)


def test_a_joint_driven_into_its_end_slows_down_ahead_of_the_published_curve() -> None:
    limits = FR3.limits
    drive = limiter()
    drive.reset(FR3.rest_position)
    commands = [drive.motion.position]
    for _ in range(500):
        commands.append(drive.step(lambda s: Motion.at_rest(limits.upper), [False, False]))
    assert_permitted(np.array(commands))
    way = np.array(commands)
    # It gets close to where the permitted velocity vanishes, and it was fast on the way.
    vanishes = drive.safe.upper
    assert np.all(vanishes[:7] - way[-1, :7] < 0.05), vanishes - way[-1]
    assert np.abs(np.diff(way, axis=0)).max() / PERIOD > 1.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.1, 1.0, 30.0, 1e6]))
def test_no_reference_makes_a_set_point_faster_than_its_position_permits(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    drive = limiter()
    drive.reset(rng.uniform(FR3.limits.lower, FR3.limits.upper))
    commands = [drive.motion.position] * 3
    for tick in range(120):
        if tick % int(rng.integers(1, 30)) == 0:
            goal = drive.motion.position + rng.normal(0.0, size, 8)
            slope = rng.normal(0.0, size, 8)
        braked = [bool(rng.random() < 0.1), False]
        commands.append(drive.step(lambda s, p=goal, v=slope: Motion(p + v * s, v, 0.0 * v), braked))
        assert drive.safe.contains(drive.motion).all()
    way = np.array(commands)
    assert_permitted(way)
    for order, limit in ((2, FR3.limits.acceleration), (3, FR3.limits.jerk)):
        assert np.all(np.abs(np.diff(way, n=order, axis=0)) / PERIOD**order <= limit * (1 + 1e-9))


@pytest.mark.parametrize("seed", range(30))
def test_a_state_that_is_called_safe_has_a_stop_that_keeps_the_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    safe = SafeSet(FR3.limits, PERIOD, FR3.velocity_bounds)
    limits = safe.limits
    motion = Motion(
        rng.uniform(limits.lower, limits.upper, (200, 8)),
        rng.uniform(-limits.velocity, limits.velocity, (200, 8)),
        rng.uniform(-limits.acceleration, limits.acceleration, (200, 8)),
    )
    called = safe.contains(motion)
    stop = Stop.of(motion, limits.acceleration, limits.jerk)
    kept = np.ones_like(called)
    for t in np.linspace(0.0, stop.duration, 600):
        state = stop.at(float(t))
        low, high = FR3.velocity_bounds(state.position)
        # Published: the permitted velocity is never below 0 towards the middle, so a joint at rest is always fine.
        kept &= (state.velocity >= low - 1e-6) & (state.velocity <= high + 1e-6)
    assert not (called & ~kept).any()
    assert 0.05 < called.mean() < 0.95, "neither everything nor nothing is safe"


def test_targets_beyond_where_the_velocity_vanishes_are_held_before_it() -> None:
    safe = SafeSet(FR3.limits, PERIOD, FR3.velocity_bounds)
    assert np.all(safe.upper[:7] < FR3.limits.upper[:7] - 0.003)
    assert np.all(safe.lower[:7] > FR3.limits.lower[:7] + 0.003)
    assert np.all(FR3.velocity_bounds(safe.upper)[1] >= 0.04 * FR3.limits.velocity)
    inside = safe.inside(Motion.at_rest(FR3.limits.upper))
    np.testing.assert_array_equal(inside.position, safe.upper)


def test_robots_without_such_a_curve_may_use_all_of_their_way() -> None:
    robot = embodiment("yam")
    safe = SafeSet(robot.limits, PERIOD)
    np.testing.assert_allclose(safe.upper, robot.limits.upper, atol=2e-6)
    assert not safe.varies
