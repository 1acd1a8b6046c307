"""What an arm at rest is to be told when somebody takes over: its last target, not where it sags to.

A servo that carries a load rests a little beside its target. Whoever holds an arm where it is measured makes that place
the new target, and the arm sags again, by as much, every time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]

SAME_RAD = 1e-3
"""Targets that differ by less are one target."""
SETTLED_S = 0.4
"""A target that has been the same for so long has been reached as well as it will be."""
SLACK_RAD = 0.015
"""How much further from the target than before a joint may be and still count as there."""
MOST_RAD = 0.15
"""An arm joint that is further from its target does not sag: something is in its way."""


class SteadyTarget:
    """Knows what error each joint had when its present target was reached; positions (dof,), times in ns.

    A gripper that holds an object counts, too: it never arrives, and letting go of its target would drop the object.
    """

    def __init__(self, robot: Embodiment) -> None:
        self._most = np.full(robot.dof, MOST_RAD)
        self._most[list(robot.gripper_indices)] = np.inf
        self._target: Array | None = None
        self._since_ns: NDArray[np.int64] = np.zeros(robot.dof, np.int64)
        self._error = np.full(robot.dof, np.nan)

    def forget(self) -> None:
        """The arm was let go, or is another one: there is no target."""
        self._target = None
        self._error[:] = np.nan

    def note(self, target: Array, measured: Array | None, now_ns: int) -> None:
        """As `update`; without a fresh reading nothing is known of the arm any more."""
        if measured is None:
            self.forget()
        else:
            self.update(target, measured, now_ns)

    def update(self, target: Array, measured: Array, now_ns: int) -> None:
        """The arm is told to be at `target` and is at `measured`."""
        if self._target is None:
            moved: NDArray[np.bool_] = np.ones(len(target), dtype=bool)
            self._target = np.array(target)
        else:
            moved = np.abs(target - self._target) > SAME_RAD
            self._target[moved] = target[moved]
        self._since_ns[moved] = now_ns
        self._error[moved] = np.nan
        settled = (now_ns - self._since_ns) * 1e-9 >= SETTLED_S
        self._error[settled] = np.abs(measured - self._target)[settled]

    def resting_target(self, measured: Array) -> Array:
        """Where to hold an arm that is at `measured`: joints that rest beside their target as before keep it."""
        if self._target is None:
            return measured.copy()
        allowed = np.minimum(self._error, self._most) + SLACK_RAD  # NaN, and so nowhere, where nothing has settled
        return np.where(np.abs(measured - self._target) <= allowed, self._target, measured)
