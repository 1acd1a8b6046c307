"""Kinematics and limits as the URDFs in `urdf/` have them: the one home of joint origins, axes, ranges and tips.

Poses load scipy, which takes a good part of a second; names and limits, which every node needs, do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.share import share_path

if TYPE_CHECKING:
    from molmoact2_ros.embodiments.kinematics import Chain

Array = NDArray[np.float64]
Element = ElementTree.Element


@dataclass(frozen=True, eq=False)
class UrdfJoint:
    """A joint of a URDF.

    Attributes:
        name, kind: its name and type (`revolute`, `prismatic`, `fixed`, ...).
        parent, child: the links it connects.
        xyz, rpy: its place in the parent link, m, and the fixed-axis angles of its frame, rad.
        axis: unit axis (3,) in its own frame.
        lower, upper, velocity: its limits, rad or m; NaN for a joint that has none.
    """

    name: str
    kind: str
    parent: str
    child: str
    xyz: tuple[float, ...]
    rpy: tuple[float, ...]
    axis: Array
    lower: float
    upper: float
    velocity: float

    @property
    def origin(self) -> Array:
        """Pose (4, 4) in the parent link."""
        return _pose(self.xyz, self.rpy)


class Urdf:
    """The kinematics of a URDF, given as an XML element."""

    def __init__(self, robot: Element) -> None:
        self.links = tuple(link.get("name", "") for link in robot.iter("link"))
        found = [_joint(element) for element in robot.findall("joint")]
        self.joints = {joint.name: joint for joint in found}
        self._above = {joint.child: joint for joint in found}

    def path(self, base: str, tip: str) -> list[UrdfJoint]:
        """The joints from the link `base` to the link `tip`.

        Raises:
            ValueError: `tip` does not hang on `base`.
        """
        found: list[UrdfJoint] = []
        link = tip
        while link != base:
            if link not in self._above:
                raise ValueError(f"the URDF has no path from link {base!r} to link {tip!r}; its links: {self.links}")
            found.append(self._above[link])
            link = found[-1].parent
        return found[::-1]

    def pose(self, base: str, tip: str) -> Array:
        """Pose (4, 4) of the link `tip` in the link `base`, with all joints at zero.

        Raises:
            ValueError: `tip` does not hang on `base`.
        """
        out = np.eye(4)
        for joint in self.path(base, tip):
            out = out @ joint.origin
        return out

    def chain(self, base: str, tip: str, root: str = "") -> Chain:
        """The chain from the link `base` to the link `tip`; poses come out in the link `root` (by default `base`).

        Raises:
            ValueError: `tip` does not hang on `base`, or not by revolute joints.
        """
        from molmoact2_ros.embodiments.kinematics import Chain, Joint

        joints: list[Joint] = []
        rest = np.eye(4)
        for joint in self.path(base, tip):
            rest = rest @ joint.origin
            if joint.kind == "revolute":
                joints.append(Joint(joint.name, rest, joint.axis))
                rest = np.eye(4)
            elif joint.kind != "fixed":
                raise ValueError(f"joint {joint.name!r} between {base!r} and {tip!r} is {joint.kind}, not revolute")
        return Chain(tuple(joints), rest, self.pose(root or base, base))

    def limits(self, names: Iterable[str]) -> tuple[Array, Array, Array]:
        """Lowest and highest position and largest velocity of the joints called `names`, each (n,); rad or m."""
        joints = [self.joints[name] for name in names]
        lower, upper, velocity = np.array([[joint.lower, joint.upper, joint.velocity] for joint in joints]).T
        return lower.copy(), upper.copy(), velocity.copy()


@cache
def robot_urdf(family: str) -> Urdf:
    """The URDF in `urdf/` of a family of robots."""
    return Urdf(ElementTree.fromstring(share_path(f"urdf/{family}.urdf").read_text()))


def origin_of(element: Element) -> Array:
    """Pose (4, 4) of the `origin` in a URDF element; the identity without one."""
    return _pose(*_origin(element))


def _pose(xyz: tuple[float, ...], rpy: tuple[float, ...]) -> Array:
    from scipy.spatial.transform import Rotation

    from molmoact2_ros.embodiments.kinematics import pose_of

    return pose_of(Rotation.from_euler("xyz", rpy), xyz)


def _origin(element: Element) -> tuple[tuple[float, ...], tuple[float, ...]]:
    origin = element.find("origin")
    given = {} if origin is None else origin.attrib
    return _numbers(given.get("xyz")), _numbers(given.get("rpy"))


def _joint(element: Element) -> UrdfJoint:
    axis, limit = element.find("axis"), element.find("limit")
    direction = np.array([1.0, 0.0, 0.0] if axis is None else _numbers(axis.get("xyz")))
    xyz, rpy = _origin(element)
    lower, upper, velocity = (
        float("nan" if limit is None else limit.get(key, "nan")) for key in ("lower", "upper", "velocity")
    )
    return UrdfJoint(
        name=element.get("name", ""),
        kind=element.get("type", ""),
        parent=_link(element, "parent"),
        child=_link(element, "child"),
        xyz=xyz,
        rpy=rpy,
        axis=direction / np.linalg.norm(direction),
        lower=lower,
        upper=upper,
        velocity=velocity,
    )


def _link(joint: Element, end: str) -> str:
    found = joint.find(end)
    if found is None:
        raise ValueError(f"joint {joint.get('name')!r} of the URDF has no {end}")
    return found.get("link", "")


def _numbers(text: str | None) -> tuple[float, ...]:
    return tuple(float(value) for value in (text or "0 0 0").split())
