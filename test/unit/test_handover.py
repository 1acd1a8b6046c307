"""What a leader may do, and what ends its turn: the arm then holds in the person's hands, with a reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from execution_cell import ROBOT, assert_within_limits
from handover_cell import ARM, HandoverCell

from molmoact2_ros.execution.handover import Phase
from molmoact2_ros.execution.supervisor import State


def silent(cell: HandoverCell) -> None:
    cell.leader = False


def nan(cell: HandoverCell) -> None:
    position = cell.hand.copy()
    position[2] = np.nan
    assert "NaN" in str(cell.lead(position))


def absurd(cell: HandoverCell) -> None:
    position = cell.hand.copy()
    position[1] = 40.0
    assert "far outside" in str(cell.lead(position))


def jump(cell: HandoverCell) -> None:
    cell.hand = cell.hand + 0.9
    assert "jumped" in str(cell.lead())


def frozen_stamp(cell: HandoverCell) -> None:
    """The same reading over and over: repeated, and then silence."""
    cell.leader = False
    stamp = cell.now_ns
    for _ in range(40):
        cell.lead(stamp_ns=stamp)
        cell.tick()


def late(cell: HandoverCell) -> None:
    """Each reading is half a second old when it comes."""
    cell.leader = False
    for _ in range(60):
        cell.lead(stamp_ns=cell.now_ns - 500_000_000)
        cell.tick()


def future(cell: HandoverCell) -> None:
    assert "future" in str(cell.lead(stamp_ns=cell.now_ns + 10**9))


def second_leader(cell: HandoverCell) -> None:
    assert "2 leaders speak at once" in str(cell.lead(cell.hand, publisher="another"))


def other_joints(cell: HandoverCell) -> None:
    assert cell.handover.on_leader(["a", "b"], [0.0, 0.0], cell.now_ns, cell.now_ns, "one") is not None


LOST = [
    (silent, "newest reading is"),
    (frozen_stamp, "newest reading is"),
    (late, "newest reading is"),
    (nan, "NaN"),
    (absurd, "far outside the arm's limits"),
    (jump, "jumped from"),
    (future, "in the future"),
    (second_leader, "2 leaders speak at once"),
    (other_joints, "missing from the message"),
]


@pytest.mark.parametrize(("fault", "reason"), LOST, ids=lambda value: getattr(value, "__name__", ""))
def test_a_lost_leader_holds_the_arm_and_the_policy_does_not_go_on(
    fault: Callable[[HandoverCell], None], reason: str
) -> None:
    cell = HandoverCell()
    cell.policy = True
    cell.taken_over()
    cell.move_hand(1.0, 60)
    at = len(cell.sent)
    fault(cell)
    cell.tick(100)
    assert cell.executor.state is State.HOLDING and reason in cell.executor.reason, cell.executor.reason
    assert cell.handover.phase is Phase.HELD and cell.handover.drives == "nobody"
    assert not np.ptp(cell.sent[-30:], axis=0).any()
    assert np.abs(cell.sent[at:] - cell.sent[at])[:, ARM].max() < 0.4
    assert_within_limits(cell.sent, ROBOT.limits, 0.01)
    # Once it is sound again the person takes over anew, or gives back.
    cell.leader = True
    cell.tick(60)
    assert cell.executor.state is State.HOLDING
    done, message = cell.handover.take_over(cell.now_ns)
    assert done, message
    cell.until(Phase.DRIVING)
    cell.handover.give_back(cell.now_ns)
    cell.until(Phase.POLICY)
    cell.tick(60)
    assert cell.handover.drives == "policy"
    assert_within_limits(cell.sent, ROBOT.limits, 0.01)


def test_repeated_and_overtaken_readings_are_counted_and_move_nothing() -> None:
    cell = HandoverCell()
    cell.taken_over()
    cell.move_hand(0.5, 40)
    elsewhere = cell.hand + 0.2
    before = cell.sent[-1].copy()
    for _ in range(20):
        cell.lead()
        cell.lead(elsewhere)
        cell.lead(elsewhere, stamp_ns=cell.now_ns - 60_000_000)
        cell.tick()
    counters = cell.executor.counters
    assert counters.leader_repeated > 10 and counters.leader_out_of_order > 10
    assert cell.handover.phase is Phase.DRIVING
    assert np.abs(cell.sent[-1] - before)[ARM].max() < 0.05


def test_lost_readings_are_borne() -> None:
    cell = HandoverCell()
    cell.taken_over()
    for _ in range(60):
        cell.leader = cell.rng.random() < 0.6
        cell.move_hand(0.5, 2)
    cell.leader = True
    cell.tick(60)
    assert cell.handover.phase is Phase.DRIVING, cell.executor.reason
    assert np.abs(cell.sent[-1] - cell.hand)[ARM].max() < 0.01


@pytest.mark.parametrize("count", [0, 3, 40])
def test_an_e_stop_beats_a_takeover_at_any_moment(count: int) -> None:
    cell = HandoverCell()
    cell.leader = cell.policy = True
    cell.arm()
    cell.tick(60)
    assert cell.handover.take_over(cell.now_ns)[0]
    cell.tick(count)
    cell.executor.on_e_stop(True, cell.now_ns)
    at = len(cell.sent)
    cell.move_hand(2.0, 100)
    assert cell.executor.state is State.ESTOPPED and not cell.handover.take_over(cell.now_ns)[0]
    assert np.abs(cell.sent[at:] - cell.sent[at - 1])[:, ARM].max(initial=0.0) < 0.1
    cell.executor.on_e_stop(False, cell.now_ns)
    assert cell.executor.reset_e_stop(cell.now_ns)[0]
    assert cell.handover.phase is Phase.POLICY
    assert "arm first" in cell.handover.take_over(cell.now_ns)[1]


def test_disarming_ends_the_persons_turn() -> None:
    cell = HandoverCell()
    cell.taken_over()
    assert cell.executor.disarm(cell.now_ns)[0]
    cell.tick(60)
    assert cell.executor.state is State.DISARMED and cell.handover.phase is Phase.POLICY


def test_a_takeover_needs_a_leader_that_has_been_sound_for_a_while() -> None:
    cell = HandoverCell()
    cell.arm()
    cell.tick(10)
    assert "no leader has been heard" in cell.handover.take_over(cell.now_ns)[1]
    cell.leader = True
    cell.tick(6)
    assert "are wanted" in cell.handover.take_over(cell.now_ns)[1]
    cell.tick(30)
    assert cell.handover.take_over(cell.now_ns)[0]
    assert cell.handover.take_over(cell.now_ns) == (True, f"already taken over: {cell.executor.reason}")


def test_a_clock_that_is_set_back_holds_the_arm_and_the_leader_is_heard_again() -> None:
    cell = HandoverCell()
    cell.taken_over()
    cell.now_ns -= 3600 * 10**9
    cell.tick(60)
    assert cell.executor.state is State.HOLDING and cell.handover.phase is Phase.HELD
    done, message = cell.handover.take_over(cell.now_ns)
    assert done, message
    cell.until(Phase.DRIVING)


def test_a_new_task_leaves_the_person_driving() -> None:
    cell = HandoverCell()
    cell.policy = True
    cell.taken_over()
    cell.executor.on_task(cell.now_ns)
    cell.tick(20)
    assert cell.handover.phase is Phase.DRIVING


def test_who_drives_is_said_with_the_values() -> None:
    cell = HandoverCell()
    cell.taken_over()
    cell.tick(5)
    values = cell.executor.values(cell.now_ns)
    assert values["drives"] == "teleop" and values["handover"] == "teleop" and values["takeovers"] == 1
