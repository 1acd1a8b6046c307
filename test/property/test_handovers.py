"""A hundred handovers at random moments, to leaders at random places, and back: no jump, and nobody else's motion.

Each is a policy in motion, a takeover, a person who moves the leader, a giving back, and the policy again.
"""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import ROBOT, assert_within_limits
from handover_cell import ARM, HandoverCell

from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.handover import Phase
from molmoact2_ros.execution.supervisor import State

HANDOVERS, CELLS = 100, 5
PERIOD_S = 0.01


def steps(sent: np.ndarray) -> np.ndarray:
    """The largest step of a joint at each tick, as a share of what its velocity limit allows."""
    return np.asarray((np.abs(np.diff(sent, axis=0)) / (ROBOT.limits.velocity * PERIOD_S)).max(axis=1))


def rests_at(sent: np.ndarray, tick: int) -> bool:
    return bool(np.array_equal(sent[tick - 1], sent[tick]))


@pytest.mark.parametrize("seed", [pytest.param(i, marks=pytest.mark.slow if i > 1 else ()) for i in range(CELLS)])
def test_a_hundred_handovers_without_a_jump(seed: int) -> None:
    cell = HandoverCell(seed=seed)
    rng = np.random.default_rng(100 + seed)
    cell.leader = True
    cell.arm()
    for _ in range(HANDOVERS // CELLS):
        cell.policy = True
        cell.tick(int(rng.integers(20, 120)))
        assert cell.executor.state is State.TRACKING and cell.handover.drives == "policy"
        # The person grips the leader somewhere, up to a quarter of the arm's range away.
        low, high = ROBOT.limits.lower, ROBOT.limits.upper
        cell.hand = np.clip(cell.position + rng.uniform(-0.25, 0.25, ROBOT.dof) * (high - low), low, high)
        cell.leader = False
        cell.tick(40)
        cell.leader = True
        cell.tick(30)
        done, message = cell.handover.take_over(cell.now_ns)
        assert done, message
        cell.until(Phase.DRIVING)
        at = len(cell.sent) - 1
        assert rests_at(cell.sent, at), "the leader was let in before the arm rested"
        cell.tick(20)
        assert np.ptp(cell.sent[at:][:, ARM], axis=0).max() < 1e-3, "it moved though the leader did not"
        for _ in range(int(rng.integers(1, 4))):
            # About the rest pose, or it ends on the table.
            cell.move_hand(1.0, int(rng.integers(10, 60)), ROBOT.rest_position + rng.uniform(-0.2, 0.2, ROBOT.dof))
        assert cell.handover.phase is Phase.DRIVING, cell.executor.reason
        accepted = cell.executor.counters.chunks_accepted
        done, message = cell.handover.give_back(cell.now_ns)
        assert done, message
        cell.until(Phase.POLICY)
        at = len(cell.sent) - 1
        assert rests_at(cell.sent, at), "the policy was let in before the arm rested"
        assert cell.executor.counters.chunks_accepted == accepted, "a chunk was followed while the person had the arm"
    assert_within_limits(cell.sent, ROBOT.limits, PERIOD_S)
    assert steps(cell.sent).max() <= 1.0 + 1e-9
    assert {"policy", "teleop", "nobody"} == set(cell.drove)


@pytest.mark.parametrize("away", [-0.4, 0.3])
def test_a_leader_drives_relative_to_where_it_was_until_both_meet(away: float) -> None:
    cell = HandoverCell()
    cell.hand = ROBOT.rest_position + np.array([away, away, away, away, away, 0.0])
    cell.taken_over()
    start, hand = cell.sent[-1].copy(), cell.hand.copy()
    # Towards the arm: it comes to meet the leader at half its speed, and never the other way.
    for _ in range(150):
        cell.hand[ARM] -= np.sign(away) * 0.006
        cell.tick()
    cell.tick(60)
    moved, led = (cell.sent[-1] - start)[ARM], (cell.hand - hand)[ARM]
    assert np.all(np.sign(moved) == np.sign(led))
    assert np.abs(cell.sent[-1] - cell.hand)[ARM].max() < 0.01, "they have not met"
    # From then on the arm is where the leader is.
    for _ in range(100):
        cell.hand[ARM] += 0.004
        cell.tick()
    cell.tick(60)
    assert np.abs(cell.sent[-1] - cell.hand)[ARM].max() < 0.01
    assert_within_limits(cell.sent, ROBOT.limits, PERIOD_S)


def test_a_leader_that_is_to_be_matched_drives_once_it_is_where_the_arm_is() -> None:
    cell = HandoverCell(ExecutorConfig(leader_match_rad=0.1))
    cell.hand = ROBOT.rest_position + 0.5
    cell.leader = True
    cell.arm()
    cell.tick(30)
    assert cell.handover.take_over(cell.now_ns)[0]
    cell.until(Phase.MATCHING)
    cell.tick(10)
    assert cell.executor.reason.startswith("matching") and cell.handover.drives == "nobody"
    start = cell.sent[-1].copy()
    while np.abs(cell.hand - start)[ARM].max() > 0.05:
        cell.hand += 0.01 * np.sign(start - cell.hand)
        cell.tick()
        assert np.array_equal(cell.sent[-1], start) or cell.handover.phase is Phase.DRIVING
    cell.until(Phase.DRIVING)
    assert_within_limits(cell.sent, ROBOT.limits, PERIOD_S)


def test_a_leader_that_does_not_come_leaves_the_arm_holding() -> None:
    cell = HandoverCell(ExecutorConfig(leader_match_rad=0.1, leader_match_timeout_s=1.0))
    cell.hand = ROBOT.rest_position + 0.5
    cell.leader = cell.policy = True
    cell.arm()
    cell.tick(50)
    assert cell.handover.take_over(cell.now_ns)[0]
    cell.until(Phase.HELD)
    assert "rad from the arm's" in cell.executor.reason
    at = len(cell.sent)
    cell.tick(50)
    assert not np.ptp(cell.sent[at:], axis=0).any(), "the policy went on by itself"


def test_the_arm_follows_a_moving_leader_closely_and_smoothly() -> None:
    cell = HandoverCell()
    cell.taken_over()
    base, led = cell.hand.copy(), []
    at = len(cell.sent)
    for i in range(500):
        cell.hand = base + 0.4 * np.sin(np.pi * i * PERIOD_S) * np.array([1, 1, -1, 1, 1, 0.5])
        led.append(cell.hand.copy())
        cell.tick()
    sent, wanted = cell.sent[at:][200:], np.array(led)[200:]
    assert np.abs(sent - wanted)[:, ARM].max() < 0.08
    # The leader's own motion needs 12.4 rad/s^3 at most; what its encoder's steps add stays small.
    jerk = np.diff(sent[:, ARM], n=3, axis=0) / PERIOD_S**3
    assert np.sqrt((jerk**2).mean(axis=0)).max() < 40.0
