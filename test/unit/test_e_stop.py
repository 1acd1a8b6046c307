"""The emergency stop is counted by publisher: nobody releases another's button, or gets rid of one by leaving."""

import pytest

from molmoact2_ros.execution.e_stop import UNKNOWN, EStop

S = 1_000_000_000


def test_one_who_lets_go_does_not_release_anothers_button():
    stop = EStop()
    stop.heard("person", True, 0)
    stop.heard("franka user stop", False, 1)
    assert stop.pressed
    stop.heard("person", False, 2)
    assert not stop.pressed


def test_a_publisher_that_disappears_while_pressed_stays_pressed_until_somebody_resets():
    stop = EStop()
    stop.heard("button", True, 0)
    stop.heard("other", True, 0)
    stop.heard("other", False, 1)
    assert stop.pressed
    stop.forget_absent({"button", "other"})
    assert stop.pressed, "it is still there"
    stop.forget_absent({"other"})
    assert not stop.pressed


def test_where_publishers_cannot_be_told_apart_only_a_reset_releases():
    stop = EStop()
    stop.heard(UNKNOWN, True, 0)
    stop.heard(UNKNOWN, False, 1)
    assert stop.pressed
    stop.forget_absent({"anybody"})
    assert not stop.pressed


def test_silence_of_a_required_heartbeat_is_named():
    stop = EStop(heartbeat_s=0.5)
    assert "no e_stop publisher has been heard" in stop.silence(0)
    stop.heard("button", False, 1 * S)
    assert stop.ever_heard and stop.silence(1 * S + S // 2) == ""
    assert "silent for 0.60 s (limit 0.50 s)" in stop.silence(1 * S + 6 * S // 10)
    stop.heard("button", False, 2 * S)
    assert stop.silence(2 * S) == ""
    stop.clock_went_back(1 * S)
    assert stop.silence(1 * S + S // 4) == ""


def test_without_a_heartbeat_silence_means_nothing():
    assert EStop().silence(10**15) == "" and not EStop().ever_heard
    with pytest.raises(ValueError, match="e_stop_heartbeat_s must be 0"):
        EStop(-1.0)


def test_a_clock_that_is_set_back_does_not_hide_the_silence_after_it():
    stop = EStop(heartbeat_s=0.5)
    stop.heard("button", False, 3600 * S)
    assert stop.silence(10 * S) == ""
    assert "silent for 0.60 s" in stop.silence(10 * S + 6 * S // 10)
