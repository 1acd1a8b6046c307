"""What a URDF says of a robot's looks: the shapes of its links, and where the links stand for given joints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from molmoact2_ros.embodiments.kinematics import pose_of
from molmoact2_ros.embodiments.urdf import Urdf, origin_of

Array = NDArray[np.float64]
Rgb = tuple[int, int, int]
GREY: Rgb = (170, 174, 180)


@dataclass(frozen=True, eq=False)
class Shape:
    """One visual of a link.

    Attributes:
        link: it is fixed to. origin: its pose (4, 4) in the link's frame, m.
        kind: `box`, `cylinder`, `sphere` or `mesh`.
        size: of a box x, y, z; of a cylinder radius, length (along z); of a sphere its radius; of a mesh its scale
            x, y, z; m.
        rgb: its colour, 0 to 255.
        file: path of a mesh; empty for the others.
    """

    link: str
    origin: Array
    kind: str
    size: tuple[float, ...]
    rgb: Rgb
    file: str = ""


class LinkModel:
    """The links of a URDF, given as text.

    Raises:
        ValueError: the text is no URDF.
    """

    def __init__(self, text: str) -> None:
        try:
            robot = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"the robot's description is no URDF: {error}") from None
        self._urdf = Urdf(robot)
        self.shapes = _shapes_of(robot)
        self._mimics = _mimics_of(robot)
        self._origins = {joint.name: joint.origin for joint in self._urdf.joints.values()}

    @property
    def links(self) -> tuple[str, ...]:
        """Names of the links."""
        return self._urdf.links

    def poses(self, positions: Mapping[str, float]) -> dict[str, Array]:
        """Pose (4, 4) of each link in the root link for joint `positions`, rad or m; those that are not given are 0."""
        above = {joint.child: joint for joint in self._urdf.joints.values()}
        found: dict[str, Array] = {}

        def pose(link: str) -> Array:
            if link not in found:
                joint = above.get(link)
                if joint is None:
                    found[link] = np.eye(4)
                else:
                    value = self._position(joint.name, positions)
                    found[link] = pose(joint.parent) @ self._origins[joint.name] @ _moved(joint.kind, joint.axis, value)
            return found[link]

        return {link: pose(link) for link in self.links}

    def _position(self, joint: str, positions: Mapping[str, float]) -> float:
        if joint in positions or joint not in self._mimics:
            return float(positions.get(joint, 0.0))
        leader, multiplier, offset = self._mimics[joint]
        return float(positions.get(leader, 0.0)) * multiplier + offset


def _mimics_of(robot: ElementTree.Element) -> dict[str, tuple[str, float, float]]:
    """For each joint that follows another one: that one, a factor and an offset."""
    found = {}
    for joint in robot.findall("joint"):
        mimic = joint.find("mimic")
        if mimic is not None:
            multiplier, offset = float(mimic.get("multiplier", "1")), float(mimic.get("offset", "0"))
            found[joint.get("name", "")] = mimic.get("joint", ""), multiplier, offset
    return found


def _moved(kind: str, axis: Array, value: float) -> Array:
    if kind in ("revolute", "continuous"):
        return pose_of(Rotation.from_rotvec(axis * value), np.zeros(3))
    out = np.eye(4)
    if kind == "prismatic":
        out[:3, 3] = axis * value
    return out


def _shapes_of(robot: ElementTree.Element) -> tuple[Shape, ...]:
    colours = {m.get("name"): _rgb(m) for m in robot.findall("material")}
    found = []
    for link in robot.findall("link"):
        for visual in link.findall("visual"):
            geometry = visual.find("geometry")
            form = None if geometry is None else next(iter(geometry), None)
            if form is None:
                continue
            material = visual.find("material")
            colour = None if material is None else _rgb(material) or colours.get(material.get("name"))
            kind, size, file = _form(form)
            if kind:
                found.append(Shape(link.get("name", ""), origin_of(visual), kind, size, colour or GREY, file))
    return tuple(found)


def _form(form: ElementTree.Element) -> tuple[str, tuple[float, ...], str]:
    def numbers(key: str, default: str = "0") -> tuple[float, ...]:
        return tuple(float(value) for value in form.get(key, default).split())

    if form.tag == "box":
        return "box", numbers("size", "0 0 0"), ""
    if form.tag == "cylinder":
        return "cylinder", (*numbers("radius"), *numbers("length")), ""
    if form.tag == "sphere":
        return "sphere", numbers("radius"), ""
    if form.tag == "mesh":
        return "mesh", numbers("scale", "1 1 1"), form.get("filename", "").removeprefix("file://")
    return "", (), ""


def _rgb(material: ElementTree.Element) -> Rgb | None:
    colour = material.find("color")
    if colour is None:
        return None
    r, g, b = (round(255 * float(value)) for value in colour.get("rgba", "0.7 0.7 0.7 1").split()[:3])
    return r, g, b
