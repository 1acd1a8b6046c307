"""Cameras: the newest frame only, honest stamps, faults in words, and a camera that comes back is read again."""

import queue
import threading
import time
import uuid

import numpy as np
import pytest

from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.cameras.health import CameraHealth, Limits, twins
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.source import CameraError, CameraSettings, Frame
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.cameras.video import FileSource, NewestFrame, fix_exposure
from molmoact2_ros.diagnostics import Level

SECOND = 1_000_000_000
SETTINGS = CameraSettings(32, 24, 30.0)
LIMITS = Limits(rate_hz=10.0, width=32, height=24)
RANDOM = np.random.default_rng(7)


def picture(value: int | None = None) -> np.ndarray:
    if value is not None:
        return np.full((24, 32, 3), value, np.uint8)
    return RANDOM.integers(0, 255, (24, 32, 3), np.uint8)


def eventually(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


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


def test_black_and_frozen_pictures_are_published_but_reported():
    black = CameraHealth("front", LIMITS)
    noise = iter(range(100))
    assert "black" in black.report(fed(black, 5, make=lambda: picture(next(noise) % 2))).message
    frozen = CameraHealth("front", LIMITS)
    report = frozen.report(fed(frozen, 20, make=lambda: picture(90)))
    assert report.level is Level.ERROR
    assert "not changed for 1.9 s" in report.message


def test_one_camera_under_two_names_is_noticed_and_alike_dark_rooms_are_not():
    scene = RANDOM.integers(0, 255, (24, 32, 3), np.uint8)
    noisy = np.clip(scene.astype(int) + RANDOM.integers(-2, 3, scene.shape), 0, 255).astype(np.uint8)
    other = RANDOM.integers(0, 255, (24, 32, 3), np.uint8)
    assert twins({"front": scene, "wrist": noisy, "top": other}) == [("front", "wrist")]
    assert twins({"front": picture(3), "wrist": picture(3)}) == []
    assert twins({"front": scene, "wrist": scene[:12], "top": np.zeros(0, np.uint8)}) == []


class Capture:
    """What OpenCV makes of a V4L2 device: some controls it takes, others it does not."""

    def __init__(self, takes: bool) -> None:
        self.takes, self.values, self.released = takes, {}, False

    def set(self, key, value) -> bool:
        if self.takes:
            self.values[key] = value
        return self.takes

    def get(self, key) -> float:
        return self.values.get(key, 0.0)

    def release(self) -> None:
        self.released = True


def test_exposure_and_white_balance_are_fixed_where_asked_for_and_else_the_cameras():
    import cv2

    capture = Capture(takes=True)
    fix_exposure(capture, "/dev/video0", CameraSettings(32, 24, 30.0, exposure=157.0, white_balance=4600.0))
    assert capture.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 1 and capture.values[cv2.CAP_PROP_EXPOSURE] == 157.0
    assert capture.values[cv2.CAP_PROP_AUTO_WB] == 0 and capture.values[cv2.CAP_PROP_WB_TEMPERATURE] == 4600.0
    capture = Capture(takes=True)
    fix_exposure(capture, "/dev/video0", SETTINGS)
    assert capture.values == {cv2.CAP_PROP_AUTO_EXPOSURE: 3, cv2.CAP_PROP_AUTO_WB: 1}
    capture = Capture(takes=False)
    with pytest.raises(CameraError, match="does not take exposure 157"):
        fix_exposure(capture, "/dev/video0", CameraSettings(32, 24, 30.0, exposure=157.0))
    assert capture.released


def test_a_slow_camera_is_a_warning():
    health = CameraHealth("front", LIMITS)
    report = health.report(fed(health, 15, step_ns=SECOND // 5))
    assert report.level is Level.WARN
    assert "5.0 frames a second, expected 10" in report.message


def test_a_late_reader_gets_the_newest_picture_and_the_backlog_is_dropped():
    pictures: queue.Queue = queue.Queue()
    ticks = iter(range(1, 100))
    newest = NewestFrame(pictures.get, lambda: next(ticks))
    for value in (10, 20, 30):
        pictures.put(picture(value))
    assert eventually(lambda: newest.dropped == 2)
    frame = newest.read(1.0)
    assert frame is not None
    assert (frame.rgb[0, 0, 0], frame.stamp_ns) == (30, 3)
    assert newest.read(0.0) is None
    pictures.put(None)
    newest.close()
    assert newest.closed


def test_a_video_file_plays_in_rgb_and_starts_over(tmp_path):
    import cv2

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (32, 24))
    for _ in range(3):
        writer.write(np.full((24, 32, 3), (0, 0, 200), np.uint8))  # red, in OpenCV's order
    writer.release()
    turn = threading.Semaphore(0)
    source = FileSource(str(path), 30.0, wait=lambda _: turn.acquire())
    frames = []
    for _ in range(5):
        turn.release()
        frames.append(source.read(5.0))
    turn.release(10)
    source.close()
    assert all(frame is not None for frame in frames)
    assert frames[4].rgb.shape == (24, 32, 3)
    red, _, blue = frames[4].rgb[12, 16].tolist()
    assert red > 150 and blue < 50


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("front", "must be one of"),
        ("usb:0", "kind 'usb' is unknown"),
        ("file:/no/such.mp4", "no video file"),
        ("v4l2:/dev/no-such-video", "is the cable in"),
        ("sim:molmoact2_no_such_link", "is the sim node up"),
        ("realsense:123456", r"no RealSense with serial '123456'; is the cable in\? plugged in: none"),
        ("realsense:/no/such.db3", "no recording"),
    ],
)
def test_a_camera_that_cannot_be_opened_says_what_to_do(text, hint):
    with pytest.raises(CameraError, match=hint):
        open_source(text, SETTINGS)


def test_a_stream_waits_for_its_camera_and_reopens_it_when_it_goes_silent():
    link = f"test_{uuid.uuid4().hex[:12]}"
    got: list[Frame] = []
    limits = Limits(rate_hz=30.0, width=32, height=24, age_s=5.0)
    stream = CameraStream("front", lambda: open_source(f"sim:{link}", SETTINGS), limits, got.append, retry_s=0.2)
    try:
        assert eventually(lambda: "is the sim node up" in stream.report().message)
        writer = FrameWriter(link, 24, 32)
        writer.write(picture(1), time.time_ns())
        assert eventually(lambda: len(got) == 1)
        # The cell is killed and starts again: same name, a new segment.
        again = FrameWriter(link, 24, 32)
        assert eventually(lambda: stream.openings >= 2)
        again.write(picture(2), time.time_ns())
        assert eventually(lambda: len(got) >= 2 and got[-1].rgb[0, 0, 0] == 2)
        again.close()
        del writer
    finally:
        stream.close()
