"""From a device's own clock to this machine's."""

from __future__ import annotations

from collections import deque

STALL_NS = 100_000_000
"""An image that comes later than this, beside the quickest ones, was held up on its way."""
STALLED_IMAGES = 30
"""So many held-up images in a row are no stall: the device's clock has lost time."""


class ClockMap:
    """Maps capture times of a device to this machine's clock by the quickest arrivals of the last `window` images.

    An image arrives some time after its capture, at the quickest almost at once; the smallest difference between
    arrival and device time is therefore the offset of the two clocks, and neither jitter of the arrival nor a stalled
    bus reaches the stamps. The window lets the offset follow the drift of the clocks. The constant delay of the
    quickest image (readout and transfer, 10 to 30 ms) stays in the stamps. Arrivals are best taken on a steady clock:
    a clock that is set looks like a stall.
    """

    def __init__(self, window: int = 300) -> None:
        self._offsets: deque[int] = deque(maxlen=window)
        self._device_ns = 0

    def stamp_ns(self, device_ns: int, arrival_ns: int) -> int:
        """Time on the arrivals' clock, ns, of an image captured at `device_ns` that arrived at `arrival_ns`."""
        offset = arrival_ns - device_ns
        if device_ns < self._device_ns:
            self._offsets.clear()  # the device counts anew
        self._device_ns = device_ns
        self._offsets.append(offset)
        if len(self._offsets) > STALLED_IMAGES:
            late = list(self._offsets)[-STALLED_IMAGES:]
            if min(late) - min(self._offsets) > STALL_NS:
                self._offsets = deque(late, self._offsets.maxlen)
        return device_ns + min(self._offsets)
