"""What a robot's cell is made of: the model, where things stand, what counts as a grip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibration import CameraCalibration
from molmoact2_ros.embodiments import Embodiment

if TYPE_CHECKING:
    import mujoco

Array = NDArray[np.float64]

CUBE = "red"
"""The object to grasp."""
DISTRACTORS = ("green", "blue", "yellow")
"""The other objects on the table."""


@dataclass(frozen=True)
class CellRandomisation:
    """What differs between episodes.

    Attributes:
        radius: distance of the cube from the scene's pole, m. bearing: its direction, +- rad. Both uniform.
        start: standard deviation of the start pose, rad.
        light, colour: relative change of light and colours, +-.
        camera_m, camera_rad: standard deviation of the camera poses.
    """

    radius: tuple[float, float] = (0.145, 0.225)
    bearing: float = 0.75
    start: float = 0.03
    light: float = 0.15
    colour: float = 0.08
    camera_m: float = 0.002
    camera_rad: float = 0.004


@dataclass(frozen=True)
class Grip:
    """One gripper: the site between its pads, and for each finger the geoms that may touch what it holds."""

    site: str
    fingers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scene:
    """A robot's cell.

    Attributes:
        robot: what stands in it.
        build: makes the MuJoCo model. Joints and actuators bear the names of ROS; a finger that follows another one
            is in `followers`.
        start: start pose of an episode, (dof,), rad and m. start_scale: its spread per joint, times that of
            `CellRandomisation`.
        tick: resolution of the encoders, (dof,); 0 for one that is finer than matters.
        grips: one an arm.
        cube_half: half the cube's side, m.
        pole: the point (2,) on the table about which objects are placed, m.
        distractor_radius: how much nearer and further than the cube the other objects lie, m; distractor_bearing: how
            much further to the sides, rad.
        room: least distances of another object from the cube and from each other, m: the open gripper needs it.
        randomisation: what differs between episodes unless the caller says otherwise.
        followers: joint -> the joint that it mirrors.
    """

    robot: Embodiment
    build: Callable[[], mujoco.MjModel]
    start: Array
    start_scale: Array
    tick: Array
    grips: tuple[Grip, ...]
    cube_half: float
    pole: Array
    distractor_radius: tuple[float, float]
    distractor_bearing: float
    room: tuple[float, float]
    randomisation: CellRandomisation = field(default_factory=CellRandomisation)
    followers: tuple[tuple[str, str], ...] = ()


def numbers(values: object) -> str:
    """`values` as an MJCF attribute."""
    return " ".join(f"{float(v):.6g}" for v in np.ravel(np.asarray(values, dtype=np.float64)))


def camera_xml(name: str, calibration: CameraCalibration) -> str:
    """A camera in the body of its mount."""
    rotation = calibration.pose[:3, :3]
    # MuJoCo's camera looks along -z with y up; the optical frame has z forward and y down.
    axes = np.concatenate([rotation[:, 0], -rotation[:, 1]])
    return (
        f'<camera name="{name}" pos="{numbers(calibration.pose[:3, 3])}" xyaxes="{numbers(axes)}" '
        f'fovy="{calibration.fovy_deg:.6g}"/>'
    )


def document(
    name: str,
    *,
    materials: str,
    joints: str,
    light: str,
    table: str,
    world: str,
    contact: Iterable[tuple[str, str]] = (),
    actuators: str = "",
    quality: str = "",
) -> str:
    """MJCF of a cell: the room, its light and its table, and what the caller puts in.

    Args:
        materials: of the robot, beside those of the room. joints: attributes of every joint that says nothing else.
        light, table: where they are. world: bodies. contact: pairs of bodies that do not collide.
        quality: further attributes of the renderer.
    """
    excluded = "\n    ".join(f'<exclude body1="{one}" body2="{other}"/>' for one, other in contact)
    return f"""
<mujoco model="{name}">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality offsamples="0" shadowsize="0"{quality}/>
    <headlight ambient="0.35 0.35 0.35" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
    <global offwidth="640" offheight="480"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.75 0.80 0.85" rgb2="0.45 0.50 0.55"
      width="64" height="64"/>
    <texture name="wood" type="2d" builtin="checker" rgb1="0.62 0.58 0.52" rgb2="0.58 0.54 0.48"
      width="128" height="128"/>
    <material name="table" texture="wood" texrepeat="12 12" specular="0" shininess="0" reflectance="0"/>
    {materials}
    <material name="pad" rgba="0.95 0.55 0.10 1"/>
  </asset>
  <default>
    <joint {joints}/>
    <default class="pad">
      <geom type="box" material="pad" friction="1.6 0.02 0.001" condim="4" priority="1" solref="0.006 1"/>
    </default>
    <default class="object"><geom friction="1.0 0.02 0.002" condim="4" solref="0.006 1"/></default>
  </default>
  <worldbody>
    <light name="key" {light} castshadow="false" diffuse="0.55 0.55 0.55"
      specular="0 0 0"/>
    <geom name="table" type="box" {table} material="table"/>
    <geom name="floor" type="plane" pos="0 0 -0.75" size="4 4 0.1" rgba="0.35 0.36 0.38 1"/>
    {world}
  </worldbody>
  <contact>
    {excluded}
  </contact>
  <actuator>{actuators}</actuator>
</mujoco>
"""


def objects_xml(cube_half: float) -> str:
    """The cube and the other objects; `cube_half` (m) is half the cube's side, and the others grow with it."""
    scale = cube_half / 0.014
    shapes = {
        CUBE: ("box", (0.014, 0.014, 0.014), 0.03),
        "green": ("cylinder", (0.015, 0.014), 0.03),
        "blue": ("box", (0.016, 0.012, 0.012), 0.03),
        "yellow": ("sphere", (0.014,), 0.02),
    }
    out = ""
    for name, (shape, size, mass) in shapes.items():
        geom = f'type="{shape}" size="{numbers(np.multiply(size, scale))}" mass="{mass * scale**3:.6g}"'
        out += (
            f'<body name="{name}" pos="0.3 0 0.02"><freejoint name="{name}"/>'
            f'<geom class="object" name="{name}" {geom} rgba="{_COLOURS[name]}"/></body>'
        )
    return out


_COLOURS = {
    CUBE: "0.82 0.10 0.10 1",
    "green": "0.15 0.55 0.20 1",
    "blue": "0.12 0.25 0.75 1",
    "yellow": "0.90 0.75 0.10 1",
}
