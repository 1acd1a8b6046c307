"""Which limits an arm touches, and who moves it, in words and places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment, Workspace

Array = NDArray[np.float64]

NEAR_LIMIT = 0.01
"""Share of a joint's range within which its end counts as touched."""
NEAR_SIDE_M = 0.01
"""Distance of a tip from a side of its box at which the side counts as touched, m."""


@dataclass(frozen=True, eq=False)
class Touched:
    """A limit that is touched: `words` for people, `place` (3,) in the robot's base frame, m."""

    words: str
    place: Array


def touched_joints(robot: Embodiment, joints: Array) -> list[Touched]:
    """Arm joints (no grippers: they end at their limits by design) at an end of their range."""
    limits, found = robot.limits, []
    margin = NEAR_LIMIT * (limits.upper - limits.lower)
    for chain, indices in robot.chains:
        frames = None
        for i, joint in enumerate(indices):
            low = joints[joint] <= limits.lower[joint] + margin[joint]
            high = joints[joint] >= limits.upper[joint] - margin[joint]
            if low or high:
                frames = chain.frames(joints[list(indices)]) if frames is None else frames
                end = "lower" if low else "upper"
                found.append(Touched(f"{robot.joint_names[joint]} at its {end} limit", frames[i, :3, 3].copy()))
    return found


def touched_sides(robot: Embodiment, joints: Array, boxes: Sequence[Workspace], arm: int) -> list[Touched]:
    """Sides of the workspace of `arm` that its tip touches or is beyond; `joints` (dof,)."""
    chain, indices = robot.chains[arm]
    box, found = boxes[arm], []
    tip = chain.tip(joints[list(indices)])[:3, 3]
    for axis, name in enumerate("xyz"):
        if tip[axis] <= box.lower[axis] + NEAR_SIDE_M:
            side = "floor" if axis == 2 else f"lowest {name}"
        elif tip[axis] >= box.upper[axis] - NEAR_SIDE_M:
            side = f"highest {name}"
        else:
            continue
        found.append(Touched(f"tip at the workspace's {side}", tip.copy()))
    return found


def who_drives(state: str, values: Mapping[str, str]) -> str:
    """Who moves the arm, by the message and the values of `executor/state`. The value `drives` says it where the
    executor knows several; else a state that follows chunks is the policy's."""
    if values.get("drives"):
        return values["drives"]
    return {"TRACKING": "policy", "": ""}.get(state.upper(), "nobody")
