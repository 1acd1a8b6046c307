"""The robot as solid shapes: where its links are, and how far a camera's rays go until they meet one."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.description import robot_description
from molmoact2_ros.embodiments.kinematics import pose_of
from molmoact2_ros.embodiments.urdf import Urdf, origin_of

Array = NDArray[np.float64]
Element = ElementTree.Element


@dataclass(frozen=True, eq=False)
class Shape:
    """A box, cylinder or sphere of a link.

    Attributes:
        link: that carries it. pose: its middle in the link's frame, (4, 4), m.
        kind: `box`, `cylinder` (along z) or `sphere`.
        size: extents x, y, z of the box around it, (3,), m.
    """

    link: str
    pose: Array
    kind: str
    size: Array


class Body:
    """The shapes of a robot's URDF, and its links at given joints."""

    def __init__(self, robot: Embodiment) -> None:
        from scipy.spatial.transform import Rotation

        self._turn = Rotation.from_rotvec
        self._robot = robot
        tree = ElementTree.fromstring(robot_description(robot))
        self._urdf = Urdf(tree)
        self._follows = {
            joint.get("name", ""): _followed(mimic)
            for joint in tree.findall("joint")
            if (mimic := joint.find("mimic")) is not None
        }
        self.shapes = tuple(
            shape
            for link in tree.findall("link")
            for visual in link.findall("visual")
            if (shape := _shape(link.get("name", ""), visual)) is not None
        )

    def links(self, joints: Array) -> dict[str, Array]:
        """Pose (4, 4) of every link in the robot's base frame at `joints` (dof,), rad and m, ROS order.

        Raises:
            ValueError: `joints` has another size or is not finite.
        """
        joints = self._robot.checked(joints, "joint positions")
        position = dict(zip(self._robot.joint_names, joints, strict=True))
        hanging: dict[str, list[str]] = {}
        for joint in self._urdf.joints.values():
            hanging.setdefault(joint.parent, []).append(joint.name)
        found = {self._robot.base_link: np.eye(4)}
        front = [self._robot.base_link]
        while front:
            parent = front.pop()
            for name in hanging.get(parent, []):
                joint = self._urdf.joints[name]
                leader, times, plus = self._follows.get(name, (name, 1.0, 0.0))
                value = times * position.get(leader, 0.0) + plus
                moved = np.eye(4)
                if joint.kind == "prismatic":
                    moved[:3, 3] = value * joint.axis
                elif joint.kind != "fixed":
                    moved = pose_of(self._turn(value * joint.axis), np.zeros(3))
                found[joint.child] = found[parent] @ joint.origin @ moved
                front.append(joint.child)
        return found

    def depth(self, joints: Array, rays: Array, camera: Array) -> Array:
        """Distance (...) along the optical axis at which `rays` meet the robot at `joints` (dof,), m; infinity where
        they do not.

        Args:
            rays: directions (..., 3) in the optical frame, with z 1.
            camera: pose (4, 4) of the optical frame in the robot's base frame.
        """
        links = self.links(joints)
        flat = rays.reshape(-1, 3)
        nearest = np.full(len(flat), np.inf)
        inverse = np.linalg.inv(camera)
        for shape in self.shapes:
            if shape.link not in links:
                continue
            pose = inverse @ links[shape.link] @ shape.pose
            eye, directions = -pose[:3, :3].T @ pose[:3, 3], flat @ pose[:3, :3]
            half = shape.size / 2.0
            if shape.kind == "box":
                met = _box(eye, directions, half)
            elif shape.kind == "cylinder":
                met = _cylinder(eye, directions, half[0], half[2])
            else:
                met = _round(eye, directions, half[0])
            np.minimum(nearest, met, out=nearest)
        return nearest.reshape(rays.shape[:-1])


def _followed(mimic: Element) -> tuple[str, float, float]:
    return mimic.get("joint", ""), float(mimic.get("multiplier", "1")), float(mimic.get("offset", "0"))


def _shape(link: str, visual: Element) -> Shape | None:
    """The shape of a URDF's `visual`; None for a mesh."""
    for kind in ("box", "cylinder", "sphere"):
        element = visual.find(f"geometry/{kind}")
        if element is None:
            continue
        if kind == "box":
            size = np.array([float(value) for value in element.get("size", "").split()])
        else:
            across = 2.0 * float(element.get("radius", "0"))
            size = np.array([across, across, float(element.get("length", across))])
        return Shape(link, origin_of(visual), kind, size)
    return None


# Where rays from `eye` (3,) along `directions` (n, 3) enter a shape around the origin, (n,); infinity where they miss
# it, and behind the eye.


def _entered(enters: Array, leaves: Array) -> Array:
    return np.where((enters <= leaves) & (enters > 0.0), enters, np.inf)


def _slabs(eye: Array, directions: Array, half: Array) -> tuple[Array, Array]:
    """Where rays enter and leave what lies between planes at -half and half of each axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (-half - eye) / directions, (half - eye) / directions
    # Along a plane, and in it: 0 / 0. Such a ray is taken for one beside it.
    enters = np.nan_to_num(np.minimum(first, second), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    leaves = np.nan_to_num(np.maximum(first, second), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    return enters.max(axis=1), leaves.min(axis=1)


def _box(eye: Array, directions: Array, half: Array) -> Array:
    return _entered(*_slabs(eye, directions, half))


def _quadratic(eye: Array, directions: Array, radius: float) -> tuple[Array, Array]:
    """Where rays enter and leave a circle or sphere of `radius` around the origin."""
    a, b = np.sum(directions**2, axis=1), directions @ eye
    root = b * b - a * (eye @ eye - radius * radius)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.sqrt(np.maximum(root, 0.0)) / a
        middle = -b / a
    missed = (root < 0.0) | (a == 0.0)
    return np.where(missed, np.inf, middle - half), np.where(missed, -np.inf, middle + half)


def _round(eye: Array, directions: Array, radius: float) -> Array:
    return _entered(*_quadratic(eye, directions, radius))


def _cylinder(eye: Array, directions: Array, radius: float, half: float) -> Array:
    enters, leaves = _quadratic(eye[:2], directions[:, :2], radius)
    over, under = _slabs(eye[2:], directions[:, 2:], np.array([half]))
    return _entered(np.maximum(enters, over), np.minimum(leaves, under))
