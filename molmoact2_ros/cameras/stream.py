"""One camera, kept running: opened, read, watched, and opened again when it goes silent or breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from molmoact2_ros.cameras.health import BLACK, DOUBLED, CameraHealth, Limits, Report
from molmoact2_ros.cameras.source import BadImageError, CameraError, Clock, Frame, FrameSource, RgbImage

_READ_S = 0.1
"""How long one read waits; bounds the time that `close` takes."""


def in_words(error: Exception) -> str:
    """What an error says; drivers' exceptions are named too, since some carry no text."""
    return str(error) if isinstance(error, CameraError) else f"{type(error).__name__}: {error}"


class CameraStream:
    """Reads one camera in a thread of its own and hands every admitted frame to `publish`.

    Invariant: the thread lasts until `close`, whatever the camera's driver raises: a camera that cannot be opened,
    read or closed is not open, says why, and is tried again.

    Args:
        name: the camera's name, for messages.
        opener: opens the camera; raises while it is not there.
        limits: what is expected of it.
        publish: called in the stream's thread with each good frame.
        clock: time in ns on the clock of the stamps.
        retry_s: time between attempts to open, and the silence after which an open camera is opened anew.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], FrameSource],
        limits: Limits,
        publish: Callable[[Frame], None],
        clock: Clock = time.time_ns,
        retry_s: float = 1.0,
    ) -> None:
        self.name = name
        self._opener = opener
        self._publish = publish
        self._clock = clock
        self._retry_s = retry_s
        self._health = CameraHealth(name, limits)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._error = "not opened yet"
        self.openings = 0
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                source = self._opener()
            except Exception as error:  # drivers raise what they like
                self._error = in_words(error)
                self._ended.wait(self._retry_s)
                continue
            self._error = ""
            self.openings += 1
            try:
                self._read(source)
            except Exception as error:
                self._error = f"reading failed: {in_words(error)}"
            try:
                source.close()
            except Exception as error:
                self._error = f"closing failed: {in_words(error)}"
            if self._error:  # shown until the camera is open again
                self._ended.wait(self._retry_s)

    def _read(self, source: FrameSource) -> None:
        """Read until the source goes silent or the stream ends."""
        heard = time.monotonic()
        while not self._ended.is_set():
            try:
                frame = source.read(_READ_S)
            except BadImageError as error:
                with self._lock:
                    self._health.refuse(str(error))
                frame = None
            if frame is not None:
                with self._lock:
                    refused = self._health.admit(frame, self._clock())
                    # A dark room or a source that is named twice does not go away with opening the camera anew.
                    alive = not refused or self._health.content in (BLACK, DOUBLED)
                if not refused:
                    self._publish(frame)
                if alive:
                    heard = time.monotonic()
            if time.monotonic() - heard > self._retry_s:
                return  # also for instance the link of a cell that was killed: its last frame stays there for ever

    def report(self) -> Report:
        """Return the camera's state now. Safe from any thread."""
        with self._lock:
            return self._health.report(self._clock(), self._error)

    def sample(self) -> RgbImage:
        """A small version of the last image. Safe from any thread."""
        with self._lock:
            return self._health.sample

    def doubled_by(self, others: str) -> None:
        """See `CameraHealth`. Safe from any thread."""
        with self._lock:
            self._health.doubled_by(others)

    def close(self) -> None:
        """End the thread and let go of the camera."""
        self._ended.set()
        self._thread.join(timeout=5.0)
