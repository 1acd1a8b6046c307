"""The scripted experts of the simulated cells by robot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.franka_droid import FrankaDroid

Array = NDArray[np.float64]
Expert = Callable[[Array, Array, float], Array]
"""Joints (dof,) in rad and m, the cube's place (3,) in m and its yaw in rad -> a chunk (horizon, dof)."""


def expert_of(robot: str) -> Expert:
    """Return the expert of `robot`'s cell, ready to answer quickly.

    Raises:
        ValueError: there is no cell for it.
    """
    from molmoact2_ros.simulation.cells import scene_of

    scene = scene_of(robot)
    if scene.robot.family == "so101":
        from molmoact2_ros.simulation.expert import expert_chunk

        def so101(joints: Array, place: Array, yaw: float) -> Array:
            return expert_chunk(joints, place, scene.robot.rate_hz, scene.robot.horizon)

        # The first call solves the inverse kinematics on its grid, which takes seconds.
        so101(scene.robot.rest_position, np.array([0.2, 0.0, 0.014]), 0.0)
        return so101
    from molmoact2_ros.simulation.pick_expert import PickExpert

    if isinstance(scene.robot, FrankaDroid):
        from molmoact2_ros.simulation.franka_scene import franka_cell

        return PickExpert(scene, franka_cell(scene.robot)).chunk
    from molmoact2_ros.simulation.yam_scene import CELL as YAM_CELL

    return PickExpert(scene, YAM_CELL, lean=0.3).chunk
