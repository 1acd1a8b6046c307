"""The simulated cells by robot."""

from __future__ import annotations

from dataclasses import replace

from molmoact2_ros.embodiments import EMBODIMENTS
from molmoact2_ros.embodiments.franka_droid import FRANKA_HAND, FrankaDroid
from molmoact2_ros.simulation.cell import Cell
from molmoact2_ros.simulation.scene import CellRandomisation, Scene

WITH_CELL = ("franka", "panda", "so100", "so101", "yam")


def scene_of(robot: str) -> Scene:
    """Return the scene of `robot`.

    Raises:
        ValueError: there is no cell for it; the message lists those there are.
    """
    found = EMBODIMENTS.get(robot)
    if found is not None and found.family == "so101":
        from molmoact2_ros.simulation.so101_scene import SO101_SCENE

        return replace(SO101_SCENE, robot=found)
    if isinstance(found, FrankaDroid) and found.gripper is FRANKA_HAND:
        from molmoact2_ros.simulation.franka_scene import franka_scene

        return franka_scene(found)
    if found is not None and found.family == "yam":
        from molmoact2_ros.simulation.yam_scene import YAM_SCENE

        return YAM_SCENE
    raise ValueError(f"no simulated cell for robot {robot!r}; there are cells for {', '.join(WITH_CELL)}")


def make_cell(robot: str, seed: int = 0, randomisation: CellRandomisation | None = None, render: bool = True) -> Cell:
    """Return the cell of `robot`; see `scene_of` and `Cell`."""
    return Cell(scene_of(robot), seed, randomisation, render)
