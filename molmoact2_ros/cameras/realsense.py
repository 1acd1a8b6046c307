"""RealSense cameras by serial number, and recordings of them: colour, depth aligned to it, hardware stamps."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from molmoact2_ros.cameras.clock_map import ClockMap
from molmoact2_ros.cameras.source import CameraError, CameraSettings, Clock, Frame, Intrinsics

INSTALL = "pip install '.[realsense]' in the checkout"
RECORDINGS = (".db3", ".bag")
PAIR_PERIODS = 1.5
"""A depth image belongs to a colour image when their stamps are at most so many periods apart: the two sensors are
not synchronised, and on a busy machine librealsense also hands out pairs of different moments."""
_DISTORTION = {
    "none": "plumb_bob",
    "brown_conrady": "plumb_bob",
    "modified_brown_conrady": "plumb_bob",
    "inverse_brown_conrady": "plumb_bob",
    "kannala_brandt4": "equidistant",
}
"""Names of ROS for the models of librealsense; D400 colour streams report inverse Brown-Conrady with all zeros."""


class RealSenseSource:
    """One camera, or a recording of one, through an rs pipeline of its own.

    Only the newest pair of images is kept. Exposure and white balance are fixed where the settings say so.

    Args:
        address: serial number, or path of a recording, which is played once at its own pace.
        settings: size, rate, depth, exposure and white balance asked for.
        clock: ROS time in ns.

    Raises:
        CameraError: the package is missing, or there is no such camera or recording, or it cannot do what is asked.
    """

    def __init__(
        self,
        address: str,
        settings: CameraSettings,
        clock: Clock = time.time_ns,
        steady: Clock = time.monotonic_ns,
    ) -> None:
        self._rs = rs = _package()
        self._clock, self._steady, self._map = clock, steady, ClockMap()
        self._last_number = -1
        self._depth = settings.depth
        config = rs.config()
        recorded = address.endswith(RECORDINGS)
        if recorded:
            if not Path(address).is_file():
                raise CameraError(f"no recording {address}")
            config.enable_device_from_file(address, False)
            config.enable_stream(rs.stream.color)
        else:
            _check_plugged(rs, address)
            config.enable_device(address)
            size = settings.width, settings.height
            config.enable_stream(rs.stream.color, *size, rs.format.rgb8, round(settings.rate_hz))
        if self._depth:
            if recorded:
                config.enable_stream(rs.stream.depth)
            else:
                config.enable_stream(rs.stream.depth, *size, rs.format.z16, round(settings.rate_hz))
        self._queue = rs.frame_queue(1)  # a full queue drops the oldest
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config, self._queue)
        except RuntimeError as error:
            raise CameraError(
                f"RealSense {address} cannot give {settings.width}x{settings.height} at {settings.rate_hz:g} Hz: "
                f"{error}; rs-enumerate-devices lists what it can; is it in a USB 3 socket?"
            ) from error
        self._pipeline: Any = pipeline
        try:
            self._prepare(profile, address, None if recorded else settings)
        except Exception:
            with suppress(RuntimeError):  # the first reason is the one to tell
                self.close()
            raise

    def _prepare(self, profile: Any, address: str, settings: CameraSettings | None) -> None:
        """Fix what `settings` say, and read what images need, of the camera that runs."""
        rs = self._rs
        if settings is not None:
            fix_exposure(rs, profile.get_device(), address, settings)
        self._align = rs.align(rs.stream.color)
        self._unit_m = 0.001
        for sensor in profile.get_device().query_sensors():
            if sensor.supports(rs.option.depth_units):
                self._unit_m = float(sensor.get_option(rs.option.depth_units))
        self._apart_ms = PAIR_PERIODS * 1e3 / profile.get_stream(rs.stream.color).fps()
        self._intrinsics = _intrinsics(profile.get_stream(rs.stream.color).as_video_stream_profile().get_intrinsics())

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image, with its depth in m where it was asked for; None when none came in time."""
        deadline = time.monotonic() + timeout_s
        while self._pipeline is not None:
            wait_ms = max(1, round((deadline - time.monotonic()) * 1e3))
            got, frame = self._queue.try_wait_for_frame(wait_ms)
            if got:
                found = self._frame(frame)
                if found is not None:
                    return found
            if time.monotonic() >= deadline:
                break
        return None

    def close(self) -> None:
        """Stop the pipeline; safe to call twice."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.stop()

    def _frame(self, frame: Any) -> Frame | None:
        now, arrival = self._clock(), self._steady()
        frames = frame.as_frameset()
        if not frames:
            return None
        if self._depth:
            if not self._is_pair(frames):
                return None
            frames = self._align.process(frames).as_frameset()
        colour = frames.get_color_frame()
        if not colour or colour.get_frame_number() == self._last_number:
            return None  # the depth image was new, not this one
        self._last_number = colour.get_frame_number()
        depth = None
        if self._depth:
            raw = np.asanyarray(frames.get_depth_frame().get_data())
            depth = raw.astype(np.float32) * np.float32(self._unit_m)
        rgb = np.array(np.asanyarray(colour.get_data()), dtype=np.uint8)
        return Frame(rgb, self._stamp(colour, now, arrival), depth, self._intrinsics)

    def _is_pair(self, frames: Any) -> bool:
        depth, colour = frames.get_depth_frame(), frames.get_color_frame()
        if not depth or not colour:
            return False
        if depth.get_frame_timestamp_domain() != colour.get_frame_timestamp_domain():
            return True  # stamps of two clocks say nothing about each other
        return bool(abs(depth.get_timestamp() - colour.get_timestamp()) <= self._apart_ms)

    def _stamp(self, colour: Any, now_ns: int, arrival_ns: int) -> int:
        """ROS time of the capture: `system_time` and `global_time` are this machine's clock already."""
        device_ns = round(colour.get_timestamp() * 1e6)
        domain = self._rs.timestamp_domain
        if colour.get_frame_timestamp_domain() in (domain.system_time, domain.global_time):
            return device_ns
        return now_ns - (arrival_ns - self._map.stamp_ns(device_ns, arrival_ns))


def _package() -> ModuleType:
    # librealsense needs libusb; the package index has it where the system has not. Loaded first, it is the one found.
    spec = find_spec("libusb_package")
    if spec is not None and spec.origin is not None:
        library = Path(spec.origin).parent / "libusb-1.0.so"
        if library.is_file():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        import pyrealsense2
    except ImportError as error:
        if "libusb" in str(error):
            raise CameraError("RealSense needs libusb: sudo apt install libusb-1.0-0") from None
        raise CameraError(f"pyrealsense2 is not installed: {INSTALL}") from None
    return pyrealsense2


def _check_plugged(rs: ModuleType, serial: str) -> None:
    known = [device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()]
    if serial not in known:
        raise CameraError(
            f"no RealSense with serial {serial!r}; is the cable in? plugged in: {', '.join(known) or 'none'}"
        )


def fix_exposure(rs: ModuleType, device: Any, address: str, settings: CameraSettings) -> None:
    """Switch the automatics off where a value is given: images that change by themselves confuse a policy.

    The sensor is the one that the colour images come from: the stereo module of a D405, which has no other.

    Raises:
        CameraError: the camera has no such setting, or does not take the value.
    """
    option = rs.option
    sensor = _colour_sensor(rs, device)
    # A stereo module counts in us; the RGB sensors count in 100 us, as V4L2 does.
    step_us = 1.0 if sensor is not None and sensor.is_depth_sensor() else 100.0
    fixed = (
        ("exposure", "us", settings.exposure_us, step_us, option.enable_auto_exposure, option.exposure),
        ("white balance", "K", settings.white_balance_k, 1.0, option.enable_auto_white_balance, option.white_balance),
    )
    for name, unit, value, step, automatic, manual in fixed:
        if not value > 0.0:
            continue
        if sensor is None or not sensor.supports(manual):
            raise CameraError(f"RealSense {address} has no fixed {name}; set it to 0 for this camera")
        found = sensor.get_option_range(manual)
        asked = round(value / step)
        if not found.min <= asked <= found.max:
            raise CameraError(
                f"RealSense {address} does not take {name} {value:g} {unit}; its range is {found.min * step:g} to "
                f"{found.max * step:g} {unit}"
            )
        if sensor.supports(automatic):
            sensor.set_option(automatic, 0)
        sensor.set_option(manual, asked)


def _colour_sensor(rs: ModuleType, device: Any) -> Any | None:
    for sensor in device.query_sensors():
        if any(profile.stream_type() == rs.stream.color for profile in sensor.get_stream_profiles()):
            return sensor
    return None


def _intrinsics(found: Any) -> Intrinsics:
    model = str(found.model).rpartition(".")[2]
    coefficients = tuple(float(value) for value in found.coeffs)
    return Intrinsics(
        width=int(found.width),
        height=int(found.height),
        k=(float(found.fx), 0.0, float(found.ppx), 0.0, float(found.fy), float(found.ppy), 0.0, 0.0, 1.0),
        model=_DISTORTION.get(model, "plumb_bob"),
        d=coefficients[:4] if model == "kannala_brandt4" else coefficients,
    )
