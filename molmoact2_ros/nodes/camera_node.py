"""Publishes the cameras of one robot: images, calibration, and what is wrong with them.

All cameras live in one process, one thread a camera. Every image carries its capture time; an image that is too old,
of the wrong size or not newer than the last one is not published, and `/diagnostics` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.cameras.health import Limits, twins
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.source import CameraSettings, Frame, FrameSource
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.nodes.ros.camera_info import file_info, fill_info, pinhole_info
from molmoact2_ros.nodes.ros.messages import byte_array, image_message, stamp_of
from molmoact2_ros.nodes.ros.node_base import SENSOR, MolmoNode, Parameter, main_of
from molmoact2_ros.nodes.ros.topic_source import TopicSource


def known_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth (height, width) in m with NaN where it is unknown, as REP-118 has it."""
    return np.where(depth > 0.0, depth, np.float32(np.nan)).astype("<f4")


class CameraNode(MolmoNode):
    """Invariant: while active, one stream a camera runs; each publishes only frames that its health check admitted."""

    PARAMETERS = (
        Parameter("names", ["front", "wrist"], "Names of the cameras; topics are cameras/<name>/..."),
        Parameter(
            "sources",
            ["sim:molmoact2_front", "sim:molmoact2_wrist"],
            "Where images come from: sim:<link>, v4l2:<device>, realsense:<serial>, topic:<topic>, file:<video>.",
        ),
        Parameter("calibrations", [""], "Calibration file of each real camera; empty: not calibrated."),
        Parameter("width", 640, "RgbImage width of cameras that are not simulated, pixels.", 16, 4096),
        Parameter("height", 480, "RgbImage height of cameras that are not simulated, pixels.", 16, 4096),
        Parameter("rate_hz", 30.0, "Rate asked of the cameras, Hz.", 1.0, 240.0),
        Parameter("max_age_s", 0.25, "Older images are not published, s.", 0.01, 10.0),
        Parameter("silence_s", 0.5, "Silence after which a camera is reported, s.", 0.05, 10.0),
        Parameter("frozen_s", 1.0, "Same pixels for this long are reported; not for simulated cameras, s.", 0.1, 60.0),
        Parameter("reopen_s", 1.0, "Silence after which a camera is opened anew, time between tries, s.", 0.1, 60.0),
        Parameter("depth", False, "Also publish the depth of RealSense cameras, aligned to the image, 32FC1 in m."),
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
                info = pinhole_info(camera_calibration(self.param("robot"), name))
            else:
                info = file_info(calibration, self.param("width"), self.param("height"))
            info.header.frame_id = f"{name}_optical_frame"
            limits = Limits(
                rate_hz=self.param("rate_hz"),
                width=info.width,
                height=info.height,
                silence_s=self.param("silence_s"),
                age_s=self.param("max_age_s"),
                # A rendered image has no noise: while nothing moves it rightly stays the same.
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

    def _settings(self, name: str, limits: Limits) -> CameraSettings:
        return CameraSettings(
            limits.width,
            limits.height,
            limits.rate_hz,
            depth=name in self._depths,
            exposure=self.param("exposure"),
            white_balance=self.param("white_balance"),
        )

    def _open(self, name: str, source: str, settings: CameraSettings) -> FrameSource:
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
        header = Header(stamp=stamp_of(frame.stamp_ns), frame_id=calibration.header.frame_id)
        message = image_message(frame.rgb, "rgb8", header)
        calibration.header.stamp = header.stamp
        image.publish(message)
        info.publish(calibration)
        if frame.depth is not None and name in self._depths:
            self._depths[name].publish(image_message(known_depth(frame.depth), "32FC1", header))
        if compressed is not None:
            import cv2

            options = [cv2.IMWRITE_JPEG_QUALITY, self.param("jpeg_quality")]
            ok, data = cv2.imencode(".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), options)
            if ok:
                packed = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
                packed.data = byte_array(data)
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
            faults.append(f"cameras {', '.join(same)} show the same image; is one source named twice?")
        if (told := "; ".join(same)) != self._twins:  # on the edge only
            self._twins = told
            if told:
                self.get_logger().error(faults[-1])
        return bytes([level]), "; ".join(faults), values


main = main_of(lambda: CameraNode())

if __name__ == "__main__":
    main()
