"""Serialized messages for tests of the recorder, and what is in a bag."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from molmoact2_ros.recording.streams import Stream

STORE = get_typestore(Stores.ROS2_JAZZY)
STRING = Stream("/so101/task", "std_msgs/msg/String", latched=True)
IMAGE = Stream("/so101/cameras/front/image_raw", "sensor_msgs/msg/Image", reliable=False)
INFO = Stream("/so101/cameras/front/camera_info", "sensor_msgs/msg/CameraInfo", reliable=False)


def string(words: str) -> bytes:
    """A serialized std_msgs/String."""
    return bytes(STORE.serialize_cdr(STORE.types["std_msgs/msg/String"](words), "std_msgs/msg/String"))


def image(seed: int, side: int = 16) -> bytes:
    """A serialized sensor_msgs/Image of random pixels."""
    types = STORE.types
    header = types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](seed, 7), "front_optical_frame")
    pixels = np.random.default_rng(seed).integers(0, 256, side * side * 3, dtype=np.uint8)
    message = types["sensor_msgs/msg/Image"](header, side, side, "rgb8", 0, side * 3, pixels)
    return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))


def messages(path: Path) -> list[tuple[str, bytes]]:
    """Topics and bytes of a bag in order."""
    with Reader(path) as reader:
        return [(c.topic, bytes(data)) for c, _, data in reader.messages()]


def custom_data(path: Path) -> dict[str, str]:
    return dict(yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["custom_data"])
