"""The robot's model as robot_state_publisher and RViz take it: the URDF in `urdf/`, on request with the vendor's
meshes.

The links of our models stand where the vendor's links stand, so that a mesh can take the place of a link's primitive
shapes; where a frame differs, the difference at the zero pose moves the mesh.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.franka_droid import FRANKA_HAND, FrankaDroid
from molmoact2_ros.embodiments.urdf import Urdf, origin_of
from molmoact2_ros.share import share_path

Array = NDArray[np.float64]
Element = ElementTree.Element


@dataclass(frozen=True)
class VendorModel:
    """A URDF with meshes in a package of the index.

    Attributes:
        package: the package's name, to install it.
        urdf: its path under `site-packages`.
        meshes: folder that mesh names are relative to, and the prefix of them that stands for it.
        links: our link -> theirs; the first pair is the base of both.
        covered: links of ours whose shapes are in the meshes of others.
    """

    package: str
    urdf: str
    meshes: tuple[str, str]
    links: dict[str, str]
    covered: tuple[str, ...] = ()


_PANDA = "cmeel.prefix/share/example-robot-data/robots/panda_description"
_YAM = "i2rt/robot_models/arm/yam/v1"
_SO101 = "urdf/so101-follower"
_YAM_LINKS = {
    "base_link": "base",
    **{f"link{i}": f"link{i}" for i in range(1, 6)},
    "link6": "gripper",
    "left_finger": "tip_left",
    "right_finger": "tip_right",
}
_ARM = ("shoulder_link", "upper_arm_link", "lower_arm_link", "wrist_link", "gripper_link")
VENDOR_MODELS: dict[str, tuple[VendorModel, ...]] = {
    "franka": (
        VendorModel(
            "example-robot-data",
            f"{_PANDA}/urdf/panda.urdf",
            ("cmeel.prefix/share/example-robot-data", "package://example-robot-data"),
            {
                **{f"fr3_link{i}": f"panda_link{i}" for i in range(8)},
                "fr3_hand": "panda_hand",
                "fr3_leftfinger": "panda_leftfinger",
                "fr3_rightfinger": "panda_rightfinger",
            },
        ),
    ),
    "yam": tuple(
        VendorModel(
            "dreamscale-i2rt",
            f"{_YAM}/yam.urdf",
            (f"{_YAM}/assets", "assets"),
            {f"{side}_{ours}": theirs for ours, theirs in _YAM_LINKS.items()},
            (f"{side}_hand",),
        )
        for side in ("left", "right")
    ),
    "so101": (
        VendorModel(
            "physicalai-so101-plugin",
            f"{_SO101}/so101_follower.urdf",
            (f"{_SO101}/assets", "assets"),
            {**{name: name for name in ("base_link", *_ARM)}, "moving_jaw_link": "moving_jaw_so101_v1_link"},
        ),
    ),
}
"""Models with the robot's kinematics, by family: for each arm one. The FR3 wears the Panda's meshes."""


def robot_description(robot: Embodiment, meshes: bool = False) -> str:
    """Return the URDF of `robot`.

    Args:
        meshes: show the vendor's meshes instead of primitive shapes; collision shapes stay primitive.

    Raises:
        FileNotFoundError: the meshes' package is not installed; the message says which.
    """
    tree = ElementTree.fromstring(share_path(f"urdf/{robot.family}.urdf").read_text())
    if meshes:
        for model in VENDOR_MODELS[robot.family]:
            _dress(tree, model)
    if isinstance(robot, FrankaDroid):
        _adapt_franka(tree, robot)
    return ElementTree.tostring(tree, encoding="unicode")


def vendor_path(relative: str, package: str, places: Iterable[str] | None = None) -> Path:
    """Return a file of an installed package.

    Raises:
        FileNotFoundError: it is in none of `places` (of `sys.path`).
    """
    for place in places if places is not None else sys.path:
        found = Path(place or ".") / relative
        if found.exists():
            return found.resolve()
    raise FileNotFoundError(f"{relative} is not installed; install it with: pip install --no-deps {package}")


def _dress(tree: Element, model: VendorModel) -> None:
    """Replace the visuals of the links by the vendor's."""
    from scipy.spatial.transform import Rotation

    vendor = ElementTree.fromstring(vendor_path(model.urdf, model.package).read_text())
    folder = vendor_path(model.meshes[0], model.package)
    ours_base, theirs_base = next(iter(model.links.items()))
    ours, theirs = Urdf(tree), Urdf(vendor)
    links = {link.get("name"): link for link in vendor.iter("link")}
    for link in tree.iter("link"):
        name = link.get("name", "")
        if name not in model.links and name not in model.covered:
            continue
        for visual in link.findall("visual"):
            link.remove(visual)
        if name in model.covered:
            continue
        moved = np.linalg.inv(ours.pose(ours_base, name)) @ theirs.pose(theirs_base, model.links[name])
        for visual in links[model.links[name]].findall("visual"):
            place = moved @ origin_of(visual)
            for old in visual.findall("origin"):
                visual.remove(old)
            ElementTree.SubElement(
                visual,
                "origin",
                xyz=_text(place[:3, 3]),
                rpy=_text(Rotation.from_matrix(place[:3, :3]).as_euler("xyz")),
            )
            for mesh in visual.iter("mesh"):
                mesh.set("filename", f"file://{folder}{mesh.get('filename', '').removeprefix(model.meshes[1])}")
            link.append(visual)


def _adapt_franka(tree: Element, robot: FrankaDroid) -> None:
    """Names and limits of the arm's model; a hand that is not the Franka Hand is left out."""
    if robot.gripper is not FRANKA_HAND:
        for element in [e for e in tree if "hand" in e.get("name", "") or "finger" in e.get("name", "")]:
            tree.remove(element)
    limits = dict(zip(robot.joint_names, zip(robot.limits.lower, robot.limits.upper, strict=True), strict=True))
    for element in tree.iter():
        for key in ("name", "link", "joint"):
            if key in element.attrib:
                element.set(key, element.attrib[key].replace("fr3", robot.arm.joint_prefix))
    for joint in tree.iter("joint"):
        limit, bounds = joint.find("limit"), limits.get(joint.get("name", ""))
        if limit is not None and bounds is not None:
            index = robot.joint_names.index(joint.get("name", ""))
            limit.set("lower", f"{bounds[0]:.6g}")
            limit.set("upper", f"{bounds[1]:.6g}")
            limit.set("velocity", f"{robot.limits.velocity[index]:.6g}")


def _text(values: Array) -> str:
    return " ".join(f"{v:.9g}" for v in values)
