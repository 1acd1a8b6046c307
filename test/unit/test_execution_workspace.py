"""The box of each arm's tip: slow down and hold before its side, say which, and let the arm come back."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import ROBOT, Cell, assert_within_limits

from molmoact2_ros.embodiments import Workspace, embodiment
from molmoact2_ros.execution.executor import ExecutorConfig
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.supervisor import State
from molmoact2_ros.execution.workspace import WorkspaceGuard

REST_Z = 0.088
"""Height of the SO-101's tip in its rest pose, m."""


def tips(positions: np.ndarray, arm: int = 0, robot=ROBOT) -> np.ndarray:  # type: ignore[no-untyped-def]
    chain, joints = robot.chains[arm]
    return chain.tip(np.asarray(positions)[..., list(joints)])[..., :3, 3]


def cell_with_floor(z: float) -> Cell:
    box = Workspace(np.array([-0.5, -0.5, z]), np.array([0.55, 0.5, 0.6]))
    cell = Cell(ExecutorConfig(workspaces=(box,)), follow=1.0)
    cell.arm()
    cell.tick(3)
    return cell


def downwards(cell: Cell, lift: float = 0.5) -> np.ndarray:
    """A chunk that lowers the tip: the shoulder leans forward."""
    rows = np.tile(cell.position, (30, 1))
    rows[:, 1] += lift * (np.arange(30) + 1) / 30
    return rows


def test_a_chunk_into_the_floor_is_followed_to_it_and_held_there_with_the_reason() -> None:
    cell = cell_with_floor(0.04)
    assert cell.send(downwards(cell)) is None
    cell.tick(150)
    z = tips(cell.sent)[:, 2]
    assert z.min() >= 0.04 - 1e-9
    assert z[-1] < 0.06, "it was to go down, and slow down on the way"
    assert cell.executor.state is State.HOLDING
    assert "workspace: the tip of the arm would be at z 0.0" in cell.executor.reason
    assert "outside its floor 0.040 m" in cell.executor.reason
    assert_within_limits(cell.sent, ROBOT.limits, 0.01)


def test_at_the_floor_a_chunk_further_down_is_refused_with_the_reason_and_one_upwards_is_followed() -> None:
    cell = cell_with_floor(0.04)
    cell.send(downwards(cell))
    cell.tick(150)
    held = cell.sent[-1]
    refusal = cell.send(downwards(cell))
    assert refusal is not None and refusal.kind == "workspace" and "floor" in refusal.reason
    cell.tick(30)
    np.testing.assert_array_equal(cell.sent[-1], held)
    assert cell.executor.state is State.HOLDING and "floor" in cell.executor.reason
    assert cell.send(downwards(cell, -0.5)) is None
    cell.tick(60)
    assert tips(cell.sent[-1])[2] > 0.06
    assert cell.executor.state is State.TRACKING


def test_chunks_that_keep_pushing_down_never_get_the_tip_through_the_floor() -> None:
    cell = cell_with_floor(0.03)
    for _ in range(40):
        cell.send(downwards(cell, 0.8))
        cell.tick(7)
    assert tips(cell.sent)[:, 2].min() >= 0.03 - 1e-9
    assert "workspace" in cell.executor.reason


def test_a_tip_that_is_outside_may_come_back_but_not_go_further_out() -> None:
    cell = cell_with_floor(0.12)
    assert tips(cell.position)[2] == pytest.approx(REST_Z, abs=2e-3)
    assert cell.send(downwards(cell)) is not None
    assert cell.send(downwards(cell, -0.6)) is None
    cell.tick(130)
    z = tips(cell.sent)[:, 2]
    assert z.min() >= REST_Z - 2e-3
    assert z[-1] > 0.125
    # Once inside, it has to stay there.
    cell.send(downwards(cell, 0.6))
    cell.tick(150)
    assert tips(cell.sent[-1])[2] >= 0.12 - 1e-9


def test_the_guard_stops_in_time_whatever_the_reference_does() -> None:
    robot = embodiment("franka")
    box = Workspace(np.array([0.2, -0.2, 0.2]), np.array([0.5, 0.2, 0.6]))
    period = 0.01
    guard = WorkspaceGuard(robot, robot.limits, period, (box,))
    groups = [list(range(7)), [7]]
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(6):
        limiter = Limiter(robot.limits, groups, period, robot.velocity_bounds, guard, 1)
        limiter.reset(robot.rest_position)
        guard.begin(limiter.motion.position)
        way = []
        for tick in range(150):
            if tick % 25 == 0:
                goal = np.clip(robot.rest_position + rng.normal(0.0, 0.8, 8), robot.limits.lower, robot.limits.upper)
            way.append(limiter.step(lambda s, p=goal: Motion.at_rest(p), [False, False]))
            refused += limiter.blocked is not None
        tip = tips(np.array(way), robot=robot)
        assert np.all(tip >= box.lower - 1e-9) and np.all(tip <= box.upper + 1e-9)
    assert refused > 20
    assert "workspace: the tip of the arm would be at" in guard.reason


def test_each_arm_has_its_own_box_in_the_frame_of_the_robot() -> None:
    robot = embodiment("yam")
    guard = WorkspaceGuard(robot, robot.limits, 0.01)
    assert guard.outside(robot.rest_position) == ""
    far = robot.rest_position.copy()
    far[7] += 1.2
    box = Workspace(np.array([-0.3, -0.75, -0.02]), np.array([0.8, 0.7, 0.85]))
    small = Workspace(np.array([0.2, -0.7, 0.05]), np.array([0.6, -0.4, 0.4]))
    guard = WorkspaceGuard(robot, robot.limits, 0.01, (box, small))
    assert guard.outside(robot.rest_position) == ""
    assert "the tip of the right arm" in guard.outside(far)


def test_a_box_for_each_arm_is_needed() -> None:
    box = Workspace(-np.ones(3), np.ones(3))
    robot = embodiment("yam")
    with pytest.raises(ValueError, match="workspace for each of its 2 arms, got 1"):
        WorkspaceGuard(robot, robot.limits, 0.01, (box,))
