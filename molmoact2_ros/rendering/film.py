"""A film in real time: pictures in at any pace, an MP4 that every browser plays out."""

from __future__ import annotations

import queue
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]

_WAITING = 20
"""Pictures that may wait for the encoder; one that does not fit is left out and the one before it shown for longer."""
_END_S = 20.0


class FilmWriter:
    """Encodes H.264 (yuv420p) with ffmpeg in a process of its own, fed by a thread.

    Invariant: the film runs at the speed of the clock: a picture is shown until the time of the next one. `add` never
    waits. ffmpeg has a session of its own, so that Ctrl-C does not reach it, and finishes the file when its input ends:
    the film can be played even if this process is killed.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int = 15, quality: int = 27) -> None:
        """Open `path` for pictures of (height, width, 3), both even. `quality` is x264's rate factor; lower is better.

        Raises:
            ValueError: a side is odd.
            OSError: ffmpeg cannot be started or the directory cannot be made.
        """
        if width % 2 or height % 2:
            raise ValueError(f"a yuv420p film needs even sides, got {width} x {height}")
        from imageio_ffmpeg import get_ffmpeg_exe

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dropped = 0
        self.frames = 0
        self.error: str | None = None
        self._shape = (height, width, 3)
        self._fps = fps
        self._begin_s: float | None = None
        self._queue: queue.Queue[tuple[RgbImage, float] | None] = queue.Queue()
        self._closed = False
        source = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        # One thread and the cheapest preset: the policy has the better use for the cores.
        codec = [
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-crf",
            str(quality),
            "-threads",
            "1",
            "-pix_fmt",
            "yuv420p",
        ]
        colours = ["-colorspace", "smpte170m", "-color_range", "tv", "-movflags", "+faststart"]
        self._ffmpeg = subprocess.Popen(
            [get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *source, *codec, *colours, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._run, name="film", daemon=True)
        self._thread.start()

    def add(self, picture: RgbImage, now_s: float) -> None:
        """Show `picture` (height, width, 3), RGB, from `now_s` on; it must not be written to afterwards."""
        if picture.shape != self._shape or picture.dtype != np.uint8:
            raise ValueError(f"a film picture must be uint8 {self._shape}, got {picture.dtype} {picture.shape}")
        if self._closed or self.error is not None:
            return
        if self._queue.qsize() >= _WAITING:
            self.dropped += 1
            return
        self._queue.put((picture, now_s))

    def close(self) -> bool:
        """Finish the file; safe to call twice. False when it could not be finished; `error` says why."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join(_END_S)
            if self._thread.is_alive():
                self.error = f"the encoder did not finish {self.path} within {_END_S:.0f} s"
                self._ffmpeg.kill()
        return self.error is None

    def _run(self) -> None:
        stdin = self._ffmpeg.stdin
        assert stdin is not None and self._ffmpeg.stderr is not None
        shown: bytes | None = None
        try:
            while (item := self._queue.get()) is not None:
                picture, now_s = item
                if self._begin_s is None:
                    self._begin_s = now_s
                due = int((now_s - self._begin_s) * self._fps)
                while shown is not None and self.frames < due:
                    stdin.write(shown)
                    self.frames += 1
                shown = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).tobytes()
            if shown is not None:
                stdin.write(shown)
                self.frames += 1
            stdin.close()
        except OSError as failure:
            self.error = f"ffmpeg stopped taking pictures for {self.path}: {failure}"
        words = self._ffmpeg.stderr.read().decode(errors="replace").strip()
        status = self._ffmpeg.wait()
        if not self.frames and self.error is None:
            self.path.unlink(missing_ok=True)  # a film without a picture cannot be played
        elif status != 0:
            self.error = f"ffmpeg could not write {self.path}: {words[-500:] or 'no reason given'}"


def write_still(picture: RgbImage, path: Path) -> None:
    """Write `picture` (h, w, 3), RGB, as PNG.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {path}; the name must end with .png")
