"""From a device's own clock to ROS time."""

from __future__ import annotations

from collections import deque

JUMP_NS = 100_000_000
"""The device's clock has started anew when an image's age would change by more than this from one to the next."""


class ClockMap:
    """Maps capture times of a device to ROS time by the quickest arrivals of the last `window` images.

    An image arrives some time after its capture, at the quickest almost at once; the smallest difference between
    arrival and device time is therefore the offset of the two clocks, and jitter of the arrival does not reach the
    stamps. The window lets the offset follow the drift of the clocks. The constant delay of the quickest image
    (readout and transfer, 10 to 30 ms) stays in the stamps.
    """

    def __init__(self, window: int = 300) -> None:
        self._offsets: deque[int] = deque(maxlen=window)

    def stamp_ns(self, device_ns: int, arrival_ns: int) -> int:
        """ROS time, ns, of an image captured at `device_ns` that arrived at `arrival_ns`."""
        offset = arrival_ns - device_ns
        if self._offsets and abs(offset - self._offsets[-1]) > JUMP_NS:
            self._offsets.clear()
        self._offsets.append(offset)
        return device_ns + min(self._offsets)
