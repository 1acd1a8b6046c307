"""Robots by name. Importing this room loads numpy only."""

from molmoact2_ros.embodiments.embodiment import Embodiment, JointLimits, ModelFrame
from molmoact2_ros.embodiments.so101 import SO101

EMBODIMENTS: dict[str, Embodiment] = {SO101.name: SO101}


def embodiment(name: str) -> Embodiment:
    """Return the robot called `name`.

    Raises:
        ValueError: no such robot; the message lists the known ones.
    """
    try:
        return EMBODIMENTS[name]
    except KeyError:
        raise ValueError(f"unknown robot {name!r}; known robots: {', '.join(sorted(EMBODIMENTS))}") from None


__all__ = ["EMBODIMENTS", "Embodiment", "JointLimits", "ModelFrame", "embodiment"]
