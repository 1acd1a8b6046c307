"""The camera node as a process: images and calibration over real ROS, bit for bit, and a silent camera named."""

import os
import time
import uuid
from dataclasses import replace

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import ProcessGroup
from molmoact2_ros.bringup.specs import nodes
from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.nodes.ros.node_base import RELIABLE, SENSOR


def test_pictures_keep_their_pixels_and_stamps_and_a_silent_camera_is_named(tmp_path):
    prefix = f"test_{uuid.uuid4().hex[:8]}"
    camera = next(spec for spec in nodes(Options(link_prefix=prefix)) if spec.executable == "camera_node")
    camera = replace(camera, parameters={**camera.parameters, "jpeg_quality": 90})
    context = rclpy.Context()
    rclpy.init(context=context)
    listener = rclpy.create_node("listener", namespace="/so101", context=context)
    heard: dict[str, list] = {"image": [], "info": [], "jpeg": [], "diagnostics": []}
    listener.create_subscription(Image, "cameras/front/image_raw", heard["image"].append, SENSOR)
    listener.create_subscription(CameraInfo, "cameras/front/camera_info", heard["info"].append, SENSOR)
    listener.create_subscription(CompressedImage, "cameras/front/image_raw/compressed", heard["jpeg"].append, SENSOR)
    listener.create_subscription(DiagnosticArray, "/diagnostics", heard["diagnostics"].append, RELIABLE)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    writer = FrameWriter(f"{prefix}_front", 240, 320)
    picture = np.random.default_rng(3).integers(0, 255, (240, 320, 3), np.uint8)

    def until(condition, feed: bool) -> list[int]:
        stamps = []
        deadline = time.monotonic() + 30.0
        while not condition() and time.monotonic() < deadline:
            if feed:
                stamps.append(time.time_ns())
                writer.write(picture, stamps[-1])
            executor.spin_once(timeout_sec=0.05)
        assert condition()
        return stamps

    def words() -> str:
        statuses = [status for array in heard["diagnostics"] for status in array.status]
        return statuses[-1].message if statuses else ""

    try:
        with ProcessGroup([camera], tmp_path, os.environ):
            stamps = until(lambda: all(heard[key] for key in ("image", "info", "jpeg")), feed=True)
            until(lambda: "'front': no frame for" in words(), feed=False)
            assert "'wrist': no simulated camera" in words()
    finally:
        writer.close()
        executor.shutdown()
        listener.destroy_node()
        rclpy.try_shutdown(context=context)
    image, info = heard["image"][0], heard["info"][0]
    assert image.header.stamp.sec * 1_000_000_000 + image.header.stamp.nanosec in stamps
    assert (image.encoding, image.header.frame_id) == ("rgb8", "front_optical_frame")
    assert np.array_equal(np.frombuffer(image.data, np.uint8).reshape(240, 320, 3), picture)
    assert np.allclose(info.k, camera_calibration("so101", "front").k.ravel())
    assert bytes(heard["jpeg"][0].data[:2]) == b"\xff\xd8"
