"""A camera of the simulated cell, read through shared memory."""

from __future__ import annotations

from molmoact2_ros.cameras.frame_link import FrameReader
from molmoact2_ros.cameras.source import CameraError, Frame


class SimulatedSource:
    """Reads the frame link `link` of the simulated cell; the stamps are the cell's.

    Raises:
        CameraError: the cell is not up (yet).
    """

    def __init__(self, link: str) -> None:
        try:
            self._reader: FrameReader | None = FrameReader(link)
        except FileNotFoundError:
            raise CameraError(f"no simulated camera {link!r}; is the sim node up, with the same link prefix?") from None

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame, or None after `timeout_s`."""
        if self._reader is None:
            return None
        found = self._reader.wait(timeout_s)
        return None if found is None else Frame(*found)

    def close(self) -> None:
        """Let go of the link."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
