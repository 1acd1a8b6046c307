"""A bounded ramp to a pose, on a straight line in joint space; the grippers stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import JointLimits
from molmoact2_ros.execution.motion import Motion

Array = NDArray[np.float64]

SHARE = 0.5
"""Share of the acceleration and jerk limits that a ramp needs at most."""
REACHED = 1e-5
"""How near is there, rad."""
WAY_SAMPLES = 60
PATIENCE_S = 2.0
"""After a late tick the limits need a while to catch up with the ramp; no longer than this."""


class Ramp:
    """A quintic from rest at `start` to rest at `goal`, each (dof,), begun at `at_ns`.

    `speed`: share of the velocity limits that it reaches at most.
    """

    def __init__(
        self, start: Array, goal: Array, limits: JointLimits, grippers: Sequence[int], speed: float, at_ns: int
    ) -> None:
        self._start, self._way = start.copy(), goal - start
        self._way[list(grippers)] = 0.0
        self._moving = np.array([j for j in range(len(start)) if j not in grippers])
        self._at_ns = at_ns
        way = np.abs(self._way)
        # The peaks of the quintic 10 x^3 - 15 x^4 + 6 x^5: 1.875, 5.774 and 60.
        self.duration_s = float(
            max(
                (1.875 * way / (speed * limits.velocity)).max(),
                np.sqrt(5.774 * way / (SHARE * limits.acceleration)).max(),
                np.cbrt(60.0 * way / (SHARE * limits.jerk)).max(),
                1e-3,
            )
        )

    def way(self) -> Array:
        """Positions (n, dof) along it."""
        times: Array = np.linspace(0.0, self.duration_s, WAY_SAMPLES, dtype=np.float64)
        return self.sample(self._at_ns, times).position

    def finished(self, now_ns: int) -> bool:
        """True when the pose should have been reached long ago."""
        return (now_ns - self._at_ns) * 1e-9 >= self.duration_s + PATIENCE_S

    def reached(self, motion: Motion) -> bool:
        """True when `motion` (dof,) rests at the pose; grippers do not count."""
        arm = self._moving
        still = not (motion.velocity[arm].any() or motion.acceleration[arm].any())
        return still and bool(np.abs(motion.position - self._start - self._way)[arm].max() <= REACHED)

    def sample(self, now_ns: int, after_s: Array | float = 0.0) -> Motion:
        """The motion (..., dof) at `now_ns` + `after_s` (...)."""
        t = (now_ns - self._at_ns) * 1e-9 + np.asarray(after_s, dtype=np.float64)
        x = np.clip(t / self.duration_s, 0.0, 1.0)[..., None]
        d = self.duration_s
        return Motion(
            self._start + self._way * x**3 * (10.0 + x * (6.0 * x - 15.0)),
            self._way * 30.0 * x**2 * (1.0 - x) ** 2 / d,
            self._way * 60.0 * x * (1.0 - x) * (1.0 - 2.0 * x) / d**2,
        )
