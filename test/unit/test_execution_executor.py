"""The executor: what the arm is told, and what it is never told."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import PERIOD_NS, ROBOT, TIMES, Cell, assert_within_limits, ramp
from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_ros.execution.executor import ExecutorConfig
from molmoact2_ros.execution.supervisor import State


def armed(**figures: float) -> Cell:
    cell = Cell(ExecutorConfig(**figures))
    cell.arm()
    return cell


def test_nothing_is_commanded_while_disarmed() -> None:
    cell = Cell()
    assert cell.send(ramp(0.3)) is None
    cell.tick(20)
    assert cell.commands == [None] * 20
    assert cell.executor.state is State.DISARMED
    assert cell.executor.counters.chunks_previewed == 1


def test_the_first_command_is_the_measured_position_even_with_a_chunk_waiting() -> None:
    cell = Cell()
    cell.position = ROBOT.rest_position + 0.07
    cell.tick(35)
    measured = cell.position.copy()
    cell.arm()
    assert cell.send(ramp(0.3, start=measured)) is None
    cell.tick()
    np.testing.assert_array_equal(cell.commands[-1], measured)


@pytest.mark.parametrize("lead_s", [0.0, 0.02])
def test_a_chunk_is_followed_in_time(lead_s: float) -> None:
    """A command takes its period, and its way to the robot, until the arm can be where it says."""
    cell = armed(lead_s=lead_s)

    def wanted(time_s: float | np.ndarray) -> np.ndarray:
        return ROBOT.rest_position[:5] + 0.15 * (1 - np.cos(np.pi * np.asarray(time_s)))[..., None]

    rows = ramp(0.3)
    rows[:, :5] = wanted(np.array(TIMES))
    cell.send(rows)
    sent_ns = cell.now_ns
    cell.tick(20)
    for _ in range(3):
        cell.tick(20)
        assert cell.executor.state is State.TRACKING
        due_s = (cell.now_ns - sent_ns) * 1e-9 + 0.01 + lead_s
        # 10 ms are 2.6 to 4.7 mrad here; the spline is smoothed a little.
        np.testing.assert_allclose(cell.commands[-1][:5], wanted(due_s), atol=2e-3)


def test_late_rows_are_skipped() -> None:
    cell = armed()
    assert cell.send(ramp(0.0)) is None  # it is followed: absolute time counts from here on
    cell.tick(5)
    early = cell.now_ns
    cell.tick(20)
    rows = ramp(0.3)
    # The late rows point the other way: to play them would show.
    rows[:6, :5] = ROBOT.rest_position[:5] - 0.05
    assert cell.send(rows, stamp_ns=early) is None
    assert cell.executor.counters.late_rows == 6
    before = cell.sent[-1]
    cell.tick(45)
    assert np.all(cell.sent[-45:, :5] >= before[:5] - 1e-3)
    np.testing.assert_allclose(cell.sent[-1][:5], (rows[18, :5] + rows[19, :5]) / 2, atol=0.02)


def test_older_and_repeated_chunks_change_nothing() -> None:
    cell, twin = armed(), armed()
    for c in (cell, twin):
        c.tick(10)
        c.send(ramp(0.3))
        c.tick(10)
    stamp = cell.now_ns - 10 * PERIOD_NS
    assert cell.send(ramp(-0.3), stamp_ns=stamp) is None
    assert cell.send(ramp(-0.3), stamp_ns=stamp - PERIOD_NS) is None
    assert cell.executor.counters.chunks_ignored == 2
    for c in (cell, twin):
        c.tick(30)
    np.testing.assert_array_equal(cell.sent, twin.sent)


@pytest.mark.parametrize("event", ["task", "arming"])
def test_chunks_observed_before_the_epoch_are_ignored(event: str) -> None:
    cell = armed()
    cell.tick(10)
    old = cell.now_ns
    cell.tick(10)
    if event == "task":
        cell.executor.on_task(cell.now_ns)
    else:
        cell.executor.disarm(cell.now_ns)
        cell.tick(2)
        cell.arm()
    assert cell.send(ramp(0.3), stamp_ns=old) is None
    assert cell.executor.state is State.HOLDING
    assert cell.executor.counters.chunks_ignored == 1
    cell.tick()
    assert cell.send(ramp(0.3)) is None
    assert cell.executor.state is State.TRACKING


def garbage() -> dict[str, tuple[dict, str]]:
    good = ramp(0.3)
    nan, huge, jump, far = good.copy(), good.copy(), good.copy(), good.copy()
    nan[7, 2], huge[3, 1], jump[10:, 0] = np.nan, 1e6, good[10:, 0] + 0.5
    far[:, 0] += 0.8
    wrong = ("joint1", *ROBOT.joint_names[1:])
    return {
        "NaN": ({"rows": nan}, "row 7 of the action chunk has nan for elbow_flex"),
        "huge": ({"rows": huge}, "asks 1e\\+06 rad of shoulder_lift"),
        "jump": ({"rows": jump}, "jumps by 0.5.. rad at shoulder_pan between rows 9 and 10"),
        "far": ({"rows": far}, "starts 0.7.. rad from the measured shoulder_pan"),
        "empty": ({"rows": good[:0]}, "has 0 rows"),
        "wrong joints": ({"rows": good, "names": wrong}, "names joints"),
        "missing joint": ({"rows": good[:, :5], "names": ROBOT.joint_names[:5]}, "names joints"),
        "joint twice": ({"rows": good, "names": (*ROBOT.joint_names[:5], "wrist_roll")}, "names joints"),
        "short rows": ({"rows": good[:, :5]}, "row 0 of the action chunk has 5 positions, expected 6"),
        "wrong rate": ({"rows": good, "times": [0.1 * (i + 1) for i in range(30)]}, "timed 0.1000 s to 3.0000 s"),
        "no times": ({"rows": good, "times": []}, "timed none"),
        "future": ({"rows": good, "stamp_ns": 500_000_000}, "0.500 s in the future"),
        "all late": ({"rows": good, "stamp_ns": -1_000_000_000}, "no row of its 1.000 s horizon is left"),
    }


@pytest.mark.parametrize("name", garbage())
def test_garbage_is_refused_in_one_sentence_and_changes_no_command(name: str) -> None:
    chunk, reason = garbage()[name]
    cell, twin = armed(), armed()
    for c in (cell, twin):
        c.tick(150)
        if name != "all late":
            c.send(ramp(0.2))
            c.tick(20)
    if "stamp_ns" in chunk:
        chunk = {**chunk, "stamp_ns": cell.now_ns + chunk["stamp_ns"]}
    refusal = cell.send(**chunk)
    assert refusal is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refusal.reason)
    assert cell.executor.counters.last_refusal == refusal.reason
    assert "\n" not in refusal.reason
    for c in (cell, twin):
        c.tick(40)
    np.testing.assert_array_equal(cell.sent, twin.sent)
    assert cell.executor.state is twin.executor.state


def test_joints_in_another_order_are_put_in_place() -> None:
    cell, twin = armed(), armed()
    order = [3, 5, 0, 1, 4, 2]
    cell.send(ramp(0.2)[:, order], names=[ROBOT.joint_names[j] for j in order])
    twin.send(ramp(0.2))
    for c in (cell, twin):
        c.tick(30)
    np.testing.assert_array_equal(cell.sent, twin.sent)


def test_policy_silence_decelerates_to_a_hold_on_the_last_row() -> None:
    cell = armed()
    stamp = cell.now_ns
    cell.send(ramp(0.6))
    while cell.executor.state is not State.HOLDING or cell.now_ns == stamp:
        cell.tick()
        assert cell.now_ns - stamp <= 1_250_000_000, (cell.executor.state, cell.executor.reason)
    assert "policy silent for 1.1" in cell.executor.reason
    at_rest = cell.sent[-1]
    cell.tick(50)
    np.testing.assert_array_equal(cell.sent[-50:], np.tile(at_rest, (50, 1)))
    assert np.all(at_rest[:5] <= ramp(0.6)[-1, :5] + 1e-9), "it went on beyond what the policy asked"
    np.testing.assert_allclose(at_rest[:5], ramp(0.6)[-1, :5], atol=2e-3)


def test_a_new_chunk_after_a_hold_goes_on() -> None:
    cell = armed()
    cell.send(ramp(0.2))
    cell.tick(150)
    assert cell.executor.state is State.HOLDING
    cell.send(ramp(0.2, start=cell.position))
    assert cell.executor.state is State.TRACKING


def test_the_gripper_keeps_its_target_through_a_halt() -> None:
    cell = armed()
    rows = ramp(0.5)
    rows[:, 5] = 1.0
    cell.send(rows)
    cell.tick(15)
    assert cell.sent[-1][5] < 0.9
    cell.executor.on_task(cell.now_ns)
    cell.tick(100)
    assert cell.executor.state is State.HOLDING
    assert cell.sent[-1][5] == pytest.approx(1.0)


def test_joint_state_silence_holds_and_says_so_and_goes_on_after_it() -> None:
    cell = armed()
    cell.send(ramp(0.6))
    cell.tick(30)
    cell.encoders_work = False
    cell.tick(60)
    assert cell.executor.state is State.HOLDING
    assert "joint_states silent for 0.2" in cell.executor.reason
    refusal = cell.send(ramp(0.1, start=cell.position))
    assert refusal is not None and "joint_states silent" in refusal.reason
    cell.encoders_work = True
    cell.tick(2)
    assert "joint_states are back" in cell.executor.reason
    assert cell.send(ramp(0.1, start=cell.position)) is None
    assert cell.executor.state is State.TRACKING


def test_a_blocked_arm_is_a_fault_that_only_disarming_leaves() -> None:
    cell = armed()
    cell.follow, cell.noise = 0.0, 1e-4
    assert cell.send(ramp(0.6)) is None
    cell.tick(150)
    assert cell.executor.state is State.FAULT
    assert "tracking error" in cell.executor.reason
    assert not cell.executor.arm(cell.now_ns)[0]
    cell.send(ramp(0.1))
    assert cell.executor.state is State.FAULT
    cell.executor.disarm(cell.now_ns)
    cell.tick(2)
    assert cell.executor.state is State.DISARMED
    cell.arm()


def test_an_e_stop_stays_until_reset_and_reset_needs_its_release() -> None:
    cell = armed()
    cell.send(ramp(0.6))
    cell.tick(40)
    cell.executor.on_e_stop(True, cell.now_ns)
    assert cell.executor.state is State.ESTOPPED
    cell.tick(60)
    assert cell.commands[-1] is None, "an arm that rests after an e-stop is let go: no old pose may come back"
    cell.executor.on_e_stop(False, cell.now_ns)
    cell.send(ramp(0.2, start=cell.position))
    cell.tick(20)
    assert cell.executor.state is State.ESTOPPED
    assert cell.commands[-20:] == [None] * 20
    assert not cell.executor.arm(cell.now_ns)[0]
    cell.executor.on_e_stop(True, cell.now_ns)
    assert cell.executor.reset_e_stop(cell.now_ns) == (False, "not reset: e-stop pressed; release it")
    cell.executor.on_e_stop(False, cell.now_ns)
    assert cell.executor.reset_e_stop(cell.now_ns)[0]
    assert cell.executor.state is State.DISARMED
    cell.tick(5)
    assert cell.commands[-5:] == [None] * 5


def test_disarming_decelerates_first() -> None:
    cell = armed()
    cell.send(ramp(0.6))
    cell.tick(50)
    cell.executor.disarm(cell.now_ns)
    assert cell.executor.state is State.STOPPING
    cell.tick(60)
    assert cell.executor.state is State.DISARMED
    assert cell.commands[-1] is None
    assert_within_limits(cell.sent, ROBOT.limits, 0.01)


def test_arming_is_refused_with_the_reason() -> None:
    cell = Cell()
    cell.encoders_work = False
    cell.tick(100)
    done, message = cell.executor.arm(cell.now_ns)
    assert not done and "joint_states silent for 1.00 s" in message
    cell.encoders_work = True
    cell.position = ROBOT.limits.upper + 0.2
    cell.tick(35)
    done, message = cell.executor.arm(cell.now_ns)
    assert not done and "outside its limits" in message and "switch its power off" in message


@pytest.mark.parametrize("jump_s", [1.0, -1.0])
def test_a_jump_of_the_clock_halts_and_the_arm_goes_on_with_fresh_chunks(jump_s: float) -> None:
    cell = armed()
    cell.tick(120)
    cell.send(ramp(0.6))
    cell.tick(30)
    cell.now_ns += round(jump_s * 1e9)
    cell.tick(60)
    assert cell.executor.state is State.HOLDING, cell.executor.reason
    assert "its clock jumped" in cell.executor.reason
    assert_within_limits(cell.sent, ROBOT.limits, 0.01)
    assert cell.send(ramp(0.1, start=cell.position)) is None
    assert cell.executor.state is State.TRACKING


def hostile_run(seed: int, ticks: int = 250) -> Cell:
    """Chunks with noise, jumps, delays, losses and wrong order, e-stops, tasks, silences; from one random generator."""
    rng = np.random.default_rng(seed)
    cell = Cell(follow=float(rng.uniform(0.1, 1.0)))
    cell.arm()
    noise, speed = 10 ** rng.uniform(-4, -1), rng.uniform(0, 4)
    for _ in range(ticks):
        draw = rng.random()
        if draw < 0.15:
            rows = ramp(0.0, start=cell.position, rows=int(rng.integers(1, 60)))
            rows[:, :5] += rng.normal(0, speed, 5) * (np.arange(len(rows)) + 1)[:, None] / 30
            rows += rng.normal(0, noise, rows.shape)
            rows[:, 5] = rng.uniform(ROBOT.limits.lower[5], ROBOT.limits.upper[5])
            if draw < 0.12:
                rows = np.clip(rows, ROBOT.limits.lower, ROBOT.limits.upper)
            if draw < 0.02:
                rows[int(rng.integers(len(rows)))] = rng.choice([np.nan, np.inf, 1e6, -1e6])
            cell.send(rows, stamp_ns=cell.now_ns - int(rng.exponential(2e8)))
        elif draw < 0.16:
            cell.executor.on_task(cell.now_ns)
        elif draw < 0.165:
            cell.executor.on_e_stop(True, cell.now_ns)
            cell.executor.on_e_stop(False, cell.now_ns)
        elif draw < 0.17:
            cell.executor.disarm(cell.now_ns)
        elif draw < 0.2:
            cell.encoders_work = not cell.encoders_work
        elif draw < 0.22:
            cell.executor.reset_e_stop(cell.now_ns)
            if cell.executor.state is State.DISARMED and cell.executor.arm(cell.now_ns)[0]:
                cell.commands.append(None)
        elif draw < 0.225:
            cell.now_ns += int(rng.integers(0, 4e8))
        cell.tick()
    return cell


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_hostile_stream_of_chunks_brings_a_set_point_outside_a_limit(seed: int) -> None:
    cell = hostile_run(seed)
    # Each arming starts a motion of its own, from the measured position; it is marked by a None.
    piece: list[np.ndarray] = []
    for command in [*cell.commands, None]:
        if command is not None:
            piece.append(command)
        elif piece:
            assert_within_limits(np.array(piece), ROBOT.limits, 0.01)
            piece = []


def test_the_same_seed_gives_the_same_motion() -> None:
    np.testing.assert_array_equal(hostile_run(7).sent, hostile_run(7).sent)


def test_noisy_chunks_are_followed_smoothly_and_on_time() -> None:
    rng = np.random.default_rng(3)
    cell = armed()

    def path(t: np.ndarray) -> np.ndarray:
        return ROBOT.rest_position + 0.3 * np.sin(2.0 * t)[:, None] * np.array([1, 0.7, 0.6, 0.5, 1, 0])

    start, errors = cell.now_ns, []
    for tick in range(600):
        if tick % 20 == 0:
            seconds = (cell.now_ns - start) * 1e-9
            cell.send(path(seconds + np.array(TIMES)) + rng.normal(0, 0.005, (30, 6)))
        cell.tick()
        errors.append(cell.sent[-1] - path(np.array([(cell.now_ns - start) * 1e-9]))[0])
    assert np.sqrt(np.mean(np.array(errors)[100:, :5] ** 2)) < 0.005, "worse than the noise of the rows themselves"
    jerk = np.diff(cell.sent[100:, :5], n=3, axis=0) * 1e6 / ROBOT.limits.jerk[:5]
    assert np.sqrt(np.mean(jerk**2)) < 0.15


def test_an_arm_that_sags_begins_at_its_target_again_and_one_that_was_silent_where_it_is() -> None:
    cell = Cell(ExecutorConfig(max_tracking_error=0.5), follow=1.0)
    cell.sag = np.array([0.0, -0.06, 0.0, 0.0, 0.0, 0.0])
    cell.arm()
    target = cell.position.copy()
    cell.tick(80)
    cell.executor.disarm(cell.now_ns)
    cell.tick(20)
    for _ in range(5):  # held again and again, it does not sink
        cell.arm()
        cell.tick()
        np.testing.assert_allclose(cell.sent[-1], target, atol=1e-9)
        cell.tick(80)
        cell.executor.disarm(cell.now_ns)
        cell.tick(20)
    cell.arm()
    cell.encoders_work = False
    cell.tick(80)  # nothing is known of an arm that is silent, though its target stays the same
    cell.encoders_work = True
    cell.executor.disarm(cell.now_ns)
    cell.tick(35)
    cell.arm()
    cell.tick()
    np.testing.assert_allclose(cell.sent[-1], target + cell.sag, atol=1e-9)
