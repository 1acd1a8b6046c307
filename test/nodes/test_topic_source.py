"""Pictures of another driver: their encodings, stamps and optics, and what cannot be taken."""

import array
import time
import uuid
from contextlib import contextmanager

import numpy as np
import pytest
import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from molmoact2_ros.cameras.source import BadImageError
from molmoact2_ros.nodes.ros.camera_info import file_info, intrinsics_of, is_rectified
from molmoact2_ros.nodes.ros.messages import rgb_from_image
from molmoact2_ros.nodes.ros.topic_source import NEWEST_PICTURE, TopicSource, info_topic

RGB = np.random.default_rng(5).integers(0, 255, (4, 6, 3), np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0) -> Image:
    rows = pixels.reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    out = Image(height=4, width=6, encoding=encoding, step=rows.shape[1])
    out.data = array.array("B", rows.tobytes())
    return out


def test_another_encoding_is_named():
    with pytest.raises(ValueError, match="encoding is '32FC1', expected one of rgb8"):
        rgb_from_image(message("32FC1", RGB))


def test_a_message_without_step_and_one_without_the_last_padding_are_read():
    sent = message("bgr8", RGB[..., ::-1])
    sent.step = 0
    assert np.array_equal(rgb_from_image(sent), RGB)
    sent = message("rgb8", RGB, padding=5)
    sent.data = sent.data[:-5]
    assert np.array_equal(rgb_from_image(sent), RGB)


@pytest.mark.parametrize(
    ("topic", "beside"),
    [
        ("/camera/color/image_raw", "/camera/color/camera_info"),
        ("/camera/color/image_raw/compressed", "/camera/color/camera_info"),
        ("camera/image", "camera/camera_info"),
        ("image_raw", "camera_info"),  # relative: never the /camera_info of whoever it may be
        ("image_raw/compressed", "camera_info"),
        ("/image_raw", "/camera_info"),
    ],
)
def test_the_optics_are_looked_for_beside_the_image(topic: str, beside: str):
    assert info_topic(topic) == beside


K = [600.0, 0.0, 320.0, 0.0, 610.0, 240.0, 0.0, 0.0, 1.0]
P = [580.0, 0.0, 318.0, -30.0, 0.0, 580.0, 239.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def info(**values) -> CameraInfo:
    given = {
        "width": 640,
        "height": 480,
        "distortion_model": "plumb_bob",
        "d": [0.1, -0.2, 0.0, 0.0, 0.0],
        "k": K,
        "p": P,
    }
    return CameraInfo(**{**given, **values})


def test_a_rectified_image_has_the_matrix_p_and_no_distortion():
    assert is_rectified("zed/rgb/image_rect_color") and is_rectified("/zed/rgb/color/rect/image")
    assert not is_rectified("/camera/color/image_raw") and not is_rectified("/direct/image_correction")
    raw = intrinsics_of(info(), 640, 480, rectified=False)
    assert raw is not None and raw.k == tuple(K) and raw.d == (0.1, -0.2, 0.0, 0.0, 0.0)
    flat = intrinsics_of(info(), 640, 480, rectified=True)
    assert flat is not None and flat.k == (580.0, 0.0, 318.0, 0.0, 580.0, 239.0, 0.0, 0.0, 1.0)
    assert flat.d == (0.0,) * 5


def test_optics_of_another_size_are_refused_and_a_region_and_binning_are_followed():
    with pytest.raises(ValueError, match="it is of 640x480 images, and the images are 320x240"):
        intrinsics_of(info(), 320, 240, rectified=False)
    halved = intrinsics_of(info(binning_x=2, binning_y=2), 320, 240, rectified=False)
    assert halved is not None and halved.k == (300.0, 0.0, 160.0, 0.0, 305.0, 120.0, 0.0, 0.0, 1.0)
    part = info()
    part.roi.x_offset, part.roi.y_offset, part.roi.width, part.roi.height = 100, 40, 320, 240
    cut = intrinsics_of(part, 320, 240, rectified=False)
    assert cut is not None and cut.k == (600.0, 0.0, 220.0, 0.0, 610.0, 200.0, 0.0, 0.0, 1.0)
    assert intrinsics_of(info(k=[0.0] * 9), 640, 480, rectified=False) is None, "not calibrated says nothing"


CALIBRATOR = {
    "image_width": 640,
    "image_height": 480,
    "camera_name": "front",
    "camera_matrix": {"rows": 3, "cols": 3, "data": K},
    "distortion_model": "plumb_bob",
    "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, -0.2, 0.0, 0.0, 0.0]},
    "rectification_matrix": {"rows": 3, "cols": 3, "data": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]},
    "projection_matrix": {"rows": 3, "cols": 4, "data": P},
}
MESSAGE = {
    "camera_info": {
        "width": 640,
        "height": 480,
        "distortion_model": "plumb_bob",
        "d": [0.1, -0.2, 0.0, 0.0, 0.0],
        "k": K,
        "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "p": P,
    }
}


@pytest.mark.parametrize("values", [CALIBRATOR, MESSAGE, MESSAGE["camera_info"]])
def test_a_calibration_file_of_the_calibrator_and_of_set_camera_info_are_read(values, tmp_path):
    path = tmp_path / "front.yaml"
    path.write_text(yaml.safe_dump(values))
    found = file_info(str(path), 640, 480)
    assert list(found.k) == K and list(found.p) == P and list(found.d)[:2] == [0.1, -0.2]
    flat = file_info(str(path), 640, 480, rectified=True)
    assert (flat.k[0], flat.k[2], flat.p[3], list(flat.d)) == (580.0, 318.0, 0.0, [0.0] * 5)
    with pytest.raises(ValueError, match="made at 640x480, but the camera gives 320x240"):
        file_info(str(path), 320, 240)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no names"),
        ("- 1\n- 2", "holds no names"),
        ("image_width: {", "not a readable calibration file"),
        (
            yaml.safe_dump({**CALIBRATOR, "camera_matrix": {"data": K[:8]}}),
            "camera_matrix must have 9 finite values, has 8",
        ),
        (yaml.safe_dump({**CALIBRATOR, "camera_matrix": None}), "no calibration as"),
        (yaml.safe_dump({**CALIBRATOR, "projection_matrix": {"data": [float("nan")] * 12}}), "12 finite values"),
        (
            yaml.safe_dump({k: v for k, v in CALIBRATOR.items() if k != "projection_matrix"}),
            "'projection_matrix' is missing",
        ),
    ],
)
def test_a_calibration_file_that_says_nothing_is_refused_in_one_line(text: str, told: str, tmp_path):
    path = tmp_path / "front.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        file_info(str(path), 640, 480)
    with pytest.raises(ValueError, match="not a readable calibration file"):
        file_info(str(tmp_path / "none.yaml"), 640, 480)


@contextmanager
def source_of(topic: str):
    """A topic source, publishers of the image and the optics beside it, and a call that lets messages come."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("hears", namespace=f"/t{uuid.uuid4().hex[:8]}", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    source = TopicSource(node, topic)
    kind = CompressedImage if topic.endswith("compressed") else Image
    images = node.create_publisher(kind, topic, NEWEST_PICTURE)
    infos = node.create_publisher(CameraInfo, info_topic(topic), NEWEST_PICTURE)

    def until(condition, *sent) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline
            for one in sent:
                (infos if isinstance(one, CameraInfo) else images).publish(one)
            executor.spin_once(timeout_sec=0.05)

    try:
        yield source, until
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_optics_of_another_size_are_told_and_others_are_taken_as_they_change():
    with source_of("camera/image_raw") as (source, until):
        frames = []

        def read(wanted) -> bool:
            frame = source.read(0.0)
            frames.extend([frame] if frame is not None else [])
            return bool(frames) and wanted(frames[-1])

        sent = message("rgb8", RGB)
        small = [float(i) for i in (6, 0, 3, 0, 6, 2, 0, 0, 1)]
        until(lambda: read(lambda _: "images are 6x4" in source.info_problem), sent, info())
        assert frames[-1].intrinsics is None
        until(lambda: read(lambda frame: frame.intrinsics is not None), sent, info(width=6, height=4, k=small))
        assert source.info_problem == ""
        changed = [7.0, *small[1:]]
        until(lambda: read(lambda f: f.intrinsics.k[0] == 7.0), sent, info(width=6, height=4, k=changed))


def test_compressed_topics_and_malformed_images():
    import cv2

    with source_of("camera/image_raw/compressed") as (source, until):
        good = CompressedImage(format="png")
        good.data = array.array("B", cv2.imencode(".png", np.ascontiguousarray(RGB[..., ::-1]))[1].tobytes())
        found = []
        until(lambda: found.append(source.read(0.0)) or found[-1] is not None, good)
        assert np.array_equal(found[-1].rgb, RGB)
        told = []

        def bad() -> bool:
            try:
                source.read(0.0)
            except BadImageError as error:
                told.append(str(error))
            return bool(told)

        until(bad, CompressedImage(format="png", data=[1, 2, 3]))
        assert "camera/image_raw/compressed: 3 bytes of format 'png' cannot be decoded" in told[0]
        until(lambda: found.append(source.read(0.0)) or found[-1] is not None, good)


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
        k = [6.0, 0.0, 3.0, 0.0, 6.0, 2.0, 0.0, 0.0, 1.0]
        p = [5.0, 0.0, 3.0, 0.0, 0.0, 5.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        info = CameraInfo(width=6, height=4, distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)
        frame, deadline = None, time.monotonic() + 20.0
        while (frame is None or frame.intrinsics is None) and time.monotonic() < deadline:
            infos.publish(info)
            images.publish(sent)
            executor.spin_once(timeout_sec=0.05)
            frame = source.read(0.0) or frame
        assert frame is not None and frame.intrinsics is not None
        assert frame.stamp_ns == 12_000_000_034 and np.array_equal(frame.rgb, RGB)
        assert frame.intrinsics.k == (5.0, 0.0, 3.0, 0.0, 5.0, 2.0, 0.0, 0.0, 1.0), "the topic's name says rectified"
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown(context=context)
