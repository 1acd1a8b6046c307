"""An arm that is allowed more, or less, than its own speed: chunks use it, ramps do not."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import Cell, assert_within_limits

from molmoact2_ros.drivers.gate import Command, Gate, GateConfig
from molmoact2_ros.embodiments import EMBODIMENTS, embodiment
from molmoact2_ros.execution.executor import ExecutorConfig
from molmoact2_ros.execution.supervisor import State

LIFT, ROLL = 1, 4


def swing(robot: str, joint: int, scale: float, wanted: float = 4.0) -> Cell:
    """A policy that wants `joint` to turn at so many rad/s from wherever it is; recordings of real SO-101 arms do 4."""
    cell = Cell(ExecutorConfig(speed_scale=scale), follow=1.0, robot=embodiment(robot))
    cell.position[joint] = -1.4
    cell.now_ns += 1_000_000_000
    cell.settle()
    cell.arm()
    cell.tick(2)
    for _ in range(8):
        rows = np.tile(cell.position, (30, 1))
        rows[:, joint] += np.minimum(wanted * (np.arange(30) + 1) / cell.robot.rate_hz, 1.4 - cell.position[joint])
        assert cell.send(rows) is None
        cell.tick(10)
    cell.tick(200)
    return cell


def top_speed(cell: Cell, joint: int) -> float:
    return float(np.abs(np.diff(cell.sent[:, joint])).max() / (cell.period_ns * 1e-9))


def test_chunks_go_as_fast_as_the_scale_allows_and_keep_all_other_limits() -> None:
    plain, fast, slow = (swing("so101", ROLL, scale) for scale in (1.0, 2.5, 0.25))
    for cell, scale in ((plain, 1.0), (fast, 2.5), (slow, 0.25)):
        assert_within_limits(cell.sent, cell.robot.scaled_limits(scale), cell.period_ns * 1e-9)
        assert cell.executor.counters.joint_state_jumps == 0
        assert cell.executor.state is State.HOLDING, cell.executor.reason
    assert 2.0 < top_speed(plain, ROLL) <= 2.5
    assert 3.9 < top_speed(fast, ROLL) <= 6.25
    assert 0.5 < top_speed(slow, ROLL) <= 0.625


def test_the_fr3_can_be_told_to_be_slower_near_its_ends_too() -> None:
    cell = swing("franka", 4, 0.2, 2.0)
    assert_within_limits(cell.sent, cell.robot.scaled_limits(0.2), cell.period_ns * 1e-9)
    assert 0.9 < top_speed(cell, 4) <= 0.2 * 5.26


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_a_ramp_is_never_faster_than_its_share_of_the_robots_own_limits(scale: float) -> None:
    cell = Cell(ExecutorConfig(speed_scale=scale, ramp_speed=1.0), follow=1.0)
    cell.position = cell.robot.rest_position + np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    cell.now_ns += 1_000_000_000
    cell.settle()
    done, message = cell.executor.go_to_start(cell.now_ns)
    assert done, message
    cell.tick(1200)
    np.testing.assert_allclose(cell.position, cell.robot.rest_position, atol=1e-4)
    fastest = np.abs(np.diff(cell.sent, axis=0)).max(axis=0) / 0.01
    assert np.all(fastest <= np.minimum(scale, 1.0) * cell.robot.limits.velocity * (1.0 + 1e-9))


def test_the_gate_lets_pass_what_its_scale_allows() -> None:
    robot, start_ns = embodiment("so101"), 1_000_000_000
    for scale, passes in ((1.0, False), (3.0, True)):
        gate = Gate(robot, GateConfig(speed_scale=scale))
        gate.measured(robot.rest_position)
        assert gate.check(Command(robot.rest_position, start_ns, "a"), start_ns) is None
        there = robot.rest_position.copy()
        there[LIFT] += 0.4  # 4 rad/s for 100 ms, of which the commands between were lost
        refusal = gate.check(Command(there, start_ns + 100_000_000, "a"), start_ns + 100_000_000)
        assert (refusal is None) is passes


def test_no_robot_is_allowed_more_than_its_joints_can_do() -> None:
    for robot in EMBODIMENTS.values():
        grippers = list(robot.gripper_indices)
        most = robot.scaled_limits(robot.speed_room)
        np.testing.assert_array_equal(most.velocity[grippers], robot.limits.velocity[grippers])
        with pytest.raises(ValueError, match=f"at most {robot.speed_room:g} for {robot.name}"):
            ExecutorConfig(speed_scale=robot.speed_room + 0.1).check(robot)
    assert embodiment("franka").speed_room == embodiment("panda").speed_room == 1.0
