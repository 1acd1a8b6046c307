"""Between the policy's arrays and ROS messages: pure conversions, kept beside the policy node."""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.policy.interface import Prediction

SECOND_NS = 1_000_000_000


def nanoseconds(stamp: Time) -> int:
    """Time of a stamp, ns."""
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)


def rgb_from_image(message: Image) -> NDArray[np.uint8]:
    """The picture (height, width, 3) of an rgb8 or bgr8 message, without a copy where it is rgb8 and unpadded.

    Raises:
        ValueError: another encoding, or a size that does not fit the data.
    """
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"encoding is {message.encoding!r}, expected rgb8 (or bgr8); set it in the camera's driver")
    height, width, step = message.height, message.width, message.step
    pixels = np.frombuffer(message.data, dtype=np.uint8)
    if height < 1 or width < 1 or step < 3 * width or pixels.size != height * step:
        raise ValueError(f"{width} x {height} pixels at {step} bytes a row do not fit {pixels.size} bytes of data")
    rows = pixels.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return rows if message.encoding == "rgb8" else rows[..., ::-1]


def chunk_message(prediction: Prediction, joint_names: tuple[str, ...]) -> JointTrajectory:
    """The chunk as a trajectory: header.stamp is the oldest observation, point i is due (i + 1) / rate later."""
    message = JointTrajectory(joint_names=list(joint_names))
    message.header.stamp = _stamp(prediction.stamp_ns)
    for index, row in enumerate(prediction.chunk_joints.tolist()):
        sec, nanosec = divmod(round((index + 1) * SECOND_NS / prediction.rate_hz), SECOND_NS)
        message.points.append(
            JointTrajectoryPoint(positions=row, time_from_start=Duration(sec=int(sec), nanosec=int(nanosec)))
        )
    return message


def grid_message(grid: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Image:
    """A grid of cells (g, g) as a mono8 image."""
    height, width = grid.shape
    message = Image(height=height, width=width, encoding="mono8", step=width)
    message.header.stamp = _stamp(stamp_ns)
    message.header.frame_id = frame_id
    message.data = array.array("B", np.ascontiguousarray(grid, dtype=np.uint8).tobytes())
    return message


def _stamp(stamp_ns: int) -> Time:
    sec, nanosec = divmod(stamp_ns, SECOND_NS)
    return Time(sec=int(sec), nanosec=int(nanosec))
