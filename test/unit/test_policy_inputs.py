"""Only fresh inputs of the present epoch make an observation, and what is missing is named. No test sleeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from molmoact2_ros.policy.inputs import Inputs

MS = 1_000_000
IMAGE = np.zeros((2, 2, 3), np.uint8)
JOINTS = np.zeros(6)


def filled(now: int = 1000 * MS) -> Inputs:
    """Inputs with a task and everything fresh at `now`."""
    inputs = Inputs(("front", "wrist"), camera_timeout_s=0.5, joints_timeout_s=0.25)
    assert inputs.on_task("pick up the red cube", 0)
    refresh(inputs, now)
    return inputs


def refresh(inputs: Inputs, now: int, *names: str) -> None:
    for name in names or ("front", "wrist", "joints"):
        if name == "joints":
            inputs.on_joints(JOINTS, now, now)
        else:
            inputs.on_image(name, IMAGE, now, now)


def message(inputs: Inputs, now: int) -> str:
    problem = inputs.problem(now)
    assert problem is not None
    return problem.message


def test_a_fresh_observation_carries_all_stamps() -> None:
    inputs = filled()
    inputs.on_joints(JOINTS, 990 * MS, 1000 * MS)  # older: out of order, ignored
    observation = inputs.observation(1010 * MS)
    assert observation is not None
    assert observation.image_stamps_ns == {"front": 1000 * MS, "wrist": 1000 * MS}
    assert observation.stamp_ns == 1000 * MS
    assert observation.task == "pick up the red cube"


def test_the_same_frames_are_not_used_twice() -> None:
    inputs = filled()
    assert inputs.observation(1000 * MS) is not None
    assert inputs.observation(1001 * MS) is None
    refresh(inputs, 1030 * MS, "front")
    assert inputs.observation(1031 * MS) is None, "the wrist's frame was used already"
    refresh(inputs, 1031 * MS, "wrist")
    assert inputs.observation(1032 * MS) is not None


def test_a_silent_camera_is_named_with_its_limit() -> None:
    inputs = filled()
    refresh(inputs, 1620 * MS, "front", "joints")
    assert message(inputs, 1620 * MS) == "camera 'wrist': no frame for 0.62 s (limit 0.50 s); is the cable in?"
    assert inputs.observation(1620 * MS) is None
    refresh(inputs, 1650 * MS, "wrist")
    assert inputs.problem(1650 * MS) is None


def test_kind_stays_while_the_cause_does() -> None:
    inputs = filled()
    refresh(inputs, 1600 * MS, "front", "joints")
    first, later = inputs.problem(1600 * MS), inputs.problem(1700 * MS)
    assert first is not None and later is not None
    assert first.kind == later.kind and first.message != later.message


def test_silent_joint_states_are_named() -> None:
    inputs = filled()
    refresh(inputs, 1300 * MS, "front", "wrist")
    assert "joint states: no message for 0.30 s (limit 0.25 s)" in message(inputs, 1300 * MS)


def test_old_and_future_stamps_are_told_from_silence() -> None:
    inputs = filled()
    inputs.on_image("front", IMAGE, 1100 * MS, 1900 * MS)
    inputs.on_image("wrist", IMAGE, 1890 * MS, 1900 * MS)
    inputs.on_joints(JOINTS, 1890 * MS, 1900 * MS)
    assert "the newest frame is 0.80 s old on arrival" in message(inputs, 1900 * MS)
    inputs.on_image("front", IMAGE, 2900 * MS, 1910 * MS)
    assert "1.00 s in the future" in message(inputs, 1900 * MS)


def test_absent_inputs_are_waited_for() -> None:
    inputs = Inputs(("front",), 0.5, 0.25)
    problem = inputs.problem(0)
    assert problem is not None and problem.waiting and "camera 'front': no frame yet" in problem.message
    refresh(inputs, MS, "front", "joints")
    problem = inputs.problem(MS)
    assert problem is not None and problem.waiting and "no task yet" in problem.message


@pytest.mark.parametrize("text", ["", "  ", "..."])
def test_an_empty_task_leaves_none(text: str) -> None:
    inputs = filled()
    epoch = inputs.epoch
    assert not inputs.on_task(text, 1000 * MS)
    assert inputs.epoch == epoch + 1
    problem = inputs.problem(1000 * MS)
    assert problem is not None and not problem.waiting and "is empty" in problem.message


def test_what_was_seen_before_the_task_is_not_used() -> None:
    inputs = filled()
    assert inputs.on_task("put it down", 1005 * MS)
    assert inputs.observation(1006 * MS) is None
    refresh(inputs, 1010 * MS)
    assert inputs.observation(1010 * MS) is not None


def test_a_clock_set_back_does_not_shut_the_inputs_out() -> None:
    inputs = filled(10_000 * MS)
    assert inputs.on_task("pick up the red cube", 10_000 * MS)
    refresh(inputs, 10_001 * MS)
    assert inputs.observation(10_001 * MS) is not None
    refresh(inputs, 2000 * MS)
    assert inputs.observation(2001 * MS) is not None


def test_a_camera_that_comes_back_may_count_its_time_anew() -> None:
    inputs = filled(10_000 * MS)
    assert inputs.observation(10_000 * MS) is not None
    for now in (10_600 * MS, 10_640 * MS):
        refresh(inputs, now, "wrist", "joints")
        inputs.on_image("front", IMAGE, now - 700 * MS, now)
        assert "old on arrival" in message(inputs, now)
    inputs.on_image("front", IMAGE, 10_650 * MS, 10_650 * MS)
    assert inputs.observation(10_650 * MS) is not None


def test_an_epoch_begins_near_the_training_only_and_then_goes_where_it_likes() -> None:
    inputs = Inputs(("front",), 0.5, 0.5, lambda joints: "too far" if joints[0] > 1.0 else "")

    def look(position: float, now_ns: int) -> Any:
        inputs.on_joints(np.array([position]), now_ns, now_ns)
        inputs.on_image("front", np.zeros((2, 2, 3), np.uint8), now_ns, now_ns)
        return inputs.observation(now_ns)

    inputs.on_task("pick it up", 0)
    assert look(2.0, 1_000_000) is None
    problem = inputs.problem(1_000_000)
    assert problem is not None and problem.message == "too far" and not problem.waiting
    assert look(0.5, 2_000_000) is not None
    assert look(2.0, 3_000_000) is not None, "a motion under way is not stopped"
    inputs.on_task("and another one", 4_000_000)
    assert look(2.0, 5_000_000) is None


def test_a_silent_camera_is_told_with_the_reason_of_its_own_node() -> None:
    inputs = filled()
    inputs.on_camera_state("wrist", "camera 'wrist': frozen, the image has not changed for 1.2 s (limit 1.0 s)")
    refresh(inputs, 1010 * MS)
    assert inputs.problem(1010 * MS) is None, "as long as images come they are taken"
    refresh(inputs, 1620 * MS, "front", "joints")
    told = (
        "camera 'wrist': no frame for 0.61 s (limit 0.50 s); frozen, the image has not changed for 1.2 s (limit 1.0 s)"
    )
    assert message(inputs, 1620 * MS) == told
    inputs.on_camera_state("wrist", "")
    assert "is the cable in?" in message(inputs, 1620 * MS)
    fresh = Inputs(("front",), 0.5, 0.25)
    fresh.on_camera_state("front", "camera 'front': no camera at /dev/video9; is the cable in?")
    assert message(fresh, 0) == "camera 'front': no frame yet; no camera at /dev/video9; is the cable in?"


def test_frames_too_far_apart_make_no_observation_and_are_named() -> None:
    inputs = Inputs(("front", "wrist"), 0.5, 0.25, max_skew_s=0.2)
    assert inputs.on_task("pick up the red cube", 0)
    inputs.on_image("wrist", IMAGE, 700 * MS, 1000 * MS)
    refresh(inputs, 1000 * MS, "front", "joints")
    assert inputs.observation(1000 * MS) is None
    assert message(inputs, 1000 * MS).startswith(
        "camera 'wrist' is 0.30 s behind camera 'front' (limit max_skew_s 0.20 s)"
    )
    inputs.on_image("wrist", IMAGE, 810 * MS, 1010 * MS)
    assert inputs.observation(1010 * MS) is not None
    # One camera pauses: silence is what is judged, since its next frame may be as new as the others'.
    for now in range(1040, 1340, 30):
        refresh(inputs, now * MS, "front", "joints")
        assert inputs.problem(now * MS) is None
    refresh(inputs, 1340 * MS)
    assert inputs.observation(1340 * MS) is not None
    lax = Inputs(("front", "wrist"), 0.5, 0.25)
    lax.on_task("pick up the red cube", 0)
    lax.on_image("wrist", IMAGE, 700 * MS, 1000 * MS)
    refresh(lax, 1000 * MS, "front", "joints")
    assert lax.observation(1000 * MS) is not None
