"""RealSense: a recording made by a software device goes through the same pipeline as a camera; stamps in ROS time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from molmoact2_ros.cameras.clock_map import ClockMap
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.realsense import RealSenseSource, _package, fix_exposure
from molmoact2_ros.cameras.source import CameraError, CameraSettings

pytestmark = pytest.mark.realtime
WIDTH, HEIGHT, FRAMES, PERIOD_MS = 64, 48, 20, 33.3
MS = 1_000_000


def record(path: Path) -> None:
    """Record `FRAMES` images of grey 5 i with depth 1000 + i mm, stamped by a hardware clock."""
    rs = _package()
    device = rs.software_device()
    optics = rs.intrinsics()
    optics.width, optics.height, optics.fx, optics.fy, optics.ppx, optics.ppy = WIDTH, HEIGHT, 60.0, 61.0, 32.0, 24.0
    optics.model, optics.coeffs = rs.distortion.inverse_brown_conrady, [0.1, 0.0, 0.0, 0.0, 0.0]
    streams = []
    for uid, (name, kind, depth_bytes, form) in enumerate(
        (("RGB Camera", rs.stream.color, 3, rs.format.rgb8), ("Stereo Module", rs.stream.depth, 2, rs.format.z16))
    ):
        sensor = device.add_sensor(name)
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid, stream.fps, stream.bpp, stream.fmt = kind, 0, uid, 30, depth_bytes, form
        stream.width, stream.height, stream.intrinsics = WIDTH, HEIGHT, optics
        streams.append((sensor, sensor.add_video_stream(stream), depth_bytes))
    streams[1][0].add_read_only_option(rs.option.depth_units, 0.001)
    place = rs.extrinsics()
    place.rotation, place.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0]
    streams[1][1].register_extrinsics_to(streams[0][1], place)
    streams[0][1].register_extrinsics_to(streams[1][1], place)
    recorder = rs.recorder(str(path), device)
    sensors = recorder.query_sensors()
    queue = rs.frame_queue(100)
    for sensor, (_, profile, _) in zip(sensors, streams, strict=True):
        sensor.open(profile)
        sensor.start(queue)
    for i in range(FRAMES):
        for sensor, profile, size in streams:
            frame = rs.software_video_frame()
            frame.stride, frame.bpp, frame.frame_number = WIDTH * size, size, i
            frame.timestamp, frame.domain = 5000.0 + i * PERIOD_MS, rs.timestamp_domain.hardware_clock
            frame.profile = profile.as_video_stream_profile()
            colour = np.full((HEIGHT, WIDTH, 3), 5 * i, np.uint8)
            frame.pixels = colour if size == 3 else np.full((HEIGHT, WIDTH), 1000 + i, np.uint16)
            sensor.on_video_frame(frame)
        time.sleep(0.002)  # the recorder writes in a thread of its own and drops what it cannot take
    recorder.pause()
    for sensor in sensors:
        sensor.stop()
        sensor.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("realsense") / "camera.db3"
    record(path)
    return str(path)


def played(source: RealSenseSource) -> list:
    frames = []
    while (frame := source.read(2.0)) is not None:
        frames.append(frame)
    source.close()
    return frames


def test_pictures_come_as_rgb_in_order_with_the_cameras_own_optics(recording: str):
    frames = played(open_source(f"realsense:{recording}", CameraSettings(WIDTH, HEIGHT, 30.0)))
    greys = [int(frame.rgb[0, 0, 0]) for frame in frames]
    assert len(frames) > FRAMES // 2, greys
    assert all(frame.rgb.shape == (HEIGHT, WIDTH, 3) and frame.depth is None for frame in frames)
    assert greys == sorted(set(greys)), "an image came twice or out of order"
    optics = frames[0].intrinsics
    assert (optics.width, optics.height, optics.model) == (WIDTH, HEIGHT, "plumb_bob")
    assert optics.k == pytest.approx((60, 0, 32, 0, 61, 24, 0, 0, 1)) and optics.d[0] == pytest.approx(0.1)


def test_stamps_keep_the_hardwares_spacing_in_ros_time(recording: str):
    before = time.time_ns()
    frames = played(open_source(f"realsense:{recording}", CameraSettings(WIDTH, HEIGHT, 30.0)))
    numbers = np.array([frame.rgb[0, 0, 0] / 5 for frame in frames])
    stamps = np.array([frame.stamp_ns for frame in frames])
    assert before < stamps[0] < time.time_ns()
    # The offset is the least delay so far, so it can only shrink: late arrivals do not reach the stamps.
    assert np.all(np.diff(stamps) <= np.diff(numbers) * PERIOD_MS * MS + MS)


def test_depth_comes_with_its_picture_in_m(recording: str):
    frames = played(open_source(f"realsense:{recording}", CameraSettings(WIDTH, HEIGHT, 30.0, depth=True)))
    assert frames
    for frame in frames:
        assert frame.depth.shape == (HEIGHT, WIDTH) and frame.depth.dtype == np.float32
        known = frame.depth[frame.depth > 0.0]  # aligning draws each pixel again and may leave holes
        assert len(known) > 0.5 * frame.depth.size
        # The pair may be of neighbouring images, never of others: their depths differ by 1 mm an image.
        assert np.all(np.abs(known - (1.0 + frame.rgb[0, 0, 0] / 5000.0)) < 0.0015)


def test_jitter_of_arrival_does_not_reach_the_stamps_and_drift_is_followed():
    clocks = ClockMap(window=30)
    rng = np.random.default_rng(1)
    device = np.arange(300) * 33 * MS
    drifting = (device * (1 + 50e-6)).astype(np.int64) + 7_000_000_000
    arrivals = drifting + rng.integers(0, 8 * MS, 300)
    stamps = np.array([clocks.stamp_ns(int(d), int(a)) for d, a in zip(device, arrivals, strict=True)])
    errors = stamps - drifting
    assert np.all(np.abs(errors[30:]) < 1.5 * MS)
    assert np.abs(np.diff(stamps)[30:] - 33 * MS).max() < MS


def test_a_device_clock_that_starts_anew_is_followed():
    clocks = ClockMap()
    assert clocks.stamp_ns(1_000 * MS, 50_000 * MS) == 50_000 * MS
    assert clocks.stamp_ns(1_033 * MS, 50_034 * MS) == 50_033 * MS
    assert clocks.stamp_ns(10 * MS, 52_000 * MS) == 52_000 * MS


def test_a_stall_on_the_way_does_not_make_images_young():
    """Images wait 200 ms in a busy bus and then come at once: each keeps the moment of its capture."""
    clocks = ClockMap()
    errors = []
    for number in range(60):
        captured = number * 33 * MS
        arrival = captured + 5 * MS
        if 30 <= number < 36:
            arrival = 36 * 33 * MS + 5 * MS
        errors.append(clocks.stamp_ns(captured + 7 * MS, arrival) - (captured + 5 * MS))
    assert max(map(abs, errors)) < MS


def test_a_device_clock_that_loses_time_is_followed_after_a_while():
    clocks = ClockMap()
    errors = []
    for number in range(120):
        device = number * 33 * MS
        arrival = device + (500 * MS if number >= 60 else 0)  # it stood for half a second
        errors.append(arrival - clocks.stamp_ns(device, arrival))
    assert max(errors[:60]) == 0 and min(errors[60:85]) == 500 * MS, "it may still be a stall: the images look old"
    assert max(errors[95:]) == 0


class Sensor:
    """A sensor of a camera, with the ranges that librealsense gives for D400 cameras."""

    def __init__(self, rs, name: str) -> None:
        self.rs, self.values = rs, {}
        self.stereo = name == "Stereo Module"
        self.streams = {"RGB Camera": ["color"], "Stereo Module": ["depth", "infrared"]}[name]
        option = rs.option
        self.ranges = {option.exposure: (1, 165000) if self.stereo else (1, 10000), option.enable_auto_exposure: (0, 1)}
        if "color" in self.streams:
            self.ranges |= {option.white_balance: (2800, 6500), option.enable_auto_white_balance: (0, 1)}

    def get_stream_profiles(self):
        return [type("Profile", (), {"stream_type": lambda _, n=n: getattr(self.rs.stream, n)})() for n in self.streams]

    def is_depth_sensor(self) -> bool:
        return self.stereo

    def is_color_sensor(self) -> bool:
        return not self.stereo  # as librealsense has it, of a D405 too

    def supports(self, option) -> bool:
        return option in self.ranges

    def get_option_range(self, option):
        low, high = self.ranges[option]
        return type("Range", (), {"min": low, "max": high})()

    def set_option(self, option, value) -> None:
        low, high = self.ranges[option]
        if not low <= value <= high:
            raise RuntimeError('out of range value for argument "value"')
        self.values[option] = value


def device_of(*sensors):
    return type("Device", (), {"query_sensors": lambda self: list(sensors)})()


def test_exposure_is_in_us_on_every_camera_and_set_where_the_colour_comes_from():
    rs = _package()
    settings = CameraSettings(WIDTH, HEIGHT, 30.0, exposure_us=15_700.0, white_balance_k=4600.0)
    colour, stereo = Sensor(rs, "RGB Camera"), Sensor(rs, "Stereo Module")
    fix_exposure(rs, device_of(stereo, colour), "d435", settings)
    assert colour.values[rs.option.exposure] == 157, "an RGB sensor counts in 100 us"
    assert colour.values[rs.option.enable_auto_exposure] == 0 and colour.values[rs.option.white_balance] == 4600
    assert stereo.values == {}

    d405 = Sensor(rs, "Stereo Module")
    d405.streams.append("color")
    fix_exposure(rs, device_of(d405), "d405", CameraSettings(WIDTH, HEIGHT, 30.0, exposure_us=15_700.0))
    assert d405.values == {rs.option.enable_auto_exposure: 0, rs.option.exposure: 15_700}


@pytest.mark.parametrize(
    ("exposure_us", "white_balance_k", "told"),
    [
        (2e6, 0.0, "does not take exposure 2e.06 us; its range is 1 to 165000 us"),
        (0.0, 4600.0, "has no fixed white balance; set it to 0"),
    ],
)
def test_a_value_that_the_camera_does_not_take_is_refused_with_what_it_takes(exposure_us, white_balance_k, told):
    rs = _package()
    d405 = Sensor(rs, "Stereo Module")
    d405.streams.append("color")
    settings = CameraSettings(WIDTH, HEIGHT, 30.0, exposure_us=exposure_us, white_balance_k=white_balance_k)
    with pytest.raises(CameraError, match=told):
        fix_exposure(rs, device_of(d405), "d405", settings)


def test_a_camera_that_cannot_be_prepared_is_let_go(recording: str, monkeypatch: pytest.MonkeyPatch):
    """Otherwise it stays busy, and no later try can open it."""
    stopped = []
    rs = _package()

    class Pipeline:
        def __init__(self) -> None:
            self.real = rs.pipeline()

        def start(self, *given):
            return self.real.start(*given)

        def stop(self) -> None:
            stopped.append(True)
            self.real.stop()
            raise RuntimeError("stop() cannot be called before start()")

    def unprepared(*_: object) -> None:
        raise RuntimeError("failed to set power state")

    monkeypatch.setattr("molmoact2_ros.cameras.realsense._package", lambda: Wrapped(rs, Pipeline))
    monkeypatch.setattr(RealSenseSource, "_prepare", unprepared)
    with pytest.raises(RuntimeError, match="failed to set power"):
        open_source(f"realsense:{recording}", CameraSettings(WIDTH, HEIGHT, 30.0))
    assert stopped == [True]


class Wrapped:
    """The package with another pipeline."""

    def __init__(self, rs, pipeline) -> None:
        self._rs, self.pipeline = rs, pipeline

    def __getattr__(self, name):
        return getattr(self._rs, name)
