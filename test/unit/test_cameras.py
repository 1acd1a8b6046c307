"""Cameras: the newest frame only, honest stamps, faults in words, and a camera that comes back is read again."""

import queue
import re
import threading
import time
import uuid
from xml.etree import ElementTree

import numpy as np
import pytest
from camera_images import SETTINGS, eventually, picture

from molmoact2_ros.bringup.specs import fastdds_profile
from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.cameras.health import Limits
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.shared_memory import profile_bytes, segment_bytes, shortage, write_profile
from molmoact2_ros.cameras.source import BadImageError, CameraError, CameraSettings, Frame
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.cameras.video import FileSource, NewestFrame, V4l2Capture, fix_exposure
from molmoact2_ros.diagnostics import Level


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
