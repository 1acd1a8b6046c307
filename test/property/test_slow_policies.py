"""A policy may be slow: an arm that waits at rest follows its plan from the beginning, in order, for any latency up to
the horizon.

Pins: an arm at rest was judged by the row that was due by then, so a policy of 0.5 to 1.0 s a chunk never moved it, or
began in the middle of its plan.
"""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import Cell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.supervisor import State

QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def lift_then_swing(robot) -> np.ndarray:
    """The second arm joint by 0.4 rad, then the first by 0.4 rad; the others stay."""
    rows = np.tile(robot.rest_position, (robot.horizon, 1))
    half = robot.horizon // 2
    up = np.clip(np.arange(1, robot.horizon + 1) / half, 0.0, 1.0)
    over = np.clip(np.arange(1, robot.horizon + 1) / half - 1.0, 0.0, 1.0)
    rows[:, 1] += 0.4 * up
    rows[:, 0] += 0.4 * over
    return rows


@pytest.mark.parametrize("name", ["so101", "yam", "franka"])
@QUICK
@given(st.floats(0.0, 0.98))
def test_a_late_plan_is_followed_in_order_from_rest(name: str, share: float) -> None:
    robot = embodiment(name)
    cell = Cell(ExecutorConfig(chunk_timeout_s=5.0), robot=robot, follow=1.0)
    cell.arm()
    cell.tick(3)
    observed = cell.now_ns
    cell.tick(round(share * robot.horizon / robot.rate_hz / 0.01))
    assert cell.send(lift_then_swing(robot), stamp_ns=observed) is None, cell.executor.counters.last_refusal
    assert cell.executor.state is State.TRACKING
    first = len(cell.sent)
    cell.tick(round(robot.horizon / robot.rate_hz / 0.01) + 120)
    sent = cell.sent[first:]
    lifted, swung = sent[:, 1] - robot.rest_position[1], sent[:, 0] - robot.rest_position[0]
    assert lifted[-1] == pytest.approx(0.4, abs=0.02) and swung[-1] == pytest.approx(0.4, abs=0.02)
    # It must not have swung before it had lifted, as the plan has it.
    assert lifted[swung > 0.05].min() > 0.3
    assert np.all(np.diff(lifted) > -1e-3) and np.all(np.diff(swung) > -1e-3)


@pytest.mark.parametrize("latency_s", [0.5, 0.7, 0.95])
def test_a_slow_policy_moves_an_arm_from_rest_and_goes_on(latency_s: float) -> None:
    """One call in flight at a time, each of a plan from where the arm is seen: it moves on and on."""
    robot = embodiment("so101")
    cell = Cell(ExecutorConfig(arm_needs_chunk=True), robot=robot)
    ticks = round(latency_s / 0.01)
    seen, observed, armed = cell.position.copy(), cell.now_ns, False
    for i in range(6 * ticks):
        if i % ticks == ticks - 1:
            rows = np.tile(seen, (robot.horizon, 1))
            rows[:, :5] += 0.15 * (np.arange(robot.horizon) + 1)[:, None] / robot.horizon
            refusal = cell.send(rows, stamp_ns=observed)
            assert refusal is None, refusal
            seen, observed = cell.position.copy(), cell.now_ns
            if not armed:
                cell.arm()
                armed = True
        cell.tick()
    assert np.all(cell.position[:5] - robot.rest_position[:5] > 0.2)


def test_arming_names_the_refusal_of_the_chunks_that_came() -> None:
    robot = embodiment("so101")
    cell = Cell(ExecutorConfig(arm_needs_chunk=True), robot=robot)
    rows = np.tile(robot.rest_position, (robot.horizon, 1))
    rows[:, 0] += 1.0
    assert cell.send(rows) is not None
    done, message = cell.executor.arm(cell.now_ns)
    assert not done and "the last one was refused: the action chunk starts 1.000 rad from the measured" in message
