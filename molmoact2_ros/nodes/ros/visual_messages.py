"""What RViz draws, from the rendering room's arrays: markers, paths, clouds. Images are in `messages`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker

from molmoact2_ros.embodiments import Workspace
from molmoact2_ros.nodes.ros.messages import SECOND_NS, byte_array, duration_of
from molmoact2_ros.rendering.body import Shape
from molmoact2_ros.rendering.colours import COMMANDED, EARLIER, EXECUTED, LIMIT, WORKSPACE, Colour, ramp
from molmoact2_ros.rendering.forecast import CHUNKS, tube
from molmoact2_ros.rendering.projection import TipPath
from molmoact2_ros.rendering.touching import Touched

Array = NDArray[np.float64]

BALLS = 16
"""Numbers kept for the balls along one arm's path."""
STALE_S = 1.0
"""What is drawn from readings goes when they do."""
APART_M = 0.003
"""A link this far from where it was commanded is shown there, too."""
TUBE_ROWS, TUBE_SIDES = 12, 6
"""Rings of a tube, about, and corners of each: a marker's points are made one by one."""
LEAST_RADIUS_M = 0.001
"""Chunks that agree still have a tube: thin is not the same as unknown."""


def path_message(path: TipPath, header: Header) -> Path:
    """The tip's path with orientations."""
    poses = [PoseStamped(header=header, pose=_pose(pose)) for pose in path.poses]
    return Path(header=header, poses=poses)


def path_markers(paths: Sequence[TipPath], header: Header, lifetime_s: float) -> list[Marker]:
    """A line graded over the horizon and balls along it an arm: their size is the opening of the gripper, as in the
    overlays."""
    found = []
    for i, path in enumerate(paths):
        points = [_point(xyz) for xyz in path.points]
        rows = len(points)
        colours = [_colour(ramp(row / max(rows - 1, 1))) for row in range(rows)]
        line = _marker(header, "path", i, Marker.LINE_STRIP, lifetime_s)
        line.scale.x = 0.004
        line.points, line.colors = points, colours
        found.append(line)
        for place, row in enumerate(range(rows - 1, -1, -max(1, rows // 6))):
            ball = _marker(header, "gripper", i * BALLS + place, Marker.SPHERE, lifetime_s, colours[row])
            ball.pose.position = points[row]
            ball.scale.x = ball.scale.y = ball.scale.z = float(0.005 + 0.010 * path.openness[row])
            found.append(ball)
        # A shorter chunk has fewer: those of the last one would stay.
        found += _gone(header, "gripper", range(i * BALLS + place + 1, (i + 1) * BALLS))
    return found


def spread_markers(
    paths: Sequence[TipPath],
    spread: Array | None,
    earlier: Sequence[tuple[float, tuple[Array, ...]]],
    header: Header,
    lifetime_s: float,
) -> list[Marker]:
    """How far the chunks lie apart: a tube of `spread` (arms, rows), m, around each path, and the earlier chunks as
    lines that fade with age; both as `rendering.forecast` gives them."""
    found = []
    for i, path in enumerate(paths):
        triangles: Array = np.zeros((0, 3, 3))
        if spread is not None:
            some = slice(None, None, max(1, len(path.points) // TUBE_ROWS))
            triangles = tube(path.points[some], np.maximum(spread[i][some], LEAST_RADIUS_M), TUBE_SIDES)
        if len(triangles):
            marker = _marker(header, "spread", i, Marker.TRIANGLE_LIST, lifetime_s, _colour(EARLIER, 0.3))
            marker.scale.x = marker.scale.y = marker.scale.z = 1.0
            marker.points = [_point(xyz) for xyz in triangles.reshape(-1, 3)]
            found.append(marker)
        else:
            found += _gone(header, "spread", (i,))
    lines = 0
    for freshness, arms in earlier:
        for points in arms:
            line = _marker(
                header, "earlier", lines, Marker.LINE_STRIP, lifetime_s, _colour(EARLIER, 0.15 + 0.5 * freshness)
            )
            line.scale.x = 0.002
            line.points = [_point(xyz) for xyz in points]
            found.append(line)
            lines += 1
    return found + _gone(header, "earlier", range(lines, CHUNKS * len(paths)))


def executed_markers(ways: Sequence[Array], header: Header) -> list[Marker]:
    """The way (n, 3), m, that each tip has come."""
    found = []
    for i, points in enumerate(ways):
        if len(points) < 2:
            continue
        line = _marker(header, "executed", i, Marker.LINE_STRIP, STALE_S, _colour(EXECUTED, 0.8))
        line.scale.x = 0.003
        line.points = [_point(xyz) for xyz in points]
        found.append(line)
    return found


def ghost_markers(
    shapes: Sequence[Shape], commanded: Mapping[str, Array], measured: Mapping[str, Array], header: Header
) -> list[Marker]:
    """The links where they were commanded, as far as that is not where they are; poses (4, 4) by link."""
    kinds = {"box": Marker.CUBE, "cylinder": Marker.CYLINDER, "sphere": Marker.SPHERE}
    found = []
    for i, shape in enumerate(shapes):
        wanted, there = commanded[shape.link] @ shape.pose, measured[shape.link] @ shape.pose
        if np.linalg.norm(wanted[:3, 3] - there[:3, 3]) < APART_M:
            found += _gone(header, "commanded", (i,))
            continue
        ghost = _marker(header, "commanded", i, kinds[shape.kind], STALE_S, _colour(COMMANDED, 0.35))
        ghost.pose = _pose(wanted)
        ghost.scale.x, ghost.scale.y, ghost.scale.z = (float(value) for value in shape.size)
        found.append(ghost)
    return found


def workspace_markers(boxes: Sequence[Workspace], touched: Sequence[bool], header: Header) -> list[Marker]:
    """The edges of each arm's box; one that is touched stands out."""
    found = []
    for i, (box, met) in enumerate(zip(boxes, touched, strict=True)):
        colour = _colour(LIMIT) if met else _colour(WORKSPACE, 0.5)
        edges = _marker(header, "workspace", i, Marker.LINE_LIST, STALE_S, colour)
        edges.scale.x = 0.003
        corners = np.array(np.meshgrid(*zip(box.lower, box.upper, strict=True), indexing="ij")).reshape(3, 8).T
        pairs = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)]
        edges.points = [_point(corners[corner]) for pair in pairs for corner in pair]
        found.append(edges)
    return found


def touched_markers(touched: Sequence[Touched], most: int, header: Header) -> list[Marker]:
    """A ball and words at each limit that is touched; at most `most` of them."""
    found = []
    for i, limit in enumerate(touched[:most]):
        ball = _marker(header, "limits", i, Marker.SPHERE, STALE_S, _colour(LIMIT, 0.8))
        ball.pose.position = _point(limit.place)
        ball.scale.x = ball.scale.y = ball.scale.z = 0.04
        above = limit.place + np.array([0.0, 0.0, 0.05])
        found += [ball, text_marker("limit_words", i, limit.words, above, LIMIT, header)]
    rest = range(min(len(touched), most), most)
    return found + _gone(header, "limits", rest) + _gone(header, "limit_words", rest)


def text_marker(
    namespace: str, number: int, words: str, place: Array, colour: Colour, header: Header, height_m: float = 0.02
) -> Marker:
    """Words that face the viewer at `place` (3,), m."""
    marker = _marker(header, namespace, number, Marker.TEXT_VIEW_FACING, STALE_S, _colour(colour))
    marker.pose.position = _point(place)
    marker.scale.z = float(height_m)
    marker.text = words
    return marker


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


def _marker(
    header: Header, namespace: str, number: int, kind: int, lifetime_s: float, colour: ColorRGBA | None = None
) -> Marker:
    lifetime = duration_of(round(lifetime_s * SECOND_NS))
    marker = Marker(header=header, ns=namespace, id=number, type=kind, action=Marker.ADD, lifetime=lifetime)
    marker.pose.orientation.w = 1.0
    if colour is not None:
        marker.color = colour
    return marker


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


def _gone(header: Header, namespace: str, numbers: Iterable[int]) -> list[Marker]:
    """Markers that are to be taken away."""
    return [Marker(header=header, ns=namespace, id=number, action=Marker.DELETE) for number in numbers]


def _colour(rgb: Colour, alpha: float = 1.0) -> ColorRGBA:
    r, g, b = rgb
    return ColorRGBA(r=float(r / 255.0), g=float(g / 255.0), b=float(b / 255.0), a=float(alpha))


def _point(xyz: Array) -> Point:
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def _pose(matrix: Array) -> Pose:
    pose = Pose(position=_point(matrix[:3, 3]))
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    pose.orientation = Quaternion(x=float(x), y=float(y), z=float(z), w=float(w))
    return pose
