"""Pictures of another driver: their encodings, stamps and optics, and what cannot be taken."""

import array
import time
import uuid

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, Image

from molmoact2_ros.nodes.ros.messages import rgb_from_image
from molmoact2_ros.nodes.ros.topic_source import NEWEST_PICTURE, TopicSource

RGB = np.random.default_rng(5).integers(0, 255, (4, 6, 3), np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0) -> Image:
    rows = pixels.reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    out = Image(height=4, width=6, encoding=encoding, step=rows.shape[1])
    out.data = array.array("B", rows.tobytes())
    return out


@pytest.mark.parametrize("padding", [0, 5])
def test_every_encoding_becomes_rgb(padding: int):
    alpha = np.full((4, 6, 1), 7, np.uint8)
    assert np.array_equal(rgb_from_image(message("rgb8", RGB, padding)), RGB)
    assert np.array_equal(rgb_from_image(message("bgr8", RGB[..., ::-1], padding)), RGB)
    assert np.array_equal(rgb_from_image(message("bgra8", np.concatenate([RGB[..., ::-1], alpha], 2), padding)), RGB)
    assert np.array_equal(rgb_from_image(message("rgba8", np.concatenate([RGB, alpha], 2), padding)), RGB)


def test_another_encoding_is_named():
    with pytest.raises(ValueError, match="encoding is 'mono16', expected one of rgb8"):
        rgb_from_image(message("mono16", RGB))


def test_the_newest_picture_comes_with_its_stamp_and_optics():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("hears", namespace=f"/t{uuid.uuid4().hex[:8]}", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        source = TopicSource(node, "zed/rgb/image_rect_color")
        images = node.create_publisher(Image, "zed/rgb/image_rect_color", NEWEST_PICTURE)
        infos = node.create_publisher(CameraInfo, "zed/rgb/camera_info", NEWEST_PICTURE)
        sent = message("bgr8", RGB[..., ::-1])
        sent.header.stamp.sec, sent.header.stamp.nanosec = 12, 34
        info = CameraInfo(width=6, height=4, distortion_model="plumb_bob", d=[0.0] * 5, k=[float(i) for i in range(9)])
        frame, deadline = None, time.monotonic() + 20.0
        while (frame is None or frame.intrinsics is None) and time.monotonic() < deadline:
            infos.publish(info)
            images.publish(sent)
            executor.spin_once(timeout_sec=0.05)
            frame = source.read(0.0) or frame
        assert frame is not None and frame.intrinsics is not None
        assert frame.stamp_ns == 12_000_000_034 and np.array_equal(frame.rgb, RGB)
        assert frame.intrinsics.k == tuple(float(i) for i in range(9))
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
