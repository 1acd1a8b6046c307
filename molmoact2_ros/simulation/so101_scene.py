"""The scene of the SO-101 cell as MJCF: arm of primitives with the published kinematics, table, cube, distractors.

The jaw's pad is placed so that both pads are parallel when they hold a cube of 28 mm.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.embodiments.so101 import JAW, SO101
from molmoact2_ros.simulation.scene import Grip, Scene, camera_xml, document, numbers, objects_xml

if TYPE_CHECKING:
    import mujoco

PARALLEL_JAW = 0.19
"""Jaw angle at which the pads are parallel, rad; the gap is then 28.1 mm."""
GRIP_POINT = (0.0062, 0.0, -0.088)
"""Middle between the pads, in the frame of the gripper link, m."""
CUBE_HALF = 0.014
TICK = 2.0 * np.pi / 4096.0
"""Resolution of the STS3215's encoder, rad."""
PAN_AXIS = np.array([0.0388, 0.0])
"""Where the shoulder pan axis stands on the table, m."""
START = np.array([0.0, -0.46, 0.66, 1.37, 0.0, 0.55])
"""Start pose of an episode: gripper down, half open, above the middle of the table, rad."""
_LINKS = ("shoulder_link", "upper_arm_link", "lower_arm_link", "wrist_link", "gripper_link")

# name: (mass kg, geoms). Sizes are half extents, m; they approximate the printed parts and the STS3215 servos.
_GEOMS = {
    "base_link": '<geom type="box" pos="0.005 0 0.025" size="0.045 0.034 0.025" material="printed"/>'
    '<geom type="box" pos="0.036 0 0.054" size="0.022 0.018 0.012" material="servo"/>',
    "shoulder_link": '<geom type="box" pos="-0.012 0 -0.03" size="0.024 0.022 0.03" material="printed" mass="0.10"/>',
    "upper_arm_link": '<geom type="capsule" fromto="0 0 0.018 -0.1126 -0.028 0.018" size="0.016" mass="0.10" '
    'material="printed"/>'
    '<geom type="box" pos="-0.1 -0.026 0.018" size="0.02 0.016 0.019" material="servo" mass="0.02"/>',
    "lower_arm_link": '<geom type="capsule" fromto="0 0 0.018 -0.1349 0.0052 0.018" size="0.014" mass="0.10" '
    'material="printed"/>'
    '<geom type="box" pos="-0.12 0.005 0.018" size="0.02 0.014 0.018" material="servo" mass="0.02"/>',
    "wrist_link": '<geom type="box" pos="0 -0.034 0.018" size="0.014 0.026 0.018" material="printed" mass="0.08"/>',
    "gripper_link": '<geom type="box" pos="0.006 0.004 -0.016" size="0.022 0.020 0.018" material="servo" mass="0.07"/>',
}


def _pads() -> tuple[str, str]:
    """The fixed finger in the gripper link, and the moving finger in the jaw's frame."""
    fixed = '<geom class="pad" name="fixed_pad" pos="-0.0129 0 -0.068" size="0.005 0.009 0.034" mass="0.02"/>'
    angle = -PARALLEL_JAW
    x, y = 0.005, -0.045
    turned = (np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y)
    moving = (
        f'<geom class="pad" name="moving_pad" pos="{turned[0]:.6g} {turned[1]:.6g} 0.0188" '
        f'size="0.005 0.035 0.009" euler="0 0 {angle}" mass="0.03"/>'
        '<geom type="cylinder" fromto="0 0 0.0388 0 0 -0.001" size="0.012" material="servo" mass="0.02" '
        'contype="0" conaffinity="0"/>'
    )
    return fixed, moving


def _quaternion(pose: NDArray[np.float64]) -> str:
    """The rotation of a pose (4, 4) as MJCF takes it, w first, to the last digit."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return f"{w:.17g} {x:.17g} {y:.17g} {z:.17g}"


def _arm() -> str:
    fixed, moving = _pads()
    limits = SO101.limits
    out, closing = "", ""
    for i, (joint, link) in enumerate(zip(SO101.chains[0][0].joints, _LINKS, strict=True)):
        out += (
            f'<body name="{link}" pos="{numbers(joint.xyz)}" quat="{_quaternion(joint.origin)}">'
            f'<joint name="{joint.name}" axis="{numbers(joint.axis)}" '
            f'range="{limits.lower[i]} {limits.upper[i]}"/>{_GEOMS[link]}'
        )
        closing += "</body>"
    wrist = "".join(
        camera_xml(name, camera_calibration("so101", name))
        for name in camera_names("so101")
        if camera_calibration("so101", name).mount == "gripper_link"
    )
    out += (
        f'{fixed}<site name="grip" pos="{numbers(GRIP_POINT)}" size="0.002" rgba="0 0 0 0"/>{wrist}'
        f'<body name="moving_jaw_link" pos="{numbers(JAW.xyz)}" quat="{_quaternion(JAW.origin)}">'
        f'<joint name="{JAW.name}" axis="{numbers(JAW.axis)}" '
        f'range="{limits.lower[5]} {limits.upper[5]}"/>{moving}</body>'
    )
    return out + closing


def scene_xml(with_objects: bool = True) -> str:
    """MJCF of the whole cell; without objects it has the arm's joints only, which is what kinematics needs."""
    joints = SO101.joint_names
    actuators = "".join(
        f'<position name="{name}" joint="{name}" kp="{kp}" dampratio="1" forcerange="{-force} {force}" '
        f'ctrlrange="{SO101.limits.lower[i]} {SO101.limits.upper[i]}"/>'
        for i, (name, kp, force) in enumerate(
            zip(joints, (60, 60, 60, 40, 30, 12), (3.3, 3.3, 3.3, 3.3, 3.3, 1.2), strict=True)
        )
    )
    fixed_cameras = "".join(
        camera_xml(name, camera_calibration("so101", name))
        for name in camera_names("so101")
        if camera_calibration("so101", name).mount == "base_link"
    )
    objects = objects_xml(CUBE_HALF) if with_objects else ""
    links = ("base_link", *_LINKS)
    excluded = (*pairwise(links), ("base_link", "upper_arm_link"), ("lower_arm_link", "gripper_link"))
    return document(
        "so101_cell",
        materials='<material name="printed" rgba="0.93 0.93 0.90 1"/>\n    '
        '<material name="servo" rgba="0.12 0.12 0.13 1"/>',
        joints='damping="0.3" armature="0.028" frictionloss="0.05"',
        light='pos="0.4 0.5 1.2" dir="-0.2 -0.4 -1"',
        table='pos="0.15 0 -0.02" size="0.40 0.45 0.02"',
        world=f"""{fixed_cameras}
    <body name="base_link">{_GEOMS["base_link"]}{_arm()}</body>
    {objects}""",
        contact=(*excluded, ("wrist_link", "moving_jaw_link")),
        actuators=actuators,
    )


def _build() -> mujoco.MjModel:
    import mujoco

    return mujoco.MjModel.from_xml_string(scene_xml())


SO101_SCENE = Scene(
    robot=SO101,
    build=_build,
    start=START,
    start_scale=np.array([3.0, 1.0, 1.0, 1.0, 1.0, 3.0]),
    tick=np.full(6, TICK),
    grips=(Grip("grip", (("fixed_pad",), ("moving_pad",))),),
    cube_half=CUBE_HALF,
    pole=PAN_AXIS,
    distractor_radius=(0.02, 0.08),
    distractor_bearing=0.3,
    room=(0.075, 0.04),
)
