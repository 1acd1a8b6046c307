"""The robots in 3D, through viser: the models with their joints, the predicted paths, the depth clouds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.description import robot_description
from molmoact2_ros.embodiments.link_shapes import LinkModel, Shape
from molmoact2_ros.rendering.overlay import ramp
from molmoact2_ros.rendering.projection import TipPath

Array = NDArray[np.float64]
Colours = NDArray[np.uint8]
APART_M = 1.5
"""Distance of robots that stand side by side in the picture; where they really stand nobody knows."""
MOST_POINTS = 20_000
"""Points of a cloud that go to a browser; a denser one is thinned."""
GRID = {
    "cell_color": (120, 124, 130),
    "section_color": (120, 124, 130),
    "cell_thickness": 0.5,
    "section_thickness": 1.0,
    "fade_distance": 4.0,
}
NOWHERE = 1e3
"""Coordinates beyond so many metres are not drawn."""


class Scene:
    """The world that every browser sees. For one thread.

    Raises:
        ImportError: viser is not installed.
    """

    def __init__(self) -> None:
        viser = _viser()
        with _quiet():
            self._server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.scene.set_up_direction("+z")
        self._server.scene.add_grid("/grid", 4.0, 4.0, cell_size=0.1, section_size=0.5, **GRID)
        self.port: int = self._server.get_port()

    def look_at(self, reach_m: float, robots: int) -> None:
        """Where a new browser looks from, for robots that reach so far."""
        middle = APART_M * (robots - 1) / 2.0
        far = reach_m + middle
        self._server.initial_camera.position = (1.35 * far, middle - 1.0 * far, 0.95 * far)
        self._server.initial_camera.look_at = (0.4 * reach_m, middle, 0.25 * reach_m)

    def robot(self, namespace: str, robot: Embodiment, index: int, meshes: bool) -> RobotScene:
        """A robot; `index` says how far to the side it stands."""
        return RobotScene(self._server, namespace, robot, index * APART_M, meshes)

    def close(self) -> None:
        """End viser. Safe to call twice."""
        with _quiet():
            self._server.stop()


class RobotScene:
    """One robot in the scene, its base at `aside` m to the side.

    Attributes:
        plain: why simple shapes are shown instead of meshes; empty where meshes are.
    """

    def __init__(self, server: Any, namespace: str, robot: Embodiment, aside: float, meshes: bool) -> None:
        self._server, self._robot = server, robot
        self._root = f"/{namespace.strip('/') or robot.name}"
        self._base = np.array([0.0, aside, 0.0])
        server.scene.add_frame(self._root, show_axes=False, position=self._base)
        self.plain = ""
        try:
            self._build(LinkModel(robot_description(robot, meshes)))
        except (OSError, ValueError, ImportError) as error:
            self.plain = str(error)
            self._build(LinkModel(robot_description(robot)))
        self.pose(np.asarray(robot.rest_position, dtype=np.float64))
        self._drawn: dict[str, Any] = {}

    def pose(self, positions: Array) -> None:
        """Put the links where they stand for joint `positions` (dof,), rad or m, ROS order; what is not finite is left
        out."""
        if positions.shape != (self._robot.dof,) or not np.all(np.isfinite(positions)):
            return
        poses = self._model.poses(dict(zip(self._robot.joint_names, positions.tolist(), strict=True)))
        with self._server.atomic():
            for link, frame in self._frames.items():
                frame.position = poses[link][:3, 3]
                frame.wxyz = _wxyz(poses[link])

    def path(self, paths: Sequence[TipPath]) -> None:
        """Draw the ways of the tips; the colour goes over the horizon, a ball's size is the gripper's opening."""
        with self._server.atomic():
            self._forget("path")
            for arm, path in enumerate(paths):
                points = path.points
                if len(points) < 2 or not np.all(np.abs(points) < NOWHERE):
                    continue
                colours = np.array([ramp(row / (len(points) - 1)) for row in range(len(points))], dtype=np.uint8)
                segments = np.stack([points[:-1], points[1:]], axis=1).astype(np.float32)
                pairs = np.stack([colours[:-1], colours[1:]], axis=1)
                name = f"{self._root}/path{arm}"
                self._drawn[f"path{arm}"] = self._server.scene.add_line_segments(name, segments, pairs, thickness=0.006)
                chosen = slice(None, None, max(1, len(points) // 8))
                self._drawn[f"path_balls{arm}"] = self._server.scene.add_point_cloud(
                    f"{self._root}/path_balls{arm}", points[chosen].astype(np.float32), colours[chosen],
                    point_size=0.009, point_shape="circle", precision="float32",
                )  # fmt: skip

    def cloud(self, points: NDArray[np.float32], colours: Colours) -> None:
        """Draw a cloud of `points` (n, 3) in the base frame, m, with `colours` (n, 3); an empty one removes it."""
        keep = np.all(np.abs(points) < NOWHERE, axis=1)
        points, colours = points[keep], colours[keep]
        thin = max(1, -(-len(points) // MOST_POINTS))
        with self._server.atomic():
            self._forget("cloud")
            if len(points):
                self._drawn["cloud"] = self._server.scene.add_point_cloud(
                    f"{self._root}/cloud", points[::thin], colours[::thin], point_size=0.006, precision="float32"
                )

    def _forget(self, prefix: str) -> None:
        for name in [name for name in self._drawn if name.startswith(prefix)]:
            self._drawn.pop(name).remove()

    def _build(self, model: LinkModel) -> None:
        meshes = {shape.file: _mesh(shape) for shape in model.shapes if shape.kind == "mesh"}
        self._model = model
        shown = {shape.link for shape in model.shapes}
        self._frames: Mapping[str, Any] = {
            link: self._server.scene.add_frame(f"{self._root}/{link}", show_axes=False) for link in shown
        }
        for number, shape in enumerate(model.shapes):
            self._add(f"{self._root}/{shape.link}/{number}", shape, meshes)

    def _add(self, name: str, shape: Shape, meshes: Mapping[str, Any]) -> None:
        scene = self._server.scene
        place = {"position": shape.origin[:3, 3], "wxyz": _wxyz(shape.origin)}
        if shape.kind == "box":
            scene.add_box(name, color=shape.rgb, dimensions=shape.size, **place)
        elif shape.kind == "cylinder":
            scene.add_cylinder(name, radius=shape.size[0], height=shape.size[1], color=shape.rgb, **place)
        elif shape.kind == "sphere":
            scene.add_icosphere(name, radius=shape.size[0], color=shape.rgb, **place)
        else:
            mesh = meshes[shape.file]
            scene.add_mesh_simple(name, mesh.vertices * shape.size, mesh.faces, color=shape.rgb, **place)


def _mesh(shape: Shape) -> Any:
    import trimesh

    found = trimesh.load(shape.file, force="mesh")
    if not isinstance(found, trimesh.Trimesh) or not len(found.vertices):
        raise ValueError(f"{shape.file} holds no mesh that can be drawn")
    return found


def _viser() -> Any:
    import viser

    logging.getLogger("websockets").setLevel(logging.WARNING)
    return viser


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """viser writes a banner for people; the node's log is for what the node says."""
    import rich

    before, rich.print = rich.print, lambda *_, **__: None
    try:
        yield
    finally:
        rich.print = before


def _wxyz(pose: Array) -> Array:
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return np.array([w, x, y, z])
