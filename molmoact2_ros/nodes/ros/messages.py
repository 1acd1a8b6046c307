"""Between ROS messages and arrays: times, images, chunks. Pure conversions; every node takes them from here."""

from __future__ import annotations

import array
from collections.abc import Iterable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.cameras.encodings import rgb_of_message, rows_of
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import ChunkMessage, Refusal, most_rows

Array = NDArray[np.float64]
SECOND_NS = 1_000_000_000

# -- times ------------------------------------------------------------------------------------------------------------


def stamp_of(time_ns: int) -> Time:
    """The stamp of a time in ns."""
    sec, nanosec = divmod(int(time_ns), SECOND_NS)
    return Time(sec=sec, nanosec=nanosec)


def duration_of(length_ns: int) -> Duration:
    """The duration message of a length in ns."""
    sec, nanosec = divmod(int(length_ns), SECOND_NS)
    return Duration(sec=sec, nanosec=nanosec)


def fill_time(message: Time | Duration, time_ns: int) -> None:
    """Set a time or duration that is already there to `time_ns`; for messages that are filled every tick."""
    message.sec, message.nanosec = divmod(int(time_ns), SECOND_NS)


def nanoseconds(time: Time | Duration) -> int:
    """A stamp or duration in ns."""
    return int(time.sec) * SECOND_NS + int(time.nanosec)


# -- images -----------------------------------------------------------------------------------------------------------


def byte_array(values: NDArray[Any]) -> array.array[int]:
    """The bytes of `values` in the form that a message takes at once: a numpy array is copied value by value."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return out


def image_message(values: NDArray[Any], encoding: str, header: Header) -> Image:
    """The image message of `values` (height, width) or (height, width, channels), in the encoding's own type."""
    height, width = values.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding, step=values.nbytes // height)
    message.data = byte_array(values)
    return message


def rgb_from_image(message: Image) -> NDArray[np.uint8]:
    """The image (height, width, 3), RGB, of a message in any of `cameras.encodings.ENCODINGS`; see there.

    Raises:
        ValueError: another encoding, or a size that does not fit the data.
    """
    return rgb_of_message(message)


def rgb_from_compressed(message: CompressedImage) -> NDArray[np.uint8]:
    """The image (height, width, 3), RGB, of a JPEG or PNG message.

    Raises:
        ValueError: a depth image, or data that cannot be decoded.
    """
    return rgb_of_message(message)


def metres_from_image(message: Image) -> NDArray[np.float32]:
    """Distances (height, width), m, of a depth image as depth cameras publish it; 0 or NaN where unknown.

    Raises:
        ValueError: neither 32FC1 (m) nor 16UC1 (mm), or a size that does not fit the data.
    """
    kinds = {"32FC1": ("f4", 1.0), "16UC1": ("u2", 1e-3)}
    if message.encoding not in kinds:
        raise ValueError(f"expected a depth image of {' or '.join(kinds)}, got {message.encoding!r}")
    kind, unit = kinds[message.encoding]
    values = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    data = np.frombuffer(message.data, dtype=np.uint8)
    rows = rows_of(data, message.height, message.width * values.itemsize, message.step)
    return np.asarray(np.ascontiguousarray(rows).view(values) * np.float32(unit), dtype=np.float32)


def grid_from_image(message: Image) -> NDArray[np.uint8]:
    """The cells (side, side) of a mono8 image, whatever the grid's size.

    Raises:
        ValueError: not a square mono8 image.
    """
    if message.encoding != "mono8" or message.height != message.width or message.height == 0:
        raise ValueError(f"expected a square mono8 grid, got {message.width} x {message.height} {message.encoding!r}")
    return rows_of(np.frombuffer(message.data, dtype=np.uint8), message.height, message.width, message.step)


# -- chunks -----------------------------------------------------------------------------------------------------------


def chunk_message(rows: Iterable[list[float]], rate_hz: float, stamp_ns: int, names: Iterable[str]) -> JointTrajectory:
    """A chunk as a trajectory: header.stamp is the oldest observation, row i is due (i + 1) / rate later."""
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp = stamp_of(stamp_ns)
    for index, row in enumerate(rows):
        due = duration_of(round((index + 1) * SECOND_NS / rate_hz))
        message.points.append(JointTrajectoryPoint(positions=row, time_from_start=due))
    return message


def chunk_from_trajectory(message: JointTrajectory) -> tuple[Array, Array]:
    """Positions (rows, joints of the message) and times (rows,) in s after the stamp.

    Raises:
        ValueError: the chunk is empty, or its rows differ in length.
    """
    if not message.points:
        raise ValueError("the chunk has no rows")
    sizes = {len(point.positions) for point in message.points}
    if sizes != {len(message.joint_names)}:
        raise ValueError(f"the chunk names {len(message.joint_names)} joints but has rows of {sorted(sizes)} values")
    times = [nanoseconds(point.time_from_start) * 1e-9 for point in message.points]
    return np.array([point.positions for point in message.points], dtype=np.float64), np.array(times)


def checked_chunk(data: bytes, robot: Embodiment) -> ChunkMessage | Refusal:
    """The chunk in a serialized JointTrajectory; one that is far too large is refused before it is read."""
    # A row: positions, and as many velocities, accelerations and efforts as somebody may send along.
    most = most_rows(robot) * (4 * (8 * robot.dof + 8) + 16) + 256 * robot.dof + 4096
    if len(data) > most:
        return Refusal("rows", f"action chunk has {len(data)} bytes, expected at most {most_rows(robot)} rows")
    message: JointTrajectory = deserialize_message(data, JointTrajectory)
    return ChunkMessage(
        stamp_ns=nanoseconds(message.header.stamp),
        joint_names=message.joint_names,
        positions=[point.positions for point in message.points],
        times_s=[nanoseconds(point.time_from_start) * 1e-9 for point in message.points],
    )
