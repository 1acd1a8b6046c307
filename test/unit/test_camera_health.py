"""What is wrong with a camera, and which of its images must not be acted on."""

import numpy as np
import pytest
from camera_images import LIMITS, RANDOM, SECOND, picture

from molmoact2_ros.cameras.health import BLACK, DOUBLED, FROZEN, CameraHealth, Limits, TwinWatch, twins
from molmoact2_ros.cameras.source import Frame
from molmoact2_ros.diagnostics import Level


def fed(health: CameraHealth, count: int, step_ns: int = SECOND // 10, make=picture) -> int:
    now = 0
    for index in range(count):
        now = SECOND + index * step_ns
        assert health.admit(Frame(make(), now), now + 1_000_000) == ""
    return now


def test_a_healthy_camera_reports_its_rate():
    health = CameraHealth("front", LIMITS)
    report = health.report(fed(health, 20))
    assert report.level is Level.OK
    assert report.rate_hz == pytest.approx(10.0)
    assert report.frames == 20


def test_a_silent_camera_is_an_error_that_names_it():
    health = CameraHealth("wrist", LIMITS)
    now = fed(health, 5)
    report = health.report(now + 620_000_000)
    assert report.level is Level.ERROR
    assert report.message == "camera 'wrist': no frame for 0.62 s (limit 0.50 s); is the cable in?"


def test_a_wrong_size_an_old_frame_and_a_stamp_that_goes_back_are_refused():
    health = CameraHealth("front", LIMITS)
    now = fed(health, 3)
    assert "16x24" in health.admit(Frame(np.zeros((24, 16, 3), np.uint8), now + 1), now + 1)
    assert "old" in health.admit(Frame(picture(), now + 1), now + SECOND)
    assert "went back" in health.admit(Frame(picture(), now - 1), now)
    assert health.report(now).level is Level.WARN
    assert (health.frames, health.refused) == (3, 3)


def test_the_same_frame_again_is_silence_and_not_a_clock_that_went_back():
    health = CameraHealth("front", LIMITS)
    now = fed(health, 3)
    assert health.admit(Frame(picture(), now), now + 2 * SECOND)
    assert "no frame for 2.00 s" in health.report(now + 2 * SECOND).message


def test_a_clock_that_was_set_back_is_reported_once_and_then_followed():
    health = CameraHealth("front", LIMITS)
    now = fed(health, 3) - 10 * SECOND
    assert "clock" in health.admit(Frame(picture(), now), now)
    assert health.admit(Frame(picture(), now + 1), now + 1) == ""


def shown(health: CameraHealth, start: int, count: int, make) -> list[str]:
    """What `count` images, ten a second from number `start` on, are refused for."""
    refusals = []
    for index in range(start, start + count):
        now = SECOND + index * SECOND // 10
        refusals.append(health.admit(Frame(make(), now), now + 1_000_000))
    return refusals


def test_a_frozen_picture_is_not_published_beyond_its_limit_and_is_again_once_it_moves():
    health = CameraHealth("front", LIMITS)
    refusals = shown(health, 0, 20, lambda: picture(90))
    assert refusals[:11] == [""] * 11, "within the limit of 1 s it may be a scene at rest"
    assert all("frozen, the image has not changed for 1." in refusal for refusal in refusals[11:])
    report = health.report(SECOND + 2 * SECOND)
    assert (report.level, report.kind, report.refused) == (Level.ERROR, FROZEN, 9)
    assert "frozen, the image has not changed for 1.9 s (limit 1.0 s)" in report.message
    assert shown(health, 20, 3, picture) == [""] * 3
    assert health.report(SECOND + 22 * SECOND // 10).level is Level.OK


def test_a_black_picture_is_a_warning_and_beyond_its_limit_not_published():
    health = CameraHealth("front", LIMITS)
    noise = iter(range(1000))
    refusals = shown(health, 0, 5, lambda: picture(next(noise) % 2))
    report = health.report(SECOND + SECOND // 2)
    assert refusals == [""] * 5 and report.level is Level.WARN and "is black" in report.message
    refusals = shown(health, 5, 10, lambda: picture(next(noise) % 2))
    assert "black for 1.1 s" in refusals[6] and not refusals[5]
    assert health.report(SECOND + 14 * SECOND // 10).kind == BLACK
    assert shown(health, 15, 1, picture) == [""]


def test_checks_that_are_switched_off_let_everything_pass():
    health = CameraHealth("front", Limits(10.0, 32, 24, frozen_s=float("inf"), black_s=float("inf")))
    assert shown(health, 0, 100, lambda: picture(0)) == [""] * 100


def test_a_doubled_camera_is_not_published_until_it_is_one_of_its_own():
    watch, scene = TwinWatch(1.0), RANDOM.integers(0, 255, (24, 32, 3), np.uint8)
    alike = {"front": scene, "wrist": scene, "top": picture()}
    assert watch.look(alike, 0) == {"front": "", "wrist": "", "top": ""}, "one likeness is none"
    assert watch.look(alike, SECOND) == {"front": "", "wrist": "", "top": ""}
    found = watch.look(alike, SECOND + 1)
    assert found == {"front": "'wrist'", "wrist": "'front'", "top": ""}
    health = CameraHealth("front", LIMITS)
    assert shown(health, 0, 1, picture) == [""]
    health.doubled_by(found["front"])
    assert "shows the same image as 'wrist'; is one source named twice?" in shown(health, 1, 1, picture)[0]
    assert health.report(SECOND + SECOND // 10).kind == DOUBLED
    apart = {**alike, "wrist": picture()}
    assert not any(watch.look(apart, SECOND + 2).values())
    assert not any(watch.look(alike, SECOND + 3).values()), "the time counts anew"
    health.doubled_by("")
    assert shown(health, 2, 1, picture) == [""]


def test_a_stamp_from_the_future_is_refused():
    health = CameraHealth("front", LIMITS)
    now = fed(health, 3)
    assert "0.30 s in the future" in health.admit(Frame(picture(), now + 300_000_000), now)
    assert health.admit(Frame(picture(), now + 50_000_000), now) == ""


def test_one_camera_under_two_names_is_noticed_and_alike_dark_rooms_are_not():
    scene = RANDOM.integers(0, 255, (24, 32, 3), np.uint8)
    noisy = np.clip(scene.astype(int) + RANDOM.integers(-2, 3, scene.shape), 0, 255).astype(np.uint8)
    other = RANDOM.integers(0, 255, (24, 32, 3), np.uint8)
    assert twins({"front": scene, "wrist": noisy, "top": other}) == [("front", "wrist")]
    assert twins({"front": picture(3), "wrist": picture(3)}) == []
    assert twins({"front": scene, "wrist": scene[:12], "top": np.zeros(0, np.uint8)}) == []


def test_a_slow_camera_is_a_warning():
    health = CameraHealth("front", LIMITS)
    report = health.report(fed(health, 15, step_ns=SECOND // 5))
    assert report.level is Level.WARN
    assert "5.0 frames a second, expected 10" in report.message
