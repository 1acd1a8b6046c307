"""Robots by name. Importing this room loads numpy only."""

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame, Workspace
from molmoact2_ros.embodiments.franka_droid import FRANKA, FRANKA_ROBOTIQ, PANDA, PANDA_ROBOTIQ
from molmoact2_ros.embodiments.so101 import SO100, SO101
from molmoact2_ros.embodiments.yam_bimanual import YAM

EMBODIMENTS: dict[str, Embodiment] = {
    robot.name: robot for robot in (SO101, SO100, FRANKA, FRANKA_ROBOTIQ, PANDA, PANDA_ROBOTIQ, YAM)
}


def embodiment(name: str) -> Embodiment:
    """Return the robot called `name`.

    Raises:
        ValueError: no such robot; the message lists the known ones.
    """
    try:
        return EMBODIMENTS[name]
    except KeyError:
        raise ValueError(f"unknown robot {name!r}; known robots: {', '.join(sorted(EMBODIMENTS))}") from None


__all__ = ["EMBODIMENTS", "Embodiment", "JointLimits", "ModelFrame", "Workspace", "embodiment"]
