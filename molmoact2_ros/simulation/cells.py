"""The simulated cells by robot."""

from __future__ import annotations

from molmoact2_ros.simulation.cell import Cell
from molmoact2_ros.simulation.scene import CellRandomisation, Scene


def scene_of(robot: str) -> Scene:
    """Return the scene of `robot`.

    Raises:
        ValueError: there is no cell for it; the message lists those there are.
    """
    if robot == "so101":
        from molmoact2_ros.simulation.so101_scene import SO101_SCENE

        return SO101_SCENE
    if robot == "franka":
        from molmoact2_ros.simulation.franka_scene import FRANKA_SCENE

        return FRANKA_SCENE
    if robot == "yam":
        from molmoact2_ros.simulation.yam_scene import YAM_SCENE

        return YAM_SCENE
    raise ValueError(f"no simulated cell for robot {robot!r}; there are cells for franka, so101, yam")


def make_cell(robot: str, seed: int = 0, randomisation: CellRandomisation | None = None, render: bool = True) -> Cell:
    """Return the cell of `robot`; see `scene_of` and `Cell`."""
    return Cell(scene_of(robot), seed, randomisation, render)
