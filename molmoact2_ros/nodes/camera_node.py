"""Publishes the cameras of one robot: images, calibration, and what is wrong with them.

All cameras live in one process, one thread a camera. Every image carries its capture time; an image that is too old,
of the wrong size, not newer than the last one, frozen, black or another camera's is not published. Whoever acts on the
images then stops as for silence, and `cameras/<name>/state` says why.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.cameras.health import Limits, TwinWatch
from molmoact2_ros.cameras.opening import open_source
from molmoact2_ros.cameras.shared_memory import PROFILE_VARIABLE, shortage, write_profile
from molmoact2_ros.cameras.source import CameraSettings, Frame, FrameSource, Intrinsics
from molmoact2_ros.cameras.stream import CameraStream
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.nodes.ros.camera_info import file_info, fill_info, is_rectified, pinhole_info
from molmoact2_ros.nodes.ros.camera_parameters import PARAMETERS, image_format, limit_of
from molmoact2_ros.nodes.ros.messages import byte_array, image_message, stamp_of
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR
from molmoact2_ros.nodes.ros.topic_source import TopicSource
from molmoact2_ros.share import share_path

WATCH_S = 0.2
"""Shorter than the silence after which a policy stops, so that the reason is there before."""


def known_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth (height, width) in m with NaN where it is unknown, as REP-118 has it."""
    return np.where(depth > 0.0, depth, np.float32(np.nan)).astype("<f4")


@dataclass(frozen=True)
class Outputs:
    """Publishers of one camera; depth and JPEG where they are asked for."""

    image: Publisher
    info: Publisher
    state: Publisher
    depth: Publisher | None
    jpeg: Publisher | None


@dataclass
class Camera:
    """One camera between configure and cleanup: what is asked of it, and what was last said of it."""

    source: str
    limits: Limits
    settings: CameraSettings
    info: CameraInfo
    outputs: Outputs
    optics: Intrinsics | None = None
    told: tuple[str, str] | None = None
    info_problem: str = ""

    def __post_init__(self) -> None:
        self.calibrated = any(self.info.k)


class CameraNode(MolmoNode):
    """Invariant: while active, one stream a camera runs; each publishes only frames that its health check admitted."""

    PARAMETERS = PARAMETERS

    def __init__(self) -> None:
        super().__init__("camera")
        self._cameras: dict[str, Camera] = {}
        self._streams: dict[str, CameraStream] = {}
        self._topics: dict[str, TopicSource] = {}
        self._twins = TwinWatch()
        self._short = ""

    def setup(self) -> None:
        names, sources = list(self.param("names")), list(self.param("sources"))
        if not any(sources):
            example = [f"v4l2:/dev/v4l/by-path/... of {name}" for name in names]
            raise ValueError(f"parameter sources is empty; say where the images come from, such as {example}")
        if len(set(names)) != len(names) or len(names) != len(sources):
            raise ValueError(f"parameters names {names} and sources {sources} must be distinct and of one length")
        calibrations, formats, exposures, whites = (
            self._each(key, names) for key in ("calibrations", "formats", "exposures_us", "white_balances_k")
        )
        self._twins = TwinWatch(limit_of(self.param("doubled_s")))
        for name, source in zip(names, sources, strict=True):
            kind, _, address = source.partition(":")
            width, height, rate_hz = image_format(
                formats[name], *(self.param(key) for key in ("width", "height", "rate_hz"))
            )
            if kind == "sim":
                info = pinhole_info(camera_calibration(self.param("robot"), name))
            else:
                rectified = kind == "topic" and is_rectified(address)
                info = file_info(calibrations[name], width, height, rectified)
            info.header.frame_id = f"{name}_optical_frame"
            limits = Limits(
                rate_hz=rate_hz,
                width=info.width,
                height=info.height,
                silence_s=self.param("silence_s"),
                age_s=self.param("max_age_s"),
                black_s=limit_of(self.param("black_s")),
                # A rendered image has no noise, and a file may hold a still: they rightly stay the same.
                frozen_s=math.inf if kind in ("sim", "file") else limit_of(self.param("frozen_s")),
            )
            settings = CameraSettings(
                limits.width,
                limits.height,
                rate_hz,
                depth=kind == "realsense" and bool(self.param("depth")),
                exposure_us=exposures[name],
                white_balance_k=whites[name],
            )
            if kind == "topic" and name not in self._topics:  # a subscription stays as long as the node
                self._topics[name] = TopicSource(self, address)
            self._cameras[name] = Camera(source, limits, settings, info, self._outputs_of(name, settings.depth))
        self.every(WATCH_S, self._watch, inactive=True, steady=True)
        self._check_memory()

    def _outputs_of(self, name: str, depth: bool) -> Outputs:
        topic = f"cameras/{name}"
        return Outputs(
            image=self.output(Image, f"{topic}/image_raw", SENSOR),
            info=self.output(CameraInfo, f"{topic}/camera_info", SENSOR),
            state=self.output(DiagnosticStatus, f"{topic}/state", LATCHED),
            depth=self.output(Image, f"{topic}/depth/image_raw", SENSOR) if depth else None,
            jpeg=self.output(CompressedImage, f"{topic}/image_raw/compressed", SENSOR)
            if self.param("jpeg_quality") > 0
            else None,
        )

    def _each(self, key: str, names: list[str]) -> dict[str, Any]:
        """The parameter's value for each camera: it has one for all of them, or one for each."""
        values = list(self.param(key))
        if len(values) not in (1, len(names)) or (key == "calibrations" and len(values) < len(names) and any(values)):
            raise ValueError(f"parameter {key} needs one entry for each of {names}, got {values}")
        return dict(zip(names, values * len(names) if len(values) == 1 else values, strict=True))

    def _check_memory(self) -> None:
        """Images that the middleware loses are missed by nobody but who waits for them: said at the start."""
        if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp").startswith("rmw_fastrtps"):
            shm = Path("/dev/shm")
            free = shutil.disk_usage(shm).free if shm.is_dir() else 0
            cameras = [camera.settings for camera in self._cameras.values()]
            profile = os.environ.get(PROFILE_VARIABLE, "")
            self._short = shortage(cameras, profile, free)
            if self._short:
                self.get_logger().error(self._short)
                enough = write_profile(share_path("config/fastdds.xml"), cameras, Path(tempfile.gettempdir()))
                self.get_logger().error(f"start this node with {PROFILE_VARIABLE}={enough}, which gives it")

    def start(self) -> None:
        for name, camera in self._cameras.items():
            opener, publish = partial(self._open, name, camera), partial(self._publish, name, camera)
            reopen_s = self.param("reopen_s")
            self._streams[name] = CameraStream(name, opener, camera.limits, publish, self.now_ns, reopen_s)

    def _open(self, name: str, camera: Camera) -> FrameSource:
        if name in self._topics:
            return self._topics[name]
        return open_source(camera.source, camera.settings, self.now_ns)

    def stop(self) -> None:
        for name, stream in self._streams.items():
            stream.close()
            camera = self._cameras[name]
            camera.told = None
            if self.context.ok():
                self._say(name, camera, Level.ERROR, "inactive", f"camera {name!r}: its node is not active")
        self._streams.clear()

    def teardown(self) -> None:
        self.stop()
        self._cameras.clear()

    # -- images (the camera's thread) -------------------------------------------------------------------------------

    def _publish(self, name: str, camera: Camera, frame: Frame) -> None:
        outputs, info = camera.outputs, camera.info
        if frame.intrinsics is not None and frame.intrinsics != camera.optics and not camera.calibrated:
            if camera.optics is not None:
                self.get_logger().warning(f"camera {name!r}: its camera_info has changed; the new one is used")
            fill_info(info, frame.intrinsics)
            camera.optics = frame.intrinsics
        header = Header(stamp=stamp_of(frame.stamp_ns), frame_id=info.header.frame_id)
        message = image_message(frame.rgb, "rgb8", header)
        info.header.stamp = header.stamp
        outputs.image.publish(message)
        outputs.info.publish(info)
        if frame.depth is not None and outputs.depth is not None:
            outputs.depth.publish(image_message(known_depth(frame.depth), "32FC1", header))
        if outputs.jpeg is not None:
            import cv2

            options = [cv2.IMWRITE_JPEG_QUALITY, self.param("jpeg_quality")]
            ok, data = cv2.imencode(".jpg", np.ascontiguousarray(frame.rgb[..., ::-1]), options)
            if ok:
                packed = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
                packed.data = byte_array(data)
                outputs.jpeg.publish(packed)

    # -- state (the node's thread) ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Say, when it changes, what is wrong with a camera."""
        samples = {name: stream.sample() for name, stream in self._streams.items()}
        for name, others in self._twins.look(samples, self.now_ns()).items():
            self._streams[name].doubled_by(others)
        for name, stream in self._streams.items():
            report, camera = stream.report(), self._cameras[name]
            # What keeps a camera from being opened is told in full; other kinds differ in their figures only.
            told = (report.kind, report.message if report.kind == "not open" else "")
            if told == camera.told:
                continue
            camera.told = told
            self._say(name, camera, report.level, report.kind, report.message)
            if report.level is Level.OK:
                self.get_logger().info(report.message)
            else:
                self.get_logger().warning(report.message)
        for name, source in self._topics.items():
            camera = self._cameras[name]
            if source.info_problem != camera.info_problem and not camera.calibrated:
                camera.info_problem = source.info_problem
                self.get_logger().warning(f"camera {name!r}: {source.info_problem or 'its camera_info is used'}")

    def _say(self, name: str, camera: Camera, level: Level, kind: str, message: str) -> None:
        status = DiagnosticStatus(level=bytes([level]), name=f"camera {name}", message=message)
        status.values = [KeyValue(key="kind", value=kind)]
        camera.outputs.state.publish(status)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if not self._streams:
            return DiagnosticStatus.OK, "inactive", {}
        reports = {name: stream.report() for name, stream in self._streams.items()}
        values: dict[str, object] = {}
        for name, report in reports.items():
            values[f"{name}.rate_hz"] = f"{report.rate_hz:.1f}"
            values[f"{name}.age_ms"] = f"{1e3 * report.age_s:.0f}"
            values[f"{name}.frames"] = report.frames
            values[f"{name}.refused"] = report.refused
        level = max(report.level for report in reports.values())
        words = [report.message for report in reports.values() if report.level is level]
        extra = [self._short] if self._short else []
        extra += [
            f"camera {name!r}: {camera.info_problem}" for name, camera in self._cameras.items() if camera.info_problem
        ]
        if extra and level is Level.OK:
            level, words = Level.WARN, []
        return bytes([level]), "; ".join(words + extra), values


main = main_of(lambda: CameraNode())

if __name__ == "__main__":
    main()
