"""A trajectory as a motion in time: the way to its beginning, the trajectory, and how far an arm was from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]
APPROACH_SPEED = 0.2
"""Share of a joint's velocity limit that the way to the beginning reaches."""
SHORTEST_APPROACH_S = 0.5
LAGS_S = np.arange(0.0, 0.41, 0.01)


@dataclass(frozen=True)
class Playback:
    """See the module. Times are s after the start.

    Attributes:
        start: where the arm is (dof,), rad or m. rows: the trajectory (n, dof). rate_hz: of the rows.
    """

    robot: Embodiment
    start: Array
    rows: Array
    rate_hz: float

    @property
    def approach_s(self) -> float:
        """How long the way from `start` to the first row takes."""
        needed = np.abs(self.rows[0] - self.start) / (APPROACH_SPEED * self.robot.limits.velocity)
        return max(SHORTEST_APPROACH_S, 1.875 * float(needed.max()))  # the peak of a minimum-jerk motion

    @property
    def end_s(self) -> float:
        """When the last row is due."""
        return self.approach_s + (len(self.rows) - 1) / self.rate_hz

    def at(self, times_s: Array) -> Array:
        """Positions (n, dof) at `times_s` (n,); before the start and after the end those there."""
        u = np.clip(times_s / self.approach_s, 0.0, 1.0)[:, None]
        near = self.start + (self.rows[0] - self.start) * (10.0 * u**3 - 15.0 * u**4 + 6.0 * u**5)
        place = np.clip((times_s - self.approach_s) * self.rate_hz, 0.0, len(self.rows) - 1)
        i = np.minimum(place.astype(int), len(self.rows) - 2)
        share = (place - i)[:, None]
        far = (1.0 - share) * self.rows[i] + share * self.rows[i + 1]
        return np.where(times_s[:, None] < self.approach_s, near, far)

    def chunk(self, now_s: float) -> Array:
        """The rows (horizon, dof) of an action chunk that was observed at `now_s`."""
        return self.at(now_s + (np.arange(self.robot.horizon) + 1) / self.robot.rate_hz)


@dataclass(frozen=True)
class Followed:
    """How an arm followed a trajectory, by joint, rad or m.

    Attributes:
        rms, largest: of the distance from where it was to be at the time. lag_s: by which the arm is behind, and
        rms_lagged: the distance that is left when that is taken off. readings: how many there are.
    """

    rms: list[float]
    largest: list[float]
    lag_s: float
    rms_lagged: list[float]
    readings: int


def followed(playback: Playback, times_s: Array, measured: Array) -> Followed:
    """Hold readings (n, dof) at `times_s` (n,) against the trajectory; those on the way to it do not count.

    Raises:
        ValueError: no reading is from its time.
    """
    inside = (times_s >= playback.approach_s) & (times_s <= playback.end_s)
    if not inside.any():
        raise ValueError("no joint state came while the trajectory was played")
    times_s, measured = times_s[inside], measured[inside]

    def distance(lag_s: float) -> Array:
        return np.abs(measured - playback.at(times_s - lag_s))

    def rms(errors: Array) -> list[float]:
        return [float(v) for v in np.sqrt((errors**2).mean(0))]

    arms = [j for j in range(playback.robot.dof) if j not in playback.robot.gripper_indices]
    lag = min(map(float, LAGS_S), key=lambda lag_s: float((distance(lag_s)[:, arms] ** 2).mean()))
    now = distance(0.0)
    return Followed(rms(now), [float(v) for v in now.max(0)], lag, rms(distance(lag)), len(times_s))
