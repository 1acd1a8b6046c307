"""An arm that rests a little outside its limits: it is armed where it is, comes in, and gets no further out."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import Cell, assert_within_limits, ramp

from molmoact2_ros.embodiments import JointLimits, embodiment
from molmoact2_ros.execution.executor import ExecutorConfig
from molmoact2_ros.execution.supervisor import State


def cell_outside(name: str, degrees: float, **config: float) -> Cell:
    """An arm at rest whose second and last arm joints are so far outside, one on either side."""
    robot = embodiment(name)
    cell = Cell(ExecutorConfig(**config), robot=robot)
    last = int(np.arange(robot.dof)[robot.arms[0]][-1])
    cell.position[1] = robot.limits.lower[1] - np.radians(degrees)
    cell.position[last] = robot.limits.upper[last] + np.radians(degrees)
    cell.tick()
    cell.now_ns += 400_000_000
    cell.settle()
    return cell


def assert_only_inward(cell: Cell, rounding: float = 1e-9) -> None:
    """No joint that is outside goes further out, and all keep their limits but for where they started."""
    sent, limits = cell.sent, cell.robot.limits
    below, above = np.maximum(limits.lower - sent, 0.0), np.maximum(sent - limits.upper, 0.0)
    assert np.diff(below, axis=0).max() <= rounding
    assert np.diff(above, axis=0).max() <= rounding
    wide = JointLimits(
        np.minimum(limits.lower, sent[0]),
        np.maximum(limits.upper, sent[0]),
        limits.velocity,
        limits.acceleration,
        limits.jerk,
    )
    assert_within_limits(sent, wide, cell.period_ns * 1e-9)


@pytest.mark.parametrize("name", ["so101", "yam", "franka", "panda"])
def test_an_arm_four_degrees_outside_is_armed_and_goes_to_the_start_pose(name: str) -> None:
    cell = cell_outside(name, 4.0)
    start = cell.position.copy()
    cell.arm()
    cell.tick(30)
    assert cell.executor.state is State.HOLDING, cell.executor.reason
    np.testing.assert_allclose(cell.sent, np.tile(start, (30, 1)), atol=2e-6)  # nothing pulls at it
    done, message = cell.executor.go_to_start(cell.now_ns)
    assert done, message
    cell.tick(3000)
    assert cell.executor.state is State.HOLDING, cell.executor.reason
    np.testing.assert_allclose(cell.position, cell.robot.rest_position, atol=1e-3)
    assert_only_inward(cell)


def test_chunks_bring_it_in_and_those_that_ask_to_stay_outside_do_not_take_it_out() -> None:
    cell = cell_outside("so101", 4.0)
    limits, start = cell.robot.limits, cell.position.copy()
    cell.arm()
    away = ramp(0.0, start=np.minimum(start, limits.upper + 0.049))
    away[:, 1] = limits.lower[1] - np.linspace(0.0, 0.049, len(away))  # as far out as a target may be
    for rows in (away, ramp(0.0, start=np.clip(start, limits.lower, limits.upper))):
        assert cell.send(rows) is None
        cell.tick(60)
    assert np.all(cell.sent[-1] >= limits.lower - 1e-9) and np.all(cell.sent[-1] <= limits.upper + 1e-9)
    inside = cell.sent[-1].copy()
    assert cell.send(np.where(np.arange(6) == 1, limits.lower[1] - 0.049, np.tile(inside, (30, 1)))) is None
    cell.tick(60)
    assert np.all(cell.sent[-60:] >= limits.lower) and np.all(cell.sent[-60:] <= limits.upper)
    assert_only_inward(cell)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_chunks_say_it_gets_no_further_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = cell_outside("so101", float(rng.uniform(0.1, 5.7)))
    limits = cell.robot.limits
    cell.arm()
    for _ in range(10):
        way = rng.uniform(-0.3, 0.3, 6) * np.array([1, 1, 1, 1, 1, 0])
        rows = cell.position + way * np.linspace(0.0, 1.0, 30)[:, None] ** rng.uniform(0.7, 2.0)
        cell.send(np.clip(rows, limits.lower - 0.04, limits.upper + 0.04))
        cell.tick(int(rng.integers(3, 30)))
        if rng.random() < 0.2:
            cell.executor.on_task(cell.now_ns)
    cell.tick(100)
    assert cell.executor.counters.chunks_accepted > 5
    assert_only_inward(cell, rounding=5e-5)  # the end of a stop turns back by some microradians


def test_stops_on_its_way_in_leave_it_where_they_end() -> None:
    cell = cell_outside("so101", 5.0, ramp_speed=0.5)
    cell.arm()
    for stop in (cell.executor.on_task, lambda now: cell.executor.on_e_stop(True, now)):
        done, message = cell.executor.go_to_start(cell.now_ns)
        assert done, message
        cell.tick(25)
        stop(cell.now_ns)
        cell.tick(60)
    assert cell.executor.state is State.ESTOPPED
    assert_only_inward(cell)


def test_twelve_degrees_outside_are_refused_with_what_is_wrong_and_what_helps() -> None:
    cell = cell_outside("so101", 12.0)
    for call in (cell.executor.arm, cell.executor.go_to_start):
        done, message = call(cell.now_ns)
        assert not done
        assert "shoulder_lift is at -2.094 rad, outside its limits -1.885 to 1.885" in message or (
            "wrist_roll is at 3.050 rad, outside its limits -2.744 to 2.841" in message
        )
        assert "further than the 0.1 rad from which it comes in by itself" in message
        assert "switch its power off, move it inside by hand" in message
    cell.tick(5)
    assert not len(cell.sent)
