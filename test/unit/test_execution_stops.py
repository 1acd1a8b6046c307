"""Stops: on the path where it fits, in the time that was computed when they began, inside every limit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from execution_cell import Cell, assert_within_limits, ramp

from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.execution.executor import ExecutorConfig
from molmoact2_ros.execution.supervisor import State

ROBOTS = ("so101", "franka", "yam")
RATES = {"so101": 100.0, "franka": 250.0, "yam": 200.0}


def bow(robot: Embodiment, size: float = 0.25) -> np.ndarray:
    """A chunk on a curved way: joints out of phase, so that stopping each on its own would leave it."""
    t = (np.arange(robot.horizon) + 1)[:, None] / robot.horizon
    phase = np.arange(robot.dof)[None] * 0.7
    rows = robot.rest_position + size * (np.sin(2.0 * t + phase) - np.sin(phase))
    rows[:, list(robot.gripper_indices)] = robot.rest_position[list(robot.gripper_indices)]
    return rows


def moving(name: str, **figures: float) -> Cell:
    """A cell in the middle of a chunk, at speed."""
    robot = embodiment(name)
    cell = Cell(ExecutorConfig(rate_hz=RATES[name], **figures), follow=1.0, robot=robot)
    cell.arm()
    cell.tick(3)
    assert cell.send(bow(robot)) is None
    cell.tick(round(0.5 * RATES[name]))
    assert np.abs(cell.executor.motion.velocity).max() > 0.05
    return cell


def task(cell: Cell) -> None:
    cell.executor.on_task(cell.now_ns)


def disarm(cell: Cell) -> None:
    cell.executor.disarm(cell.now_ns)


def e_stop(cell: Cell) -> None:
    cell.executor.on_e_stop(True, cell.now_ns)


def hardware(cell: Cell) -> None:
    cell.executor.on_hardware("motor 3 is hot", cell.now_ns)


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("cause", [task, disarm, e_stop, hardware])
def test_every_stop_ends_in_its_computed_time_inside_the_limits(name: str, cause: Callable[[Cell], None]) -> None:
    cell = moving(name)
    cause(cell)
    due = cell.executor.stop_due_ns
    assert due is not None and 0.0 < (due - cell.now_ns) * 1e-9 < 1.2
    while cell.now_ns < due:
        cell.tick()
    assert cell.executor.motion.still
    assert cell.executor.stop_due_ns is None
    assert cell.executor.state in (State.HOLDING, State.DISARMED, State.ESTOPPED, State.FAULT)
    assert_within_limits(cell.sent, cell.robot.limits, 1.0 / RATES[name])


def silence(cell: Cell) -> None:
    """Found by the executor itself, within a tick."""
    cell.encoders_work = False
    while cell.executor.state is State.TRACKING:
        cell.tick()
    assert "joint_states silent" in cell.executor.reason


@pytest.mark.parametrize("cause", [task, silence])
@pytest.mark.parametrize("name", ROBOTS)
def test_a_stop_stays_on_the_path_of_the_chunk(name: str, cause: Callable[[Cell], None]) -> None:
    cell, twin = (moving(name, joint_state_timeout_s=0.05) for _ in range(2))
    cause(cell)
    assert cell.executor.counters.stops_on_path == len(cell.robot.arms)
    cell.tick(round(0.8 * RATES[name]))
    twin.tick(round(0.5 * RATES[name]))
    assert cell.executor.motion.still
    for joints in cell.robot.arms:
        stopped, way = cell.sent[-round(0.8 * RATES[name]) :, joints], twin.sent[:, joints]
        # Between two ticks of the twin its way is nearly a line: half of its largest step is the error of this measure.
        coarse = np.abs(np.diff(way, axis=0)).max() / 2.0
        distances = [np.abs(way - point).max(axis=1).min() for point in stopped]
        assert max(distances) < coarse + 1e-4, max(distances)
        assert np.abs(stopped[-1] - stopped[0]).max() > 0.005


@pytest.mark.parametrize("cause", [e_stop, hardware])
def test_an_e_stop_or_a_fault_is_the_fastest_stop_and_interrupts_one_on_the_path(
    cause: Callable[[Cell], None],
) -> None:
    slow, fast = moving("so101"), moving("so101")
    task(slow)
    task(fast)
    slow.tick(3)
    fast.tick(3)
    cause(fast)
    ticks = {"slow": 0, "fast": 0}
    for key, cell in (("slow", slow), ("fast", fast)):
        while not cell.executor.motion.still:
            cell.tick()
            ticks[key] += 1
    assert ticks["fast"] < ticks["slow"]
    assert_within_limits(fast.sent, fast.robot.limits, 0.01)


@pytest.mark.parametrize("name", ROBOTS)
def test_an_arm_that_does_not_do_as_it_is_told_is_stopped_as_by_an_e_stop(name: str) -> None:
    blocked, told = (moving(name, frozen_s=0.1, frozen_travel=0.01) for _ in range(2))
    blocked.follow = told.follow = 0.0
    ticks = 0
    while blocked.executor.state is State.TRACKING:
        blocked.tick()
        ticks += 1
    assert "feedback frozen" in blocked.executor.reason
    told.tick(ticks - 1)
    e_stop(told)
    told.tick()
    for cell in (blocked, told):
        cell.tick(round(0.8 * RATES[name]))
        assert cell.executor.motion.still
    arms = [j for j in range(blocked.robot.dof) if j not in blocked.robot.gripper_indices]
    np.testing.assert_array_equal(blocked.sent[:, arms], told.sent[:, arms])


def test_a_stop_of_one_arm_stops_both() -> None:
    cell = moving("yam", max_tracking_error=0.05)
    cell.noise = 1e-5
    cell.follow = np.array([0.0] * 7 + [1.0] * 7)  # the left arm is blocked
    cell.tick(160)
    assert cell.executor.state is State.FAULT
    assert "left_joint" in cell.executor.reason
    cell.tick(200)
    assert cell.executor.motion.still
    assert cell.commands[-1] is None, "both arms rest and are let go"


def test_a_chunk_interrupts_a_stop_and_the_motion_stays_smooth() -> None:
    cell = moving("so101")
    task(cell)
    cell.tick(4)
    assert not cell.executor.motion.still
    cell.send(ramp(0.2, start=cell.position))
    assert cell.executor.state is State.TRACKING
    assert cell.executor.stop_due_ns is None
    cell.tick(60)
    assert_within_limits(cell.sent, cell.robot.limits, 0.01)


@pytest.mark.parametrize("name", ROBOTS)
def test_the_end_of_a_chunk_is_a_stop_with_a_computed_time(name: str) -> None:
    cell = moving(name)
    while cell.executor.state is not State.STOPPING:
        cell.tick()
    due = cell.executor.stop_due_ns
    assert due is not None
    while cell.now_ns < due:
        cell.tick()
    assert cell.executor.state is State.HOLDING
    arm = [j for j in range(cell.robot.dof) if j not in cell.robot.gripper_indices]
    np.testing.assert_allclose(cell.sent[-1][arm], bow(cell.robot)[-1][arm], atol=5e-3)
