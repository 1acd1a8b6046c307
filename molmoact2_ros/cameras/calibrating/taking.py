"""When a picture is worth taking: board and arm stand still, and the view is a new one. So one person can do it
alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import LEAST_CORNERS, Seen
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

STILL_S = 0.5
"""The arm has stood for so long, and the board was at one place in two pictures."""
STILL_RAD = 0.006
"""Four steps of a servo's encoder."""
STILL_SHARE, STILL_SHARE_HAND = 0.002, 0.006
"""How far corners may move between two pictures, share of the picture's width; nobody's hand is a stand."""
NEW_RAD = 0.12
NEW_SHARE = 0.05
"""A view is new when a joint, or the corners of a board in a hand, are this far from every one before."""
_TOGETHER_NS = 250_000_000
_BEFORE_NS = 1_500_000_000
"""A picture from longer ago does not show that nothing has moved."""


@dataclass(frozen=True, eq=False)
class Glance:
    """What a camera's newest picture shows: when it was taken, its width, the board."""

    stamp_ns: int
    width: int
    seen: Seen


class Taker:
    """Decides for one placement of the board.

    Args:
        moving: cameras that move against the board with the arm: one of them must see it. Empty for a board in a hand.
    """

    def __init__(self, robot: Embodiment, moving: frozenset[str], by_hand: bool) -> None:
        self._arm = [joint for joints in robot.arms for joint in range(joints.start, joints.stop)]
        self._moving, self._by_hand = moving, by_hand
        self._joints: deque[tuple[int, Array]] = deque(maxlen=500)
        self._before: dict[str, Glance] = {}
        self._taken_joints: list[Array] = []
        self._taken: dict[str, list[Seen]] = {}

    def heard(self, stamp_ns: int, joints: Array) -> None:
        """A joint reading (dof,), ROS order; one with the stamp of the last stands in its place."""
        if self._joints and stamp_ns < self._joints[-1][0]:
            self._joints.clear()  # a clock that was set back
        if self._joints and stamp_ns == self._joints[-1][0]:
            self._joints.pop()
        self._joints.append((stamp_ns, joints))

    def look(self, glances: Mapping[str, Glance]) -> tuple[dict[str, Glance], Array | None, str]:
        """The glances to take now with the joints (dof,), or none and the reason, for the user.

        To be called with new pictures, a few times a second; whoever takes them says so with `took`.
        """
        before, self._before = self._before, {**self._before, **glances}
        seeing = {name: one for name, one in glances.items() if len(one.seen.ids) >= LEAST_CORNERS}
        if not seeing:
            return {}, None, "no camera sees the board"
        if not self._by_hand and not self._moving & set(seeing):
            return {}, None, f"{' or '.join(sorted(self._moving))} must see the board, and does not"
        share = STILL_SHARE_HAND if self._by_hand else STILL_SHARE
        still = {name: one for name, one in seeing.items() if _shift(before.get(name), one) < share * one.width}
        if not still or (not self._by_hand and not self._moving & set(still)):
            return {}, None, "hold still" if self._by_hand else "board or camera moves"
        if self._by_hand:
            fresh = {name: one for name, one in still.items() if self._is_new(name, one)}
            return (fresh, None, "") if fresh else ({}, None, "as before: move and tilt the board")
        joints, reason = self._still_joints(min(one.stamp_ns for one in still.values()))
        if joints is None:
            return {}, None, reason
        away = [float(np.max(np.abs(joints - other)[self._arm])) for other in self._taken_joints]
        if away and min(away) < NEW_RAD:
            return {}, None, "as before: move the arm on, and turn the gripper"
        return still, joints, ""

    def took(self, glances: Mapping[str, Glance], joints: Array | None) -> None:
        """These were taken."""
        if joints is not None:
            self._taken_joints.append(joints)
        for name, one in glances.items():
            self._taken.setdefault(name, []).append(one.seen)

    def _is_new(self, name: str, glance: Glance) -> bool:
        return all(_apart(other, glance.seen) > NEW_SHARE * glance.width for other in self._taken.get(name, []))

    def _still_joints(self, stamp_ns: int) -> tuple[Array | None, str]:
        """The mean of the readings about the time of a picture, or why there is none."""
        if not self._joints:
            return None, "nothing on joint_states: is the robot's driver running?"
        newest = self._joints[-1][0]
        if abs(newest - stamp_ns) > _TOGETHER_NS and newest < stamp_ns:
            return None, f"the newest joint state is {(stamp_ns - newest) * 1e-9:.1f} s older than the picture"
        if stamp_ns < self._joints[0][0]:
            return None, "waiting for joint states of the picture's time"
        about = [joints for stamp, joints in self._joints if stamp > stamp_ns - STILL_S * 1e9]
        if len(about) < 3:
            return None, "too few joint states"
        spread = np.ptp(np.array(about), axis=0)[self._arm]
        return (None, "the arm moves") if np.max(spread) > STILL_RAD else (np.mean(about, axis=0), "")


def _shift(before: Glance | None, now: Glance) -> float:
    if before is None or not 0 < now.stamp_ns - before.stamp_ns < _BEFORE_NS:
        return float("inf")
    return _apart(before.seen, now.seen)


def _apart(one: Seen, other: Seen) -> float:
    """How far (median) the corners that both show are apart, pixels; infinite where they share too few."""
    _, a, b = np.intersect1d(one.ids, other.ids, return_indices=True)
    if len(a) < 4:
        return float("inf")
    return float(np.median(np.linalg.norm(one.pixels[a] - other.pixels[b], axis=1)))
