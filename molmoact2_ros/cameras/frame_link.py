"""Camera frames from the simulated cell to the camera node through shared memory, as a capture card would give them.

A ring of slots, each with its own sequence number, written by one process and read by another. A reader always gets
the newest complete frame; a slow reader loses frames, it never delays the cell. The sequence number of a slot is odd
while it is being written, so that a reader can tell that it has read a torn frame and reads again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing import resource_tracker, shared_memory

import numpy as np
from numpy.typing import NDArray

_SLOTS = 4
_HEADER = np.dtype([("latest", "<i8"), ("height", "<i4"), ("width", "<i4")])
_SLOT = np.dtype([("sequence", "<i8"), ("stamp", "<i8")])
_POLL_S = 0.001

_Record = NDArray[np.void]


def _layout(height: int, width: int) -> tuple[int, int]:
    slot = _SLOT.itemsize + height * width * 3
    return slot, _HEADER.itemsize + _SLOTS * slot


class FrameWriter:
    """The cell's end of a link. Owns the shared memory and removes it on `close`."""

    def __init__(self, name: str, height: int, width: int) -> None:
        self._slot_size, size = _layout(height, width)
        self._shape = (height, width, 3)
        with suppress(FileNotFoundError):  # left behind by a killed run
            stale = shared_memory.SharedMemory(name=name)
            stale.close()
            stale.unlink()
        self._memory = shared_memory.SharedMemory(name=name, create=True, size=size)
        self._header: _Record = np.ndarray((), _HEADER, self._memory.buf)
        self._header["height"], self._header["width"] = height, width
        self._count = 0
        self._header["latest"] = -1

    def write(self, rgb: NDArray[np.uint8], stamp_ns: int) -> None:
        """Publish one frame (height, width, 3) captured at `stamp_ns`."""
        if rgb.shape != self._shape:
            raise ValueError(f"frame must have shape {self._shape}, got {rgb.shape}")
        index = self._count % _SLOTS
        offset = _HEADER.itemsize + index * self._slot_size
        slot: _Record = np.ndarray((), _SLOT, self._memory.buf, offset)
        pixels: NDArray[np.uint8] = np.ndarray(self._shape, np.uint8, self._memory.buf, offset + _SLOT.itemsize)
        slot["sequence"] = 2 * self._count + 1
        slot["stamp"] = stamp_ns
        pixels[...] = rgb
        slot["sequence"] = 2 * self._count + 2
        self._header["latest"] = self._count
        self._count += 1

    def close(self) -> None:
        """Remove the link."""
        self.forget()
        self._memory.unlink()

    def forget(self) -> None:
        """Let go of the link without removing it, for when another writer has taken it over."""
        del self._header
        self._memory.close()


class FrameReader:
    """The camera's end of a link.

    Raises:
        FileNotFoundError: nobody writes a link of this name (yet).
    """

    def __init__(self, name: str) -> None:
        self._memory = shared_memory.SharedMemory(name=name)
        # The writer owns the segment; without this, the reader's exit would remove it under the writer (bpo-38119).
        resource_tracker.unregister(f"/{name}", "shared_memory")
        header: _Record = np.ndarray((), _HEADER, self._memory.buf)
        self._shape = (int(header["height"]), int(header["width"]), 3)
        self._slot_size, _ = _layout(*self._shape[:2])
        self._seen = -1

    def wait(self, timeout_s: float) -> tuple[NDArray[np.uint8], int] | None:
        """Return a copy of the newest frame not yet returned and its capture stamp in ns, or None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._newest()
            if frame is not None:
                return frame
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)

    def _newest(self) -> tuple[NDArray[np.uint8], int] | None:
        latest = int(np.ndarray((), _HEADER, self._memory.buf)["latest"])
        if latest < 0 or latest == self._seen:
            return None
        offset = _HEADER.itemsize + (latest % _SLOTS) * self._slot_size
        slot: _Record = np.ndarray((), _SLOT, self._memory.buf, offset)
        before = int(slot["sequence"])
        if before != 2 * latest + 2:
            return None
        stamp = int(slot["stamp"])
        rgb: NDArray[np.uint8] = np.ndarray(self._shape, np.uint8, self._memory.buf, offset + _SLOT.itemsize).copy()
        if int(slot["sequence"]) != before:
            return None
        self._seen = latest
        return rgb, stamp

    def close(self) -> None:
        """Let go of the link; the writer removes it."""
        self._memory.close()
