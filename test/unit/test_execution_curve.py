"""From rows to a curve: too fast is passed more slowly on the same way, with one time scale an arm."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.chunk import Chunk
from molmoact2_ros.execution.curve import ChunkCurve

YAM = embodiment("yam")
FR3 = embodiment("franka")


def chunk_of(robot, speed: float, arms: tuple[int, ...] = (0,)) -> Chunk:  # type: ignore[no-untyped-def]
    """All joints of `arms` bow to one side and back; their fastest joint reaches `speed` times its limit."""
    t = (np.arange(robot.horizon) + 1) / robot.horizon
    rows = np.tile(robot.rest_position, (robot.horizon, 1))
    duration = robot.horizon / robot.rate_hz
    for arm in arms:
        for i, j in enumerate(range(robot.dof)[robot.arms[arm]]):
            shape = np.sin(np.pi * t) ** 2 * (1.0 if i % 2 else -0.6)
            rows[:, j] += speed * robot.limits.velocity[j] * duration / np.pi * shape
    return Chunk(0, robot.rate_hz, rows)


def states(curve: ChunkCurve, until_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return curve.at(np.linspace(curve.pieces[0].knots[0], until_s, 400))


def test_a_chunk_within_the_limits_keeps_its_time() -> None:
    curve = ChunkCurve.of(chunk_of(YAM, 0.3), YAM.limits, YAM.gripper_indices, YAM.arms)
    assert len(curve.pieces) == 1
    assert curve.stretch == 1.0


@pytest.mark.parametrize("speed", [1.5, 3.0])
def test_an_arm_that_is_too_fast_goes_the_same_way_more_slowly(speed: float) -> None:
    chunk = chunk_of(YAM, speed)
    left, right = (np.arange(YAM.dof)[arm] for arm in YAM.arms)
    asked = ChunkCurve.of(chunk, YAM.limits, YAM.gripper_indices)  # one time scale for all, to compare with
    curve = ChunkCurve.of(chunk, YAM.limits, YAM.gripper_indices, YAM.arms)
    assert curve.stretch > speed * 0.9
    slowed = next(piece for piece in curve.pieces if piece.joints[0] == left[0])
    _, velocity, acceleration = states(curve, float(slowed.knots[-1]))
    assert np.abs(velocity[:, left] / YAM.limits.velocity[left]).max() <= 1.0
    assert np.abs(acceleration[:, left] / YAM.limits.acceleration[left]).max() <= 1.0
    # Every point of the slowed way is near a point of the way that was asked for, all joints of the arm together.
    way = states(curve, float(slowed.knots[-1]))[0][:, left]
    ideal = asked.at(np.linspace(asked.pieces[0].knots[0], 3.0 * chunk.end_ns * 1e-9, 6000))[0][:, left]
    distance = np.array([np.abs(ideal - point).max(axis=1).min() for point in way])
    assert distance.max() < 0.02, distance.max()
    # The other arm has its own time scale, which is the chunk's.
    rest = next(piece for piece in curve.pieces if right[0] in piece.joints)
    np.testing.assert_allclose(rest.knots, (np.arange(YAM.horizon) + 1) / YAM.rate_hz)


def test_what_has_passed_already_is_not_stretched() -> None:
    chunk = chunk_of(YAM, 2.0)
    curve = ChunkCurve.of(chunk, YAM.limits, YAM.gripper_indices, YAM.arms, from_s=0.5)
    slowed = max(curve.pieces, key=lambda piece: piece.knots[-1])
    np.testing.assert_allclose(slowed.knots[:15], (np.arange(15) + 1) / YAM.rate_hz)
    assert slowed.knots[-1] > 1.2


def test_limits_that_tighten_towards_the_end_of_a_joint_slow_the_chunk_down_there() -> None:
    rows = np.tile(FR3.rest_position, (15, 1))
    rows[:, 0] = np.linspace(1.2, 2.8, 15)
    curve = ChunkCurve.of(Chunk(0, 15.0, rows), FR3.limits, FR3.gripper_indices, FR3.arms, FR3.velocity_bounds)
    assert curve.stretch > 1.5
    end = max(float(piece.knots[-1]) for piece in curve.pieces)
    position, velocity, _ = states(curve, end)
    assert np.all(velocity[:, 0] <= np.maximum(FR3.velocity_bounds(position)[1][:, 0], 0.27))


def test_grippers_keep_their_lines_and_their_time_whatever_the_arms_do() -> None:
    chunk = chunk_of(YAM, 3.0)
    chunk.rows[:, 6] = np.linspace(0.0, 0.04, 30)
    curve = ChunkCurve.of(chunk, YAM.limits, YAM.gripper_indices, YAM.arms)
    t = np.array([5.5 / 30, 20.25 / 30])
    np.testing.assert_allclose(curve.at(t)[0][:, 6], np.interp(t, (np.arange(30) + 1) / 30, chunk.rows[:, 6]))
