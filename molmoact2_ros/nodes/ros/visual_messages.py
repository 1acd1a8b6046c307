"""What RViz draws, from the rendering room's arrays: markers, paths, clouds. Images are in `messages`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from molmoact2_ros.nodes.ros.messages import SECOND_NS, byte_array, duration_of
from molmoact2_ros.rendering.overlay import ramp
from molmoact2_ros.rendering.projection import TipPath

Array = NDArray[np.float64]


def path_message(path: TipPath, header: Header) -> Path:
    """The tip's path with orientations."""
    poses = [PoseStamped(header=header, pose=_pose(pose)) for pose in path.poses]
    return Path(header=header, poses=poses)


def markers_of(paths: Sequence[TipPath], header: Header, lifetime_s: float) -> MarkerArray:
    """A line graded over the horizon and a ball every few rows an arm; red balls grip, green ones are open."""
    array_ = MarkerArray()
    lifetime = duration_of(round(lifetime_s * SECOND_NS))
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
    message.data = byte_array(packed)
    return message


def points_of(message: PointCloud2) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points (n, 3), m, and colours (n, 3) of a cloud; grey where it has none.

    Raises:
        ValueError: it lacks x, y or z as float32, or its size does not fit its data.
    """
    offsets = {field.name: field.offset for field in message.fields if field.datatype == PointField.FLOAT32}
    colour = next((f.offset for f in message.fields if f.name == "rgb" and f.datatype in _RGB_TYPES), None)
    step, count = int(message.point_step), int(message.width) * int(message.height)
    if not {"x", "y", "z"} <= set(offsets):
        raise ValueError(f"a cloud needs x, y and z as float32, got {[field.name for field in message.fields]}")
    used = [*(offsets[axis] for axis in "xyz"), *([] if colour is None else [colour])]
    if message.is_bigendian or step < max(used) + 4 or len(message.data) != count * step:
        raise ValueError(f"a cloud of {count} points of {step} bytes does not fit its {len(message.data)} bytes")
    rows = np.frombuffer(message.data, dtype=np.uint8).reshape(count, step)
    points = np.stack([rows[:, at : at + 4].copy().view("<f4")[:, 0] for at in used[:3]], axis=1)
    if colour is None:
        return points, np.full((count, 3), 180, dtype=np.uint8)
    return points, rows[:, [colour + 2, colour + 1, colour]].copy()


_RGB_TYPES = (PointField.FLOAT32, PointField.UINT32)


def _grip_colour(openness: float) -> tuple[int, int, int]:
    return int(255 * (1.0 - openness)), int(60 + 195 * openness), 70


def _colour(rgb: tuple[int, int, int]) -> ColorRGBA:
    r, g, b = rgb
    return ColorRGBA(r=float(r / 255.0), g=float(g / 255.0), b=float(b / 255.0), a=1.0)


def _point(xyz: Array) -> Point:
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def _pose(matrix: Array) -> Pose:
    pose = Pose(position=_point(matrix[:3, 3]))
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    pose.orientation = Quaternion(x=float(x), y=float(y), z=float(z), w=float(w))
    return pose
