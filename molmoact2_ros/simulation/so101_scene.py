"""The scene of the SO-101 cell as MJCF: arm of primitives with the published kinematics, table, cube, distractors.

The jaw's pad is placed so that both pads are parallel when they hold a cube of 28 mm.
"""

from __future__ import annotations

import numpy as np

from molmoact2_ros.embodiments.so101 import ARM_CHAIN, JAW, SO101
from molmoact2_ros.simulation.calibration import CameraCalibration, camera_calibration, camera_names

PARALLEL_JAW = 0.19
"""Jaw angle at which the pads are parallel, rad; the gap is then 28.1 mm."""
GRIP_POINT = (0.0062, 0.0, -0.088)
"""Middle between the pads, in the frame of the gripper link, m."""
CUBE_HALF = 0.014
DISTRACTORS = ("green", "blue", "yellow")
_COLOURS = {
    "red": "0.82 0.10 0.10 1",
    "green": "0.15 0.55 0.20 1",
    "blue": "0.12 0.25 0.75 1",
    "yellow": "0.90 0.75 0.10 1",
}
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


def _numbers(values: object) -> str:
    return " ".join(f"{float(v):.6g}" for v in np.ravel(np.asarray(values, dtype=np.float64)))


def _camera(name: str, calibration: CameraCalibration) -> str:
    rotation = calibration.pose[:3, :3]
    # MuJoCo's camera looks along -z with y up; the optical frame has z forward and y down.
    axes = np.concatenate([rotation[:, 0], -rotation[:, 1]])
    return (
        f'<camera name="{name}" pos="{_numbers(calibration.pose[:3, 3])}" xyaxes="{_numbers(axes)}" '
        f'fovy="{calibration.fovy_deg:.6g}"/>'
    )


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


def _arm() -> str:
    fixed, moving = _pads()
    limits = SO101.limits
    out, closing = "", ""
    for i, (joint, link) in enumerate(zip(ARM_CHAIN.joints, _LINKS, strict=True)):
        out += (
            f'<body name="{link}" pos="{_numbers(joint.xyz)}" quat="{_numbers(joint.wxyz)}">'
            f'<joint name="{joint.name}" axis="{_numbers(joint.axis)}" '
            f'range="{limits.lower[i]} {limits.upper[i]}"/>{_GEOMS[link]}'
        )
        closing += "</body>"
    wrist = "".join(
        _camera(name, camera_calibration("so101", name))
        for name in camera_names("so101")
        if camera_calibration("so101", name).mount == "gripper_link"
    )
    out += (
        f'{fixed}<site name="grip" pos="{_numbers(GRIP_POINT)}" size="0.002" rgba="0 0 0 0"/>{wrist}'
        f'<body name="moving_jaw_link" pos="{_numbers(JAW.xyz)}" quat="{_numbers(JAW.wxyz)}">'
        f'<joint name="{JAW.name}" axis="{_numbers(JAW.axis)}" '
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
        _camera(name, camera_calibration("so101", name))
        for name in camera_names("so101")
        if camera_calibration("so101", name).mount == "base_link"
    )
    objects = ""
    for name, colour in _COLOURS.items() if with_objects else ():
        if name == "red":
            shape = f'type="box" size="{CUBE_HALF} {CUBE_HALF} {CUBE_HALF}" mass="0.03"'
        elif name == "green":
            shape = 'type="cylinder" size="0.015 0.014" mass="0.03"'
        elif name == "blue":
            shape = 'type="box" size="0.016 0.012 0.012" mass="0.03"'
        else:
            shape = 'type="sphere" size="0.014" mass="0.02"'
        objects += (
            f'<body name="{name}" pos="0.3 0 0.02"><freejoint name="{name}"/>'
            f'<geom class="object" name="{name}" {shape} rgba="{colour}"/></body>'
        )
    return f"""
<mujoco model="so101_cell">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <quality offsamples="0" shadowsize="0"/>
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
    <material name="printed" rgba="0.93 0.93 0.90 1"/>
    <material name="servo" rgba="0.12 0.12 0.13 1"/>
    <material name="pad" rgba="0.95 0.55 0.10 1"/>
  </asset>
  <default>
    <joint damping="0.3" armature="0.028" frictionloss="0.05"/>
    <default class="pad">
      <geom type="box" material="pad" friction="1.6 0.02 0.001" condim="4" priority="1" solref="0.006 1"/>
    </default>
    <default class="object"><geom friction="1.0 0.02 0.002" condim="4" solref="0.006 1"/></default>
  </default>
  <worldbody>
    <light name="key" pos="0.4 0.5 1.2" dir="-0.2 -0.4 -1" castshadow="false" diffuse="0.55 0.55 0.55"
      specular="0 0 0"/>
    <geom name="table" type="box" pos="0.15 0 -0.02" size="0.40 0.45 0.02" material="table"/>
    <geom name="floor" type="plane" pos="0 0 -0.75" size="4 4 0.1" rgba="0.35 0.36 0.38 1"/>
    {fixed_cameras}
    <body name="base_link">{_GEOMS["base_link"]}{_arm()}</body>
    {objects}
  </worldbody>
  <contact>
    <exclude body1="base_link" body2="shoulder_link"/>
    <exclude body1="shoulder_link" body2="upper_arm_link"/>
    <exclude body1="upper_arm_link" body2="lower_arm_link"/>
    <exclude body1="lower_arm_link" body2="wrist_link"/>
    <exclude body1="wrist_link" body2="gripper_link"/>
    <exclude body1="base_link" body2="upper_arm_link"/>
    <exclude body1="lower_arm_link" body2="gripper_link"/>
    <exclude body1="wrist_link" body2="moving_jaw_link"/>
  </contact>
  <actuator>{actuators}</actuator>
</mujoco>
"""
