"""USB cameras and video files through OpenCV.

A driver queues images: whoever reads late gets old ones. A thread therefore takes every image as it comes, stamps
it at once and keeps only the newest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from molmoact2_ros.cameras.source import CameraError, CameraSettings, Clock, Frame, RgbImage


class NewestFrame:
    """Takes images from `grab` in a thread of its own and hands out the newest only.

    Args:
        grab: blocks until the next image, (height, width, 3) BGR as OpenCV gives it; None when there are no more.
        clock: time in ns, read right after `grab` returns.
    """

    def __init__(self, grab: Callable[[], Any | None], clock: Clock) -> None:
        self._grab = grab
        self._clock = clock
        self._fresh = threading.Condition()
        self._newest: tuple[Any, int] | None = None
        self._ended = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while not self._ended:
            picture = self._grab()
            stamp = self._clock()
            with self._fresh:
                if picture is None:
                    self._ended = True
                else:
                    self.dropped += self._newest is not None
                    self._newest = (picture, stamp)
                self._fresh.notify_all()

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image as RGB, or None when none came within `timeout_s` or the device has ended."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            taken, self._newest = self._newest, None
        if taken is None:
            return None
        bgr, stamp = taken
        rgb: RgbImage = bgr[..., ::-1].copy()
        return Frame(rgb, stamp)

    def close(self) -> None:
        """Stop the thread. A grab that hangs in the driver is left behind after 2 s."""
        self._ended = True
        self._thread.join(timeout=2.0)

    @property
    def closed(self) -> bool:
        """True once the thread has ended; only then the device may be released."""
        return not self._thread.is_alive()


class _OpenCvSource:
    """Shared by devices and files: an open capture and the thread that empties it."""

    def __init__(self, capture: Any, grab: Callable[[], Any | None], clock: Clock) -> None:
        self._capture = capture
        self._newest = NewestFrame(grab, clock)

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame, or None after `timeout_s`."""
        return self._newest.read(timeout_s)

    def close(self) -> None:
        """Release the device."""
        self._newest.close()
        if self._newest.closed:  # releasing under a running grab crashes OpenCV
            self._capture.release()


class V4l2Source(_OpenCvSource):
    """A camera under `/dev`, best named by its place (`/dev/v4l/by-path/...`), since numbers change between boots.

    Exposure and white balance are fixed where the settings say so: images that change by themselves confuse a policy.

    Raises:
        CameraError: no such device, no right to open it, or it gives another size than asked for.
    """

    def __init__(self, device: str, settings: CameraSettings, clock: Clock = time.time_ns) -> None:
        width, height = settings.width, settings.height
        path = Path(device)
        if not path.exists():
            folder = Path("/dev/v4l/by-path")
            known = ", ".join(sorted(map(str, folder.iterdir()))) if folder.is_dir() else "none"
            raise CameraError(f"no camera at {device}; is the cable in? cameras of this machine: {known}")
        if not os.access(path, os.R_OK | os.W_OK):
            raise CameraError(f"no right to open {device}; add yourself to the group 'video' and log in again")
        import cv2

        capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraError(f"{device} cannot be opened as a camera; is another program using it?")
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        capture.set(cv2.CAP_PROP_FPS, settings.rate_hz)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        fix_exposure(capture, device, settings)
        got = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        if got != (width, height):
            capture.release()
            raise CameraError(f"{device} gives {got[0]}x{got[1]}, asked for {width}x{height}; set a size that it has")

        def grab() -> Any | None:
            ok, picture = capture.read()
            return picture if ok else None

        super().__init__(capture, grab, clock)


def fix_exposure(capture: Any, device: str, settings: CameraSettings) -> None:
    """Fix exposure and white balance of an open capture, or leave them to the camera.

    Raises:
        CameraError: the camera does not take a value.
    """
    import cv2

    # V4L2 counts modes: 1 is manual, 3 lets the camera choose the exposure at a fixed aperture.
    capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, 1 if settings.exposure > 0.0 else 3)
    capture.set(cv2.CAP_PROP_AUTO_WB, 0 if settings.white_balance > 0.0 else 1)
    asked = {"exposure": (cv2.CAP_PROP_EXPOSURE, settings.exposure)}
    asked["white balance"] = (cv2.CAP_PROP_WB_TEMPERATURE, settings.white_balance)
    for name, (key, value) in asked.items():
        if value > 0.0 and not (capture.set(key, value) and abs(capture.get(key) - value) <= 0.1 * value):
            capture.release()
            raise CameraError(
                f"{device} does not take {name} {value:g} (it has {capture.get(key):g}); its range: "
                f"v4l2-ctl -d {device} --list-ctrls"
            )


class FileSource(_OpenCvSource):
    """A video file, played at `rate_hz` from the start over and over, as a camera would give it.

    Raises:
        CameraError: no such file, or no image can be decoded from it.
    """

    def __init__(
        self,
        path: str,
        rate_hz: float,
        clock: Clock = time.time_ns,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if not Path(path).is_file():
            raise CameraError(f"no video file {path}")
        import cv2

        capture = cv2.VideoCapture(path)
        if not capture.read()[0]:
            capture.release()
            raise CameraError(f"{path} has no image that can be decoded; is it a video?")
        capture.set(cv2.CAP_PROP_POS_FRAMES, 0)

        def grab() -> Any | None:
            wait(1.0 / rate_hz)
            ok, picture = capture.read()
            if not ok:
                capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
                ok, picture = capture.read()
            return picture if ok else None

        super().__init__(capture, grab, clock)
