"""A leader's readings as a motion that an arm can be asked for: smooth, and at rest when no more of them come.

Readings come in steps, unevenly and late. Between two of them the leader is taken to go on as it went, and after
`GOES_ON_S` without a reading to come to rest. The arm's difference to that dies out like that of a critically damped
system of third order, so position, velocity and acceleration go on without a step at every reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.execution.motion import Motion

Array = NDArray[np.float64]

GOES_ON_S, FADES_S = 0.06, 0.15
"""How long a leader of which nothing is heard is taken to go on as it went, and how fast that then dies out."""
PACE = 20.0
"""How fast the difference to the leader dies out, 1/s: to a tenth within 0.27 s. The faster, the more of the arm's jerk
goes into the steps of the leader's encoders."""


class LeaderPath:
    """What moves the arm while a leader drives, beginning at rest at `start` (dof,) at `at_ns`. The `grippers` are
    asked to be where the leader's are: the limits alone shape their way."""

    def __init__(self, start: Array, at_ns: int, grippers: Sequence[int]) -> None:
        self._grippers = list(grippers)
        self._target, self._slope = start.copy(), np.zeros_like(start)
        self._read_ns = self._at_ns = at_ns
        self._fade: Array = np.zeros((3, len(start)))

    def aim(self, target: Array, slope: Array, read_ns: int, motion: Motion, at_ns: int) -> None:
        """The leader was at `target` (dof,) at `read_ns` and went at `slope` (dof,), rad/s; the arm is commanded to
        `motion` at `at_ns`."""
        self._target, self._slope, self._read_ns, self._at_ns = target.copy(), slope.copy(), read_ns, at_ns
        self._slope[self._grippers] = 0.0
        leader = self._leader(np.asarray((at_ns - read_ns) * 1e-9))
        p, v, a = (
            motion.position - leader.position,
            motion.velocity - leader.velocity,
            motion.acceleration - leader.acceleration,
        )
        self._fade = np.stack((p, v + PACE * p, 0.5 * a + PACE * v + 0.5 * PACE**2 * p))
        self._fade[:, self._grippers] = 0.0

    def finished(self, now_ns: int) -> bool:
        """Never: it rests when nothing comes, and whoever watches the leader ends it."""
        return False

    def sample(self, now_ns: int, after_s: Array | float = 0.0) -> Motion:
        """The wanted motion (..., dof) at `now_ns` + `after_s` (...)."""
        after = np.asarray(after_s, dtype=np.float64)
        leader = self._leader(np.asarray((now_ns - self._read_ns) * 1e-9 + after))
        t = np.maximum((now_ns - self._at_ns) * 1e-9 + after, 0.0)[..., None]
        c0, c1, c2 = self._fade
        dying, w = np.exp(-PACE * t), PACE
        value, rate, bend = c0 + t * (c1 + t * c2), c1 + 2.0 * t * c2, 2.0 * c2
        return Motion(
            leader.position + dying * value,
            leader.velocity + dying * (rate - w * value),
            leader.acceleration + dying * (bend - 2.0 * w * rate + w * w * value),
        )

    def _leader(self, since_s: Array) -> Motion:
        """Where the leader is (..., dof), as far as one can tell, `since_s` (...) after its reading."""
        t = np.maximum(since_s, 0.0)[..., None]
        left = np.exp(-np.maximum(t - GOES_ON_S, 0.0) / FADES_S)
        bend = self._slope * left / FADES_S
        gone = np.minimum(t, GOES_ON_S) + FADES_S * (1.0 - left)
        return Motion(self._target + self._slope * gone, self._slope * left, np.where(t > GOES_ON_S, -bend, 0.0))
