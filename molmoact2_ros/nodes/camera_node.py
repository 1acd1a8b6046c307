"""Publishes the cameras of one robot: pictures, calibration, and what is wrong with them.

All cameras live in one process, one thread a camera. Every picture carries its capture time; a picture that is too old,
of the wrong size or not newer than the last one is not published, and `/diagnostics` says so.
"""

from __future__ import annotations

import array
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from molmoact2_ros.cameras.health import Level, Limits, twins
from molmoact2_ros.cameras.source import Frame, FrameSource, Intrinsics, Settings, open_source
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.nodes.node_base import SENSOR, MolmoNode, Parameter, main_of
from molmoact2_ros.nodes.topic_source import TopicSource
from molmoact2_ros.simulation.calibration import camera_calibration


def image_message(frame: Frame, frame_id: str) -> Image:
    """Return `frame` as an rgb8 image message."""
    height, width = frame.rgb.shape[:2]
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(frame.stamp_ns, 1_000_000_000)
    pixels = array.array("B")  # assigning the numpy array itself copies pixel by pixel: 50 ms
    pixels.frombytes(np.ascontiguousarray(frame.rgb).data)
    message.data = pixels
    return message


def simulated_info(robot: str, camera: str) -> CameraInfo:
    """Calibration of a camera of the simulated cell: a pinhole without distortion."""
    calibration = camera_calibration(robot, camera)
    info = CameraInfo(width=calibration.width, height=calibration.height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [float(value) for value in calibration.k.ravel()]
    info.r = [float(value) for value in np.eye(3).ravel()]
    info.p = [float(value) for value in np.hstack([calibration.k, np.zeros((3, 1))]).ravel()]
    return info


def file_info(path: str, width: int, height: int) -> CameraInfo:
    """Calibration from a file as ROS's camera calibrator writes it; zeros (not calibrated) when `path` is empty.

    Raises:
        ValueError: the file lacks a key, or was made at another picture size.
    """
    info = CameraInfo(width=width, height=height)
    if not path:
        return info
    values = yaml.safe_load(Path(path).expanduser().read_text())
    try:
        size = int(values["image_width"]), int(values["image_height"])
        info.distortion_model = str(values["distortion_model"])
        info.d = [float(v) for v in values["distortion_coefficients"]["data"]]
        info.k = [float(v) for v in values["camera_matrix"]["data"]]
        info.r = [float(v) for v in values["rectification_matrix"]["data"]]
        info.p = [float(v) for v in values["projection_matrix"]["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: no calibration as camera_calibration writes it: {error} is missing") from None
    if size != (width, height):
        raise ValueError(f"{path}: made at {size[0]}x{size[1]}, but the camera gives {width}x{height}; calibrate again")
    return info


def fill_info(info: CameraInfo, found: Intrinsics) -> None:
    """Put into `info` what the camera itself says of its optics."""
    info.width, info.height, info.distortion_model = found.width, found.height, found.model
    info.k, info.d = list(found.k), list(found.d)
    info.r = [float(value) for value in np.eye(3).ravel()]
    info.p = [float(value) for value in np.hstack([np.reshape(found.k, (3, 3)), np.zeros((3, 1))]).ravel()]


def depth_message(frame: Frame, header: Header) -> Image:
    """Return the depth of `frame` as a 32FC1 image in m; what is unknown is NaN, as REP-118 has it."""
    assert frame.depth is not None
    height, width = frame.depth.shape
    message = Image(header=header, height=height, width=width, encoding="32FC1", step=4 * width)
    known = np.where(frame.depth > 0.0, frame.depth, np.float32(np.nan)).astype("<f4")
    pixels = array.array("B")
    pixels.frombytes(np.ascontiguousarray(known).data)
    message.data = pixels
    return message


class CameraNode(MolmoNode):
    """Invariant: while active, one stream a camera runs; each publishes only frames that its health check admitted."""

    PARAMETERS = (
        Parameter("names", ["front", "wrist"], "Names of the cameras; topics are cameras/<name>/..."),
        Parameter(
            "sources",
            ["sim:molmoact2_front", "sim:molmoact2_wrist"],
            "Where pictures come from: sim:<link>, v4l2:<device>, realsense:<serial>, topic:<topic>, file:<video>.",
        ),
        Parameter("calibrations", [""], "Calibration file of each real camera; empty: not calibrated."),
        Parameter("width", 640, "Picture width of cameras that are not simulated, pixels.", 16, 4096),
        Parameter("height", 480, "Picture height of cameras that are not simulated, pixels.", 16, 4096),
        Parameter("rate_hz", 30.0, "Rate asked of the cameras, Hz.", 1.0, 240.0),
        Parameter("max_age_s", 0.25, "Older pictures are not published, s.", 0.01, 10.0),
        Parameter("silence_s", 0.5, "Silence after which a camera is reported, s.", 0.05, 10.0),
        Parameter("frozen_s", 1.0, "Same pixels for this long are reported; not for simulated cameras, s.", 0.1, 60.0),
        Parameter("reopen_s", 1.0, "Silence after which a camera is opened anew, time between tries, s.", 0.1, 60.0),
        Parameter("depth", False, "Also publish the depth of RealSense cameras, aligned to the picture, 32FC1 in m."),
        Parameter("exposure", 0.0, "Fixed exposure (V4L2: 100 us, RealSense: us); 0: the camera's.", 0.0, 1e6),
        Parameter("white_balance", 0.0, "Fixed white balance, K; 0: the camera's choice.", 0.0, 10000.0),
        Parameter("jpeg_quality", 0, "Quality of image_raw/compressed; 0 publishes none.", 0, 100),
    )

    def __init__(self) -> None:
        super().__init__("camera")
        self._streams: list[CameraStream] = []
        self._plans: dict[str, tuple[str, Limits, CameraInfo]] = {}
        self._outputs: dict[str, tuple[Publisher, Publisher, Publisher | None]] = {}
        self._levels: dict[str, Level] = {}
        self._depths: dict[str, Publisher] = {}
        self._topics: dict[str, TopicSource] = {}
        self._twins = ""

    def setup(self) -> None:
        names, sources, calibrations = (list(self.param(key)) for key in ("names", "sources", "calibrations"))
        if len(set(names)) != len(names) or len(names) != len(sources):
            raise ValueError(f"parameters names {names} and sources {sources} must be distinct and of one length")
        calibrations = calibrations if any(calibrations) else [""] * len(names)
        if len(calibrations) != len(names):
            raise ValueError(f"parameter calibrations needs one entry for each of {names}, got {calibrations}")
        for name, source, calibration in zip(names, sources, calibrations, strict=True):
            simulated = source.startswith("sim:")
            if simulated:
                info = simulated_info(self.param("robot"), name)
            else:
                info = file_info(calibration, self.param("width"), self.param("height"))
            info.header.frame_id = f"{name}_optical_frame"
            limits = Limits(
                rate_hz=self.param("rate_hz"),
                width=info.width,
                height=info.height,
                silence_s=self.param("silence_s"),
                age_s=self.param("max_age_s"),
                # A rendered picture has no noise: while nothing moves it rightly stays the same.
                frozen_s=math.inf if simulated else self.param("frozen_s"),
            )
            self._plans[name] = (source, limits, info)
            topic = f"cameras/{name}"
            kind, _, address = source.partition(":")
            if kind == "topic" and name not in self._topics:  # a subscription stays as long as the node
                self._topics[name] = TopicSource(self, address)
            if kind == "realsense" and self.param("depth"):
                self._depths[name] = self.output(Image, f"{topic}/depth/image_raw", SENSOR)
            self._outputs[name] = (
                self.output(Image, f"{topic}/image_raw", SENSOR),
                self.output(CameraInfo, f"{topic}/camera_info", SENSOR),
                self.output(CompressedImage, f"{topic}/image_raw/compressed", SENSOR)
                if self.param("jpeg_quality") > 0
                else None,
            )

    def start(self) -> None:
        for name, (source, limits, _) in self._plans.items():
            opener = partial(self._open, name, source, self._settings(name, limits))
            publish = partial(self._publish, name)
            self._streams.append(CameraStream(name, opener, limits, publish, self.now_ns, self.param("reopen_s")))

    def _settings(self, name: str, limits: Limits) -> Settings:
        return Settings(
            limits.width,
            limits.height,
            limits.rate_hz,
            depth=name in self._depths,
            exposure=self.param("exposure"),
            white_balance=self.param("white_balance"),
        )

    def _open(self, name: str, source: str, settings: Settings) -> FrameSource:
        return self._topics[name] if name in self._topics else open_source(source, settings, self.now_ns)

    def stop(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def teardown(self) -> None:
        self.stop()
        self._depths.clear()
        self._outputs.clear()
        self._plans.clear()

    def _publish(self, name: str, frame: Frame) -> None:
        """Send one frame. Runs in the camera's thread."""
        image, info, compressed = self._outputs[name]
        calibration = self._plans[name][2]
        if not any(calibration.k) and frame.intrinsics is not None:
            fill_info(calibration, frame.intrinsics)
        message = image_message(frame, calibration.header.frame_id)
        calibration.header.stamp = message.header.stamp
        image.publish(message)
        info.publish(calibration)
        if frame.depth is not None and name in self._depths:
            self._depths[name].publish(depth_message(frame, message.header))
        if compressed is not None:
            import cv2

            options = [cv2.IMWRITE_JPEG_QUALITY, self.param("jpeg_quality")]
            ok, data = cv2.imencode(".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), options)
            if ok:
                packed = CompressedImage(header=message.header, format="rgb8; jpeg compressed bgr8")
                packed.data = array.array("B", data.tobytes())
                compressed.publish(packed)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if not self._streams:
            return DiagnosticStatus.OK, "inactive", {}
        reports = {stream.name: stream.report() for stream in self._streams}
        values: dict[str, object] = {}
        for name, report in reports.items():
            values[f"{name}.rate_hz"] = f"{report.rate_hz:.1f}"
            values[f"{name}.age_ms"] = f"{1e3 * report.age_s:.0f}"
            values[f"{name}.frames"] = report.frames
            values[f"{name}.refused"] = report.refused
            before = self._levels.get(name, Level.OK)
            if report.level is not before:  # on the edge only
                if report.level is Level.OK:
                    self.get_logger().info(report.message)
                else:
                    self.get_logger().warning(report.message)
            self._levels[name] = report.level
        level = max(report.level for report in reports.values())
        faults = [report.message for report in reports.values() if report.level is level]
        same = [f"{a!r} and {b!r}" for a, b in twins({stream.name: stream.sample() for stream in self._streams})]
        if same:
            level = Level.ERROR
            faults.append(f"cameras {', '.join(same)} show the same picture; is one source named twice?")
        if (told := "; ".join(same)) != self._twins:  # on the edge only
            self._twins = told
            if told:
                self.get_logger().error(faults[-1])
        return bytes([level]), "; ".join(faults), values


main = main_of(lambda: CameraNode())

if __name__ == "__main__":
    main()
