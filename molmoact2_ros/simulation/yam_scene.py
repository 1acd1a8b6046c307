"""The YAM cell: two arms side by side at a table, a cube of 40 mm between them that either may pick, other objects, a
camera above and one on each wrist, where the vendor's station has them."""

from __future__ import annotations

import numpy as np

from molmoact2_ros.embodiments.yam_bimanual import GRIPPER_STROKE, SIDES, YAM
from molmoact2_ros.simulation.scene import CellRandomisation, Grip, Scene
from molmoact2_ros.simulation.urdf_scene import Servo, UrdfCell, finger_geoms

CUBE_HALF = 0.02
ANGLE_TICK = 25.0 / 65535
"""The motors report +-12.5 rad in 16 bits."""
FINGERS = tuple((f"{side}_left_finger", f"{side}_right_finger") for side in SIDES)

# Gains and forces of i2rt, which compensates gravity; the rotors' inertia is an estimate for these gear ratios.
_ARM = (*(Servo(80.0, 5.0, 28.0, 0.03),) * 3, *(Servo(10.0, 1.5, 10.0, 0.01),) * 3)
_GRIPPER = Servo(1500.0, 60.0, 40.0, 0.1)

CELL = UrdfCell(
    robot=YAM,
    servos=(*_ARM, _GRIPPER) * 2,
    arms=("left_", "right_"),
    fingers=tuple(finger for pair in FINGERS for finger in pair),
    grip_back=0.012,
    table='pos="0.35 -0.305 -0.02" size="0.55 0.75 0.02"',
    light='pos="0.5 -0.1 1.6" dir="-0.2 -0.2 -1"',
    cube_half=CUBE_HALF,
)

_TICK = np.append(np.full(6, ANGLE_TICK), GRIPPER_STROKE / 4096)

YAM_SCENE = Scene(
    robot=YAM,
    build=CELL.build,
    start=YAM.rest_position,
    start_scale=np.tile([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], 2),
    tick=np.tile(_TICK, 2),
    grips=tuple(Grip(f"grip_{i}", finger_geoms(pair)) for i, pair in enumerate(FINGERS)),
    cube_half=CUBE_HALF,
    # A point behind the arms, midway between them: the cube lies before it.
    pole=np.array([-0.15, YAM.chains[1][0].base_xyz[1] / 2]),
    distractor_radius=(0.04, 0.10),
    distractor_bearing=0.15,
    room=(0.12, 0.06),
    randomisation=CellRandomisation(radius=(0.44, 0.56), bearing=0.36),
    followers=tuple((f"{side}_gripper_mirror", f"{side}_gripper") for side in SIDES),
)
