"""Cells whose robot comes from its URDF in `urdf/`: the same kinematics, shapes, masses and limits that RViz shows.

What a URDF does not say is given here: the servos' gains, what collides with what, the pads, and the cell around.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.cell_cameras import camera_calibration, camera_names
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.embodiments.description import robot_description
from molmoact2_ros.simulation.scene import document, objects_xml

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco  # reads MUJOCO_GL when imported

Array = NDArray[np.float64]

VISUAL, COLLISION = 2, 3
"""Groups of geoms; the renderer draws the first and not the second."""
ROOM_BIT = 1


@dataclass(frozen=True)
class Servo:
    """A position servo: stiffness (N m/rad, N/m), damping (N m s/rad, N s/m), largest force (N m, N), and the rotor's
    inertia as the joint feels it (kg m^2, kg)."""

    stiffness: float
    damping: float
    force: float
    armature: float


@dataclass(frozen=True)
class UrdfCell:
    """What makes a scene of a URDF.

    Attributes:
        robot: whose URDF it is.
        servos: one a joint in ROS order.
        arms: for each arm the prefix of its links; arms collide with each other, not with themselves.
        fingers: links whose shapes are pads.
        grip_back: how far behind the tip the middle of the pads is, along the gripper, m.
        table, light: as `document` takes them. cube_half: m.
    """

    robot: Embodiment
    servos: tuple[Servo, ...]
    arms: tuple[str, ...]
    fingers: tuple[str, ...]
    grip_back: float
    table: str
    light: str
    cube_half: float

    def build(self, with_objects: bool = True) -> mujoco.MjModel:
        """Return the model; without objects it has the robot's joints only, which is what kinematics needs."""
        robot = self.robot
        arm = _robot_spec(robot)
        self._dress(arm)
        actuators = "".join(
            f'<position name="{name}" joint="{name}" kp="{servo.stiffness}" kv="{servo.damping}" '
            f'forcerange="{-servo.force} {servo.force}" ctrlrange="{low} {high}"/>'
            for name, servo, low, high in zip(
                robot.joint_names, self.servos, robot.limits.lower, robot.limits.upper, strict=True
            )
        )
        cell = mujoco.MjSpec.from_string(
            document(
                f"{robot.family}_cell",
                materials="",
                joints='damping="0"',
                light=self.light,
                table=self.table,
                world=objects_xml(self.cube_half) if with_objects else "",
                actuators=actuators,
                # Round shapes of few faces: software rendering takes half of the time, and nobody sees it at this size.
                quality=' numslices="14" numstacks="7" numquads="1"',
            )
        )
        cell.attach(arm, frame=cell.worldbody.add_frame(), prefix=_PREFIX)
        _strip_prefix(cell)
        for name in camera_names(robot.name):
            calibration = camera_calibration(robot.name, name)
            # MuJoCo looks along -z with y up, the optical frame has z forward and y down.
            cell.body(calibration.mount).add_camera(
                name=name,
                pos=calibration.pose[:3, 3],
                quat=_quaternion(calibration.pose[:3, :3] * [1.0, -1.0, -1.0]),
                fovy=calibration.fovy_deg,
            )
        for i, (chain, _) in enumerate(robot.chains):
            frames = chain.frames(np.zeros(len(chain.joints)))
            grip = np.linalg.inv(frames[-2]) @ frames[-1]
            grip[:3, 3] -= self.grip_back * grip[:3, 2]
            cell.body(robot.wrist_links[i]).add_site(
                name=f"grip_{i}", pos=grip[:3, 3], quat=_quaternion(grip[:3, :3]), group=5
            )
        return cell.compile()

    def _dress(self, spec: mujoco.MjSpec) -> None:
        """Say of the URDF's joints and shapes what MuJoCo wants to know."""
        servos = dict(zip(self.robot.joint_names, self.servos, strict=True))
        for equality in spec.equalities:  # a finger that mirrors another one
            servos[equality.name1] = servos[equality.name2]
            equality.solref = [0.005, 1.0]
        for joint in spec.joints:
            servo = servos[joint.name]
            joint.armature = servo.armature
            joint.actfrcrange = [-np.inf, np.inf]
            joint.actfrclimited = 0
        for body in spec.bodies:
            body.gravcomp = 1.0  # as the drivers of these arms do
            side = next((i for i, prefix in enumerate(self.arms) if body.name.startswith(prefix)), None)
            count = 0
            for geom in body.geoms:
                if geom.contype == 0:
                    geom.group = VISUAL
                    continue
                geom.name = f"{body.name}_{count}"
                geom.group = COLLISION
                count += 1
                # An arm meets the room, its objects and the other arm, not itself.
                geom.contype = 1 << (1 + (side or 0))
                geom.conaffinity = ROOM_BIT | sum(1 << (1 + i) for i in range(len(self.arms)) if i != side)
                if body.name in self.fingers:
                    geom.friction, geom.condim, geom.priority = [1.6, 0.02, 0.001], 4, 1
                    geom.solref = [0.006, 1.0]


def _quaternion(rotation: Array) -> Array:
    out = np.empty(4)
    mujoco.mju_mat2Quat(out, np.ascontiguousarray(rotation).ravel())
    return out


_PREFIX = "robot/"


def _strip_prefix(spec: mujoco.MjSpec) -> None:
    """Give what was attached its own names back: MuJoCo warns of an empty prefix, and names do not clash here."""
    for element in (*spec.bodies, *spec.joints, *spec.geoms, *spec.sites, *spec.equalities):
        element.name = element.name.removeprefix(_PREFIX)
    for equality in spec.equalities:
        equality.name1, equality.name2 = (name.removeprefix(_PREFIX) for name in (equality.name1, equality.name2))


def _robot_spec(robot: Embodiment) -> mujoco.MjSpec:
    text = robot_description(robot)
    compiler = '<mujoco><compiler fusestatic="false" discardvisual="false" angle="radian"/></mujoco></robot>'
    return mujoco.MjSpec.from_string(text.replace("</robot>", compiler))


def finger_geoms(model_fingers: tuple[str, ...], shapes: int = 2) -> tuple[tuple[str, ...], ...]:
    """Names of the collision shapes of each finger link."""
    return tuple(tuple(f"{link}_{i}" for i in range(shapes)) for link in model_fingers)
