"""Between the rendering room's arrays and ROS messages: pure conversions, kept beside the visualizer and the film."""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from molmoact2_ros.rendering.overlay import ramp
from molmoact2_ros.rendering.projection import Calibration, TipPath

Array = NDArray[np.float64]
SECOND_NS = 1_000_000_000


def stamp_of(nanoseconds: int) -> Time:
    """A stamp from ns."""
    sec, nanosec = divmod(nanoseconds, SECOND_NS)
    return Time(sec=int(sec), nanosec=int(nanosec))


def image_of(picture: NDArray[Any], encoding: str, header: Header) -> Image:
    """An image message of `picture` (h, w) or (h, w, 3)."""
    height, width = picture.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding)
    message.step = picture.nbytes // height
    pixels = array.array("B")  # assigning the numpy array itself copies pixel by pixel
    pixels.frombytes(np.ascontiguousarray(picture).tobytes())
    message.data = pixels
    return message


def chunk_of(message: JointTrajectory) -> tuple[Array, Array]:
    """Positions (rows, joints of the message) and times (rows,) in s after the stamp.

    Raises:
        ValueError: the chunk is empty, or its rows differ in length.
    """
    if not message.points:
        raise ValueError("the chunk has no rows")
    sizes = {len(point.positions) for point in message.points}
    if sizes != {len(message.joint_names)}:
        raise ValueError(f"the chunk names {len(message.joint_names)} joints but has rows of {sorted(sizes)} values")
    times = [point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec for point in message.points]
    return np.array([point.positions for point in message.points], dtype=np.float64), np.array(times)


def grid_of(message: Image) -> NDArray[np.uint8]:
    """The cells (g, g) of a mono8 image, whatever the grid's size.

    Raises:
        ValueError: not a square mono8 image.
    """
    if message.encoding != "mono8" or message.height != message.width or message.height == 0:
        raise ValueError(f"expected a square mono8 grid, got {message.width} x {message.height} {message.encoding!r}")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    return rows[:, : message.width]


def path_message(path: TipPath, header: Header) -> Path:
    """The tip's path with orientations."""
    poses = [PoseStamped(header=header, pose=_pose(pose)) for pose in path.poses]
    return Path(header=header, poses=poses)


def markers_of(paths: Sequence[TipPath], header: Header, lifetime_s: float) -> MarkerArray:
    """A line graded over the horizon and a ball every few rows an arm; red balls grip, green ones are open."""
    array_ = MarkerArray()
    lifetime = Duration(sec=int(lifetime_s), nanosec=int((lifetime_s % 1.0) * SECOND_NS))
    for i, path in enumerate(paths):
        points = [_point(xyz) for xyz in path.points]
        rows = len(points)
        line = Marker(header=header, ns="path", id=i, type=Marker.LINE_STRIP, action=Marker.ADD, lifetime=lifetime)
        line.pose.orientation.w = 1.0
        line.scale.x = 0.004
        line.points = points
        line.colors = [_colour(ramp(row / max(rows - 1, 1))) for row in range(rows)]
        balls = Marker(header=header, ns="gripper", id=i, type=Marker.SPHERE_LIST, action=Marker.ADD, lifetime=lifetime)
        balls.pose.orientation.w = 1.0
        balls.scale.x = balls.scale.y = balls.scale.z = 0.010
        chosen = range(0, rows, max(1, rows // 6))
        balls.points = [points[row] for row in chosen]
        balls.colors = [_colour(_grip_colour(float(path.openness[row]))) for row in chosen]
        array_.markers += [line, balls]
    return array_


def cloud_of(points: NDArray[np.float32], rgb: NDArray[np.uint8] | None, header: Header) -> PointCloud2:
    """A cloud of `points` (n, 3), coloured by `rgb` (n, 3) where it is given."""
    packed = np.zeros(len(points), dtype=[("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")])
    packed["x"], packed["y"], packed["z"] = points.T
    if rgb is None:
        packed["rgb"] = 0xB4B4B4
    else:
        colours = rgb.astype(np.uint32)
        packed["rgb"] = colours[:, 0] << 16 | colours[:, 1] << 8 | colours[:, 2]
    kinds = (PointField.FLOAT32, PointField.FLOAT32, PointField.FLOAT32, PointField.UINT32)
    fields = [
        PointField(name=name, offset=4 * i, datatype=kind, count=1)
        for i, (name, kind) in enumerate(zip(("x", "y", "z", "rgb"), kinds, strict=True))
    ]
    message = PointCloud2(header=header, height=1, width=len(points), fields=fields, point_step=16, is_dense=True)
    message.row_step = packed.nbytes
    data = array.array("B")
    data.frombytes(packed.tobytes())
    message.data = data
    return message


def depth_info(calibration: Calibration, width: int, height: int, header: Header) -> CameraInfo:
    """Calibration of a depth picture (height, width) that covers the whole view of the camera, squashed."""
    k = np.diag([width / calibration.width, height / calibration.height, 1.0]) @ np.asarray(calibration.k)
    info = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [float(value) for value in k.ravel()]
    info.r = [float(value) for value in np.eye(3).ravel()]
    info.p = [float(value) for value in np.hstack([k, np.zeros((3, 1))]).ravel()]
    return info


def _grip_colour(openness: float) -> tuple[int, int, int]:
    return int(255 * (1.0 - openness)), int(60 + 195 * openness), 70


def _colour(rgb: tuple[int, int, int]) -> ColorRGBA:
    r, g, b = rgb
    return ColorRGBA(r=float(r / 255.0), g=float(g / 255.0), b=float(b / 255.0), a=1.0)


def _point(xyz: Array) -> Point:
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def _pose(matrix: Array) -> Pose:
    pose = Pose(position=_point(matrix[:3, 3]))
    w, x, y, z = _quaternion(matrix[:3, :3])
    pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = w, x, y, z
    return pose


def _quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """Unit quaternion (w, x, y, z) of `rotation` (3, 3), from the largest eigenvector, which needs no case by case."""
    m = rotation
    symmetric = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    w, x, y, z = np.linalg.eigh(symmetric)[1][:, -1]
    return float(w), float(x), float(y), float(z)
