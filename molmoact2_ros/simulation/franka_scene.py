"""The Franka cell: the arm at the edge of a table, a cube of 40 mm to pick, other objects, a camera beside the table
and one on the hand."""

from __future__ import annotations

import numpy as np

from molmoact2_ros.embodiments.franka_droid import FrankaDroid
from molmoact2_ros.simulation.scene import CellRandomisation, Grip, Scene
from molmoact2_ros.simulation.urdf_scene import Servo, UrdfCell, finger_geoms

CUBE_HALF = 0.02


def franka_cell(robot: FrankaDroid) -> UrdfCell:
    """The model of the cell with the arm `robot`, which has the Franka Hand."""
    return UrdfCell(
        robot=robot,
        # The arm's own controller is stiff and compensates gravity and friction.
        servos=(
            *(Servo(4500.0, 450.0, 87.0, 0.1),) * 2,
            *(Servo(3500.0, 350.0, 87.0, 0.1),) * 2,
            *(Servo(2000.0, 200.0, 12.0, 0.1),) * 3,
            Servo(2000.0, 80.0, 40.0, 0.05),
        ),
        arms=(robot.arm.joint_prefix,),
        fingers=_fingers(robot),
        grip_back=0.002,
        table='pos="0.45 0 -0.02" size="0.60 0.60 0.02"',
        light='pos="0.6 0.7 1.6" dir="-0.2 -0.4 -1"',
        cube_half=CUBE_HALF,
    )


def franka_scene(robot: FrankaDroid) -> Scene:
    """The cell of the arm `robot`."""
    prefix = robot.arm.joint_prefix
    return Scene(
        robot=robot,
        build=franka_cell(robot).build,
        start=robot.rest_position,
        start_scale=np.array([1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
        tick=np.zeros(8),
        grips=(Grip("grip_0", finger_geoms(_fingers(robot))),),
        cube_half=CUBE_HALF,
        pole=np.array([0.0, 0.0]),
        distractor_radius=(0.05, 0.12),
        distractor_bearing=0.25,
        # The hand is 20 cm wide, but what lies beside the cube is lower than it ever comes.
        room=(0.13, 0.06),
        randomisation=CellRandomisation(radius=(0.42, 0.58), bearing=0.40),
        followers=((f"{prefix}_finger_joint2", f"{prefix}_finger_joint1"),),
    )


def _fingers(robot: FrankaDroid) -> tuple[str, ...]:
    return tuple(f"{robot.arm.joint_prefix}_{side}finger" for side in ("left", "right"))
