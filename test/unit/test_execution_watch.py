"""Watches: each says what is wrong in one sentence; a missing input halts, an arm that disobeys is a fault."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import PERIOD_NS, ROBOT, Cell, ramp

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.supervisor import State


def tracking(noise: float = 1e-5, **figures: float) -> Cell:
    cell = Cell(ExecutorConfig(**figures), noise=noise)
    cell.arm()
    cell.tick(3)
    assert cell.send(ramp(0.6)) is None
    cell.tick(20)
    assert cell.executor.state is State.TRACKING
    return cell


def test_a_driver_that_repeats_its_last_reading_is_a_fault_and_an_arm_at_rest_is_not() -> None:
    cell = tracking(noise=0.0)
    cell.follow = 0.0
    cell.tick(60)
    # Fresh stamps, the same bits: what a driver gives whose motors have gone.
    assert cell.executor.state is State.FAULT
    assert "feedback frozen" in cell.executor.reason and "to the last bit" in cell.executor.reason

    still = Cell(noise=0.0)
    still.arm()
    still.tick(300)
    assert still.executor.state is State.HOLDING
    # It has stood for three seconds: what counts is how long it has been told to move.
    assert still.send(ramp(0.6)) is None
    still.follow = 0.0
    still.tick(22)
    assert np.abs(still.sent[-1] - still.sent[0]).max() > 0.05
    assert still.executor.state is State.TRACKING
    still.tick(30)
    assert still.executor.state is State.FAULT


def test_a_driver_that_says_nothing_is_silent_and_not_frozen() -> None:
    cell = tracking(joint_state_timeout_s=0.6)
    cell.encoders_work = False
    cell.tick(110)
    assert cell.executor.state is State.HOLDING
    assert "joint_states silent for 0.6" in cell.executor.reason


def test_frozen_feedback_of_one_of_two_arms_is_noticed_while_the_other_moves() -> None:
    robot = embodiment("yam")
    cell = Cell(robot=robot, follow=np.array([1.0] * 7 + [0.0] * 7))
    cell.arm()
    cell.tick(3)
    cell.send(ramp(0.5, robot=robot))
    cell.tick(70)
    assert cell.executor.state is State.FAULT
    assert "feedback frozen: the joint states of right_joint" in cell.executor.reason


def test_a_driver_that_acknowledges_and_stops_doing_so_is_a_fault() -> None:
    cell = tracking(acknowledgement_timeout_s=0.3)
    for _ in range(30):
        cell.tick()
        cell.executor.on_acknowledgement(cell.now_ns)
    assert cell.executor.state is State.TRACKING
    cell.tick(32)
    assert cell.executor.state is State.FAULT
    assert "driver has acknowledged no command for 0.3" in cell.executor.reason


def test_a_driver_that_never_acknowledges_is_not_asked_to() -> None:
    cell = tracking()
    cell.tick(60)
    assert cell.executor.state is State.TRACKING


def test_readings_twice_and_out_of_order_change_nothing_and_are_counted() -> None:
    cell = tracking()
    counters = cell.executor.counters
    far = cell.position + 0.5
    for stamp in (cell.now_ns, cell.now_ns - PERIOD_NS):
        assert cell.executor.on_joint_state(ROBOT.joint_names, far, stamp, cell.now_ns) is None
    assert (counters.joint_states_repeated, counters.joint_states_out_of_order) == (1, 1)
    cell.tick(5)
    assert cell.executor.state is State.TRACKING


def test_a_driver_whose_stamps_stand_still_is_named_as_such() -> None:
    cell = tracking()
    stamp = cell.now_ns
    for _ in range(40):
        cell.wrong_stamp_ns = stamp - cell.now_ns - PERIOD_NS
        cell.tick()
    assert cell.executor.state in (State.STOPPING, State.HOLDING)
    assert "came twice or out of order; is there a second driver" in cell.executor.reason


def test_a_reading_from_the_future_is_refused_and_hides_none_that_comes_later() -> None:
    cell = tracking()
    said = cell.executor.on_joint_state(ROBOT.joint_names, cell.position, cell.now_ns + 10**10, cell.now_ns)
    assert said is not None and "stamped 10.00 s in the future" in said.reason
    cell.tick(20)
    assert cell.executor.state is State.TRACKING


def test_a_chunk_older_than_its_deadline_is_not_followed_however_long_it_is() -> None:
    cell = Cell(ExecutorConfig(chunk_timeout_s=1.5), noise=1e-5)
    cell.arm()
    cell.tick(3)
    cell.send(ramp(0.1, rows=120))
    cell.tick(140)
    assert cell.executor.state is State.TRACKING
    cell.tick(60)
    assert cell.executor.state is State.HOLDING
    assert "policy silent for 1.51 s (limit 1.50 s)" in cell.executor.reason


def test_the_tracking_error_is_published_and_never_clipped_away() -> None:
    cell = tracking()
    cell.follow = 0.0
    seen = []
    for _ in range(85):
        cell.tick()
        seen.append(float(str(cell.executor.values(cell.now_ns)["tracking_error_rad"])))
    assert max(seen) > cell.executor.config.max_tracking_error
    assert cell.executor.state is State.FAULT
    distance = np.abs(cell.sent[-1] - cell.position)[:5].max()
    assert distance > cell.executor.config.max_tracking_error, "the command was not pulled to the measurement"


# -- arming ------------------------------------------------------------------------------------------------------


def test_arming_far_from_the_start_pose_is_refused_and_the_ramp_leads_there() -> None:
    pose = tuple(ROBOT.rest_position + np.array([0.4, 0.0, 0.0, 0.0, 0.0, 0.5]))
    cell = Cell(ExecutorConfig(start_pose=pose, start_tolerance=0.1), follow=1.0)
    done, message = cell.executor.arm(cell.now_ns)
    assert (
        not done and "shoulder_pan is 0.400 rad from the start pose (limit 0.1); call executor/go_to_start" in message
    )
    done, message = cell.executor.go_to_start(cell.now_ns)
    assert done, message
    assert cell.executor.state is State.TRACKING and "going to the start pose" in cell.executor.reason
    gripper = cell.position[5]
    cell.tick()
    np.testing.assert_array_equal(cell.sent[-1], ROBOT.rest_position)  # where it was measured
    cell.tick(400)
    assert cell.executor.state is State.HOLDING and "at the start pose" in cell.executor.reason
    np.testing.assert_allclose(cell.sent[-1][:5], pose[:5], atol=1e-5)
    assert cell.sent[-1][5] == gripper, "an object that is held stays held"
    speed = np.abs(np.diff(cell.sent, axis=0)).max(axis=0) * 100.0
    assert np.all(speed <= 0.25 * ROBOT.limits.velocity + 1e-6)
    cell.executor.disarm(cell.now_ns)
    cell.tick(2)
    cell.arm()


def test_chunks_do_not_disturb_the_ramp_and_count_after_it() -> None:
    pose = tuple(ROBOT.rest_position + np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.0]))
    cell, twin = (Cell(ExecutorConfig(start_pose=pose), follow=1.0) for _ in range(2))
    for c in (cell, twin):
        c.executor.go_to_start(c.now_ns)
    for _ in range(10):
        cell.tick(10)
        twin.tick(10)
        cell.send(ramp(-0.5, start=cell.position))
    assert cell.executor.counters.chunks_ignored > 0
    assert cell.executor.counters.last_ignored == "going to the start pose"
    while cell.executor.state is not State.HOLDING:
        cell.tick()
        twin.tick()
    np.testing.assert_array_equal(cell.sent, twin.sent)
    assert cell.send(ramp(0.1, start=cell.position)) is None
    assert cell.executor.state is State.TRACKING


def test_a_ramp_is_stopped_like_any_motion_and_refused_where_nothing_may_move() -> None:
    pose = tuple(ROBOT.rest_position + np.array([0.6, 0.0, 0.0, 0.0, 0.0, 0.0]))
    cell = Cell(ExecutorConfig(start_pose=pose), follow=1.0)
    cell.executor.go_to_start(cell.now_ns)
    cell.tick(60)
    assert not cell.executor.go_to_start(cell.now_ns)[0]
    cell.executor.on_e_stop(True, cell.now_ns)
    assert not cell.executor.go_to_start(cell.now_ns)[0]
    cell.tick(60)
    assert cell.executor.motion.still and cell.executor.state is State.ESTOPPED
    assert cell.sent[-1][0] < pose[0] - 0.1


def test_arming_goes_to_the_start_pose_where_the_config_asks_for_it() -> None:
    pose = tuple(ROBOT.rest_position + np.array([0.2, 0.0, 0.0, 0.0, 0.0, 0.0]))
    cell = Cell(ExecutorConfig(start_pose=pose, start_tolerance=0.1, ramp_on_arming=True), follow=1.0)
    cell.arm()
    cell.tick(300)
    assert cell.executor.state is State.HOLDING
    np.testing.assert_allclose(cell.sent[-1][:5], pose[:5], atol=1e-5)


def test_arming_without_a_policy_is_refused_where_it_needs_one() -> None:
    cell = Cell(ExecutorConfig(arm_needs_chunk=True, chunk_timeout_s=1.0))
    assert "no usable action chunk has come yet" in cell.executor.arm(cell.now_ns)[1]
    cell.send(ramp(0.1))
    cell.tick(110)
    assert "no usable action chunk for 1.10 s (limit 1.00 s)" in cell.executor.arm(cell.now_ns)[1]
    cell.send(ramp(0.1))
    cell.arm()


def test_a_start_pose_that_the_robot_cannot_take_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="start_pose must have 6 positions"):
        Cell(ExecutorConfig(start_pose=(0.0, 1.0)))
    with pytest.raises(ValueError, match="start_pose has 9 for shoulder_pan, its limits are"):
        Cell(ExecutorConfig(start_pose=(9.0, 0.0, 0.0, 0.0, 0.0, 0.0)))


def test_an_e_stop_survives_a_new_configuration() -> None:
    cell = tracking()
    cell.executor.on_e_stop(True, cell.now_ns)
    cell.executor.cleaned_up()
    assert cell.executor.state is State.ESTOPPED
    again = Cell()
    again.executor.cleaned_up()
    again.executor.configured(e_stopped=True)
    assert again.executor.state is State.ESTOPPED
    assert "an e-stop from before was not reset" in again.executor.reason
    assert again.executor.reset_e_stop(again.now_ns)[0]
    again.arm()


# -- options -------------------------------------------------------------------------------------------------------


def test_binary_grippers_are_told_their_ends_only() -> None:
    robot = embodiment("franka")
    cell = Cell(ExecutorConfig(binary_grippers=True), robot=robot)
    cell.arm()
    cell.tick(3)
    rows = ramp(0.1, robot=robot)
    rows[:, 7] = 0.017
    cell.send(rows)
    cell.tick(80)
    assert cell.executor.gripper_targets == pytest.approx([0.04], abs=2e-6), "not closed far enough to be a decision"
    rows = ramp(0.1, start=cell.position, robot=robot)
    rows[:, 7] = 0.012
    cell.send(rows)
    cell.tick(80)
    assert cell.executor.gripper_targets == pytest.approx([0.0], abs=2e-6)
    assert cell.sent[-1][7] < 1e-5


def test_an_ensemble_is_smoother_than_the_newest_chunk_alone() -> None:
    def roughness(**figures: float) -> float:
        rng = np.random.default_rng(1)
        cell = Cell(ExecutorConfig(**figures), noise=1e-6)
        cell.arm()
        cell.tick(3)
        start = ROBOT.rest_position
        for i in range(20):
            cell.send(ramp(0.02, start=start + 0.001 * i + rng.normal(0, 0.01, 6) * np.array([1, 1, 1, 1, 1, 0])))
            cell.tick(10)
        return float(np.abs(np.diff(cell.sent[60:, :5], n=2, axis=0)).mean())

    assert roughness(ensemble=5) < 0.6 * roughness(ensemble=1)
