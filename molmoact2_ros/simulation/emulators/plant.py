"""What moves behind an emulated bus: the joints of a simulated cell, or a plain second-order system."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Plant(Protocol):
    """Joints that follow targets; all arrays have shape (dof,), rad or m, ROS order. Safe from any thread."""

    def joints(self) -> tuple[Array, Array]:
        """Present positions and velocities."""

    def drive(self, targets: Array) -> None:
        """Set the servos' targets."""


class SecondOrderPlant:
    """Every joint a critically damped servo: no bodies, no gravity, no collisions.

    Args:
        start: positions at the start, (dof,).
        natural_frequency: of the servos, rad/s.
        clock: time in s; the plant moves by itself as it passes.
    """

    def __init__(
        self, start: Array, natural_frequency: float = 40.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._position = np.array(start, dtype=np.float64)
        self._velocity = np.zeros_like(self._position)
        self._target = self._position.copy()
        self._w, self._clock = natural_frequency, clock
        self._at = clock()
        self._lock = threading.Lock()

    def joints(self) -> tuple[Array, Array]:
        """See `Plant`."""
        with self._lock:
            self._advance()
            return self._position.copy(), self._velocity.copy()

    def drive(self, targets: Array) -> None:
        """See `Plant`."""
        with self._lock:
            self._advance()
            self._target = np.array(targets, dtype=np.float64)

    def _advance(self) -> None:
        now = self._clock()
        t, self._at = now - self._at, now
        error = self._position - self._target
        drift = self._velocity + self._w * error
        decay = np.exp(-self._w * t)
        self._position = self._target + (error + drift * t) * decay
        self._velocity = (self._velocity - self._w * drift * t) * decay


class SharedPlant:
    """The joints of a cell that another thread runs: it reports them with `measured` and is driven through `command`.

    Args:
        start: positions until the first report, (dof,).
        command: sets the cell's targets.
    """

    def __init__(self, start: Array, command: Callable[[Array], None]) -> None:
        self._joints: tuple[Array, Array] = np.array(start, dtype=np.float64), np.zeros(len(start))
        self._command = command

    def measured(self, positions: Array, velocities: Array) -> None:
        """Take the cell's present positions and velocities, each (dof,)."""
        self._joints = positions, velocities

    def joints(self) -> tuple[Array, Array]:
        """See `Plant`."""
        return self._joints

    def drive(self, targets: Array) -> None:
        """See `Plant`."""
        self._command(targets)
