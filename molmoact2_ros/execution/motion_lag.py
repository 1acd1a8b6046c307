"""How far the encoders lag behind the commands, from two recorded streams."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LONGEST_S = 0.5


def lag_s(command_times: Array, commands: Array, reading_times: Array, readings: Array, step_s: float = 0.001) -> float:
    """Return the delay, s, by which one joint's encoder follows its commands: the shift with the least square error.

    Args:
        command_times: when each command was sent, (n,), s, rising. commands: (n,), rad.
        reading_times: when each reading was taken, (m,), s, rising. readings: (m,), rad.
        step_s: resolution of the answer; delays up to `LONGEST_S` are tried.

    Raises:
        ValueError: the streams overlap by less than twice the longest delay, or the joint did not move.
    """
    inside = (reading_times >= command_times[0] + LONGEST_S) & (reading_times <= command_times[-1])
    times, values = reading_times[inside], readings[inside]
    if len(times) < 2 or times[-1] - times[0] < 2 * LONGEST_S:
        raise ValueError(f"commands and readings overlap by less than {2 * LONGEST_S} s")
    if np.ptp(commands) < 1e-3:
        raise ValueError("the joint was not moved")
    shifts = np.arange(0.0, LONGEST_S, step_s)
    errors = [np.mean((np.interp(times - shift, command_times, commands) - values) ** 2) for shift in shifts]
    return float(shifts[int(np.argmin(errors))])
