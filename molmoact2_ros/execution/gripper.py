"""Grippers: a decision is never averaged, and never taken back and forth.

A gripper is spliced by a rule of its own (the newest chunk counts, at once). Where it can only be open or closed
(DROID), its rows are turned into that decision with hysteresis. An action server gets a goal when the decision, or a
continuous target, has changed enough, never one a tick.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RAISE_AT, LOWER_AT = 0.6, 0.4
"""Shares of the stroke at which a gripper that is at its lower end goes to the upper one, and back."""


class BinaryGrippers:
    """Turns the rows of grippers into their two ends. `lower` and `upper` are the joint's limits (n,), rad or m."""

    def __init__(self, joints: Sequence[int], lower: Array, upper: Array) -> None:
        self._joints = list(joints)
        self._lower, self._upper = np.asarray(lower)[self._joints], np.asarray(upper)[self._joints]

    def decide(self, rows: Array, present: Array) -> Array:
        """A copy of `rows` (h, dof) with decided grippers; `present` (dof,) is what they are told at the moment."""
        out = rows.copy()
        raised = self._share(np.asarray(present)[self._joints]) > 0.5
        for row, shares in zip(out, self._share(rows[:, self._joints]), strict=True):
            raised = np.where(raised, shares > LOWER_AT, shares >= RAISE_AT)
            row[self._joints] = np.where(raised, self._upper, self._lower)
        return out

    def _share(self, positions: Array) -> Array:
        return np.asarray((positions - self._lower) / (self._upper - self._lower))


class GripperGoals:
    """Decides when the target of one gripper is worth a new goal.

    Args:
        lower, upper: ends of the stroke, rad or m.
        step: share of the stroke by which a target must have moved; a target at an end counts from a fifth of it.
        interval_s: least time between two goals.
        binary: goals are the two ends only, with hysteresis.
    """

    def __init__(
        self, lower: float, upper: float, step: float = 0.1, interval_s: float = 0.2, binary: bool = False
    ) -> None:
        if not (lower < upper and step > 0.0 and interval_s >= 0.0):
            raise ValueError(f"gripper goals need lower < upper, a step and an interval; got {lower}, {upper}, {step}")
        self._lower, self._stroke, self._step, self._binary = lower, upper - lower, step, binary
        self._interval_ns = round(interval_s * 1e9)
        self._goal: float | None = None
        self._since_ns = 0

    def begin(self, position: float) -> None:
        """The gripper is at `position`, rad or m, and stays there until a target asks for something else."""
        self._goal = min(max((position - self._lower) / self._stroke, 0.0), 1.0)
        if self._binary:
            self._goal = float(self._goal > 0.5)

    def forget(self) -> None:
        """The next target is a new goal: the last one was refused, or nobody knows where the gripper is."""
        self._goal = None

    def update(self, target: float, now_ns: int) -> float | None:
        """The goal, rad or m, to be sent now; None while the last one stands."""
        share = min(max((target - self._lower) / self._stroke, 0.0), 1.0)
        if self._binary:
            raised = share >= RAISE_AT if (self._goal or 0.0) < 0.5 else share > LOWER_AT
            share = float(raised if self._goal is not None else share > 0.5)
        if self._goal is not None:
            moved = abs(share - self._goal)
            enough = 0.2 * self._step if share in (0.0, 1.0) else self._step
            if moved < enough or now_ns - self._since_ns < self._interval_ns:
                return None
        self._goal, self._since_ns = share, now_ns
        return self._lower + share * self._stroke
