"""Cameras: the newest frame only, honest stamps, faults in words, and a camera that comes back is read again."""

import queue
import re
import threading
import time
import uuid
from xml.etree import ElementTree

import numpy as np
import pytest

from molmoact2_ros.bringup.specs import fastdds_profile
from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.cameras.health import BLACK, DOUBLED, FROZEN, CameraHealth, Limits, TwinWatch, twins
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.shared_memory import profile_bytes, segment_bytes, shortage, write_profile
from molmoact2_ros.cameras.source import BadImageError, CameraError, CameraSettings, Frame
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.cameras.video import FileSource, NewestFrame, V4l2Capture, fix_exposure
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
    fix_exposure(capture, "/dev/video0", CameraSettings(32, 24, 30.0, exposure_us=15700.0, white_balance_k=4600.0))
    assert capture.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 1 and capture.values[cv2.CAP_PROP_EXPOSURE] == 157.0
    assert capture.values[cv2.CAP_PROP_AUTO_WB] == 0 and capture.values[cv2.CAP_PROP_WB_TEMPERATURE] == 4600.0
    capture = Capture(takes=True)
    fix_exposure(capture, "/dev/video0", SETTINGS)
    assert capture.values == {cv2.CAP_PROP_AUTO_EXPOSURE: 3, cv2.CAP_PROP_AUTO_WB: 1}
    capture = Capture(takes=False)
    with pytest.raises(CameraError, match="does not take exposure 15700 us"):
        fix_exposure(capture, "/dev/video0", CameraSettings(32, 24, 30.0, exposure_us=15700.0))
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
        ("v4l2:/dev/" + 300 * "x", "cannot be looked at: .*name too long"),
        ("file:/tmp/" + 300 * "x", "cannot be looked at: .*name too long"),
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


class Broken:
    """A source whose driver raises where it is told to, until it is mended; then it gives one image after another."""

    def __init__(self, where: str, error: Exception) -> None:
        self.where, self.error, self.opened, self.closed = where, error, 0, 0

    def open(self):
        self.opened += 1
        self._raise("open")
        return self

    def read(self, timeout_s: float) -> Frame | None:
        self._raise("read")
        if self.where == "close" and self.opened == 1:
            return None  # silent, so that it is closed and opened anew
        time.sleep(0.005)
        return Frame(picture(), time.time_ns())

    def close(self) -> None:
        self.closed += 1
        self._raise("close")

    def _raise(self, where: str) -> None:
        if self.where == where:
            raise self.error


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("open", RuntimeError("failed to set power state"), "RuntimeError: failed to set power state"),
        ("open", ValueError('out of range value for argument "value"'), "out of range value"),
        ("open", PermissionError(13, "Permission denied", "/dev/v4l"), "PermissionError: .*Permission denied"),
        ("open", KeyError("exposure"), "KeyError: 'exposure'"),
        ("read", RuntimeError("Frame didn't arrive within 5000"), "reading failed: RuntimeError: Frame didn't arrive"),
        ("close", RuntimeError("stop() cannot be called before start()"), "closing failed: RuntimeError: stop"),
    ],
)
def test_whatever_a_driver_raises_the_camera_is_told_to_be_not_open_and_tried_again(where, error, told):
    source, got = Broken(where, error), []
    limits = Limits(rate_hz=30.0, width=32, height=24, age_s=5.0)
    stream = CameraStream("front", source.open, limits, got.append, retry_s=0.05)
    try:
        assert eventually(lambda: re.search(told, stream.report().message)), stream.report()
        assert stream.report().kind == "not open"
        assert eventually(lambda: source.opened >= 3 or where == "close"), "it is tried again"
        source.where = "mended"
        before = len(got)
        assert eventually(lambda: len(got) > before + 3)
        assert stream.report().level is Level.OK
    finally:
        stream.close()


def test_a_malformed_image_costs_one_image_and_is_told():
    class Topic:
        count = 0

        def read(self, timeout_s: float) -> Frame | None:
            self.count += 1
            if self.count > 114:
                time.sleep(timeout_s)
                return None
            if self.count % 20 == 0:
                raise BadImageError("4 rows of 18 bytes do not fit 70 bytes")
            return Frame(picture(), time.time_ns())

        def close(self) -> None:
            pass

    got: list[Frame] = []
    limits = Limits(rate_hz=30.0, width=32, height=24, age_s=60.0)
    topic = Topic()
    stream = CameraStream("front", lambda: topic, limits, got.append, retry_s=0.5)
    try:
        assert eventually(lambda: len(got) == 109)
        assert stream.openings == 1 and stream.report().refused >= 5
    finally:
        stream.close()


def test_an_error_in_the_taking_thread_is_told_by_the_reader():
    def grab():
        raise RuntimeError("VIDIOC_DQBUF: no such device")

    newest = NewestFrame(grab, time.time_ns)
    with pytest.raises(CameraError, match="VIDIOC_DQBUF"):
        newest.read(5.0)
    newest.close()


class Device:
    """A V4L2 capture: images that the driver stamped at `stamps_ms` on the steady clock."""

    def __init__(self, stamps_ms: list[float]) -> None:
        self.stamps, self.stamp = stamps_ms, 0.0

    def grab(self) -> bool:
        self.stamp = self.stamps.pop(0)
        return True

    def get(self, key) -> float:
        return self.stamp

    def retrieve(self):
        return True, picture()


def test_v4l2_images_bear_the_drivers_stamps_so_that_a_stall_does_not_make_them_young():
    ms = 1_000_000
    steady = iter([1010 * ms, 1250 * ms, 1300 * ms, 1400 * ms])
    images = V4l2Capture(Device([1000.0, 1033.0, 0.0, 9e9]), lambda: 50_000 * ms, lambda: next(steady))
    stamps = []
    for _ in range(4):
        assert images.grab() is not None
        stamps.append(50_000 - images.captured_ns() // ms)
    # 10 ms on its way; 217 ms in a stall; a driver that gives no stamp, and one whose stamp is of another clock.
    assert stamps == [10, 217, 0, 0]


def test_a_file_that_cannot_be_rewound_plays_over_and_over(tmp_path):
    import cv2

    still = tmp_path / "still.png"
    cv2.imwrite(str(still), np.full((24, 32, 3), (0, 0, 200), np.uint8))
    raw = tmp_path / "raw.mjpeg"  # a bare stream without an index
    frames = [cv2.imencode(".jpg", np.full((24, 32, 3), grey, np.uint8))[1].tobytes() for grey in (40, 120, 200)]
    raw.write_bytes(b"".join(frames))
    for path, levels in ((still, [200] * 8), (raw, [40, 120, 200] * 3)):
        turn = threading.Semaphore(0)
        source = FileSource(str(path), 30.0, wait=lambda _, turn=turn: turn.acquire())
        seen = []
        for _ in levels:
            turn.release()
            frame = source.read(5.0)
            assert frame is not None, (path.name, seen)
            seen.append(int(frame.rgb[12, 16, 0]))
        turn.release(10)
        source.close()
        assert np.allclose(seen, levels, atol=6), (path.name, seen)


def test_shared_memory_is_sized_from_the_cameras_and_what_does_not_fit_is_said(tmp_path):
    shipped = fastdds_profile()
    three = [CameraSettings(640, 480, 30.0)] * 3
    uhd = [CameraSettings(3840, 2160, 15.0), CameraSettings(1280, 720, 30.0, depth=True)]
    assert segment_bytes(three) == profile_bytes(str(shipped)) == 16 * 2**20
    assert segment_bytes(uhd) > 6 * 3840 * 2160 * 3
    assert shortage(three, str(shipped), 2**40) == ""
    assert "Fast DDS alone gives 0.5 MB" in shortage(three, "", 2**40)
    told = shortage(uhd, str(shipped), 2**40)
    assert f"set <segment_size> to {segment_bytes(uhd)}" in told and "gives 16 MB" in told
    written = write_profile(shipped, uhd, tmp_path)
    assert profile_bytes(str(written)) == segment_bytes(uhd)
    assert shortage(uhd, str(written), 2**40) == ""
    assert "/dev/shm has 64 MB free" in shortage(uhd, str(written), 64 * 2**20)
    ElementTree.parse(written)
