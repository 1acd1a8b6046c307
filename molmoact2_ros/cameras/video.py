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

OLDEST_NS = 10_000_000_000
"""A driver's stamp further back than this, or in the future, is of some other clock than the steady one."""


class NewestFrame:
    """Takes images from `grab` in a thread of its own and hands out the newest only.

    Args:
        grab: blocks until the next image, (height, width, 3) BGR as OpenCV gives it; None when there are no more.
        clock: when the image that `grab` has just returned was captured, ns; called right after it returns.
    """

    def __init__(self, grab: Callable[[], Any | None], clock: Clock) -> None:
        self._grab = grab
        self._clock = clock
        self._fresh = threading.Condition()
        self._newest: tuple[Any, int] | None = None
        self._ended = False
        self._error = ""
        self.dropped = 0
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while not self._ended:
            try:
                picture = self._grab()
                stamp = self._clock()
            except Exception as error:  # told by `read`; a thread that ends in silence tells nobody
                self._error = f"{type(error).__name__}: {error}"
                picture = None
            with self._fresh:
                if picture is None:
                    self._ended = True
                else:
                    self.dropped += self._newest is not None
                    self._newest = (picture, stamp)
                self._fresh.notify_all()

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest image as RGB, or None when none came within `timeout_s` or the device has ended.

        Raises:
            CameraError: taking an image failed.
        """
        with self._fresh:
            self._fresh.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            taken, self._newest = self._newest, None
        if taken is None:
            if self._error:
                raise CameraError(self._error)
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


class V4l2Capture:
    """An open V4L2 device: images, and when the driver says they were captured.

    The driver stamps a buffer when it is filled, on the steady clock. Where it gives no such stamp, an image is
    stamped when it arrives, before it is decoded, so that a stall of the bus then makes it look younger than it is.
    """

    def __init__(self, capture: Any, clock: Clock, steady: Clock = time.monotonic_ns) -> None:
        self._capture, self._clock, self._steady = capture, clock, steady
        self._captured_ns = 0

    def grab(self) -> Any | None:
        """The next image, BGR; None when the device gives none."""
        import cv2

        if not self._capture.grab():
            return None
        now, steady = self._clock(), self._steady()
        filled_ns = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e6)
        waited = steady - filled_ns
        self._captured_ns = now - (waited if filled_ns > 0 and 0 <= waited < OLDEST_NS else 0)
        ok, picture = self._capture.retrieve()
        return picture if ok else None

    def captured_ns(self) -> int:
        """ROS time, ns, of the last image's capture."""
        return self._captured_ns


class _OpenCvSource:
    """Shared by devices and files: the thread that takes images, and what is released after it."""

    def __init__(self, release: Callable[[], None], grab: Callable[[], Any | None], clock: Clock) -> None:
        self._release = release
        self._newest = NewestFrame(grab, clock)

    def read(self, timeout_s: float) -> Frame | None:
        """Return the newest frame, or None after `timeout_s`."""
        return self._newest.read(timeout_s)

    def close(self) -> None:
        """Release the device."""
        self._newest.close()
        if self._newest.closed:  # releasing under a running grab crashes OpenCV
            self._release()


class V4l2Source(_OpenCvSource):
    """A camera under `/dev`, best named by its place (`/dev/v4l/by-path/...`), since numbers change between boots.

    Exposure and white balance are fixed where the settings say so: images that change by themselves confuse a policy.

    Raises:
        CameraError: no such device, no right to open it, or it gives another size than asked for.
    """

    def __init__(self, device: str, settings: CameraSettings, clock: Clock = time.time_ns) -> None:
        width, height = settings.width, settings.height
        path = Path(device)
        try:
            there = path.exists()
        except OSError as error:
            raise CameraError(
                f"{device} cannot be looked at: {error}; name the camera by its path under /dev"
            ) from None
        if not there:
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
        images = V4l2Capture(capture, clock)
        super().__init__(capture.release, images.grab, images.captured_ns)


def fix_exposure(capture: Any, device: str, settings: CameraSettings) -> None:
    """Fix exposure and white balance of an open capture, or leave them to the camera.

    Raises:
        CameraError: the camera does not take a value.
    """
    import cv2

    # V4L2 counts modes: 1 is manual, 3 lets the camera choose the exposure at a fixed aperture.
    capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, 1 if settings.exposure_us > 0.0 else 3)
    capture.set(cv2.CAP_PROP_AUTO_WB, 0 if settings.white_balance_k > 0.0 else 1)
    asked = (
        ("exposure", "us", cv2.CAP_PROP_EXPOSURE, settings.exposure_us, 100.0),  # V4L2 counts in 100 us
        ("white balance", "K", cv2.CAP_PROP_WB_TEMPERATURE, settings.white_balance_k, 1.0),
    )
    for name, unit, key, value, step in asked:
        if value > 0.0 and not (
            capture.set(key, value / step) and abs(capture.get(key) - value / step) <= max(0.5, 0.1 * value / step)
        ):
            has = capture.get(key) * step
            capture.release()
            raise CameraError(
                f"{device} does not take {name} {value:g} {unit} (it has {has:g}); its range: "
                f"v4l2-ctl -d {device} --list-ctrls"
            )


class _Playback:
    """A file that is played over and over. It is opened anew at its end: not every file that can be read can be
    rewound (still images, raw H.264, short transport streams)."""

    def __init__(self, path: str) -> None:
        import cv2

        self._open = lambda: cv2.VideoCapture(path)
        self._capture = self._open()
        ok, self._first = self._capture.read()
        if not ok:
            self._capture.release()
            raise CameraError(f"{path} has no image that can be decoded; is it a video or an image?")
        self._fresh, self._count, self._still = True, 0, False

    def next(self) -> Any | None:
        """The next image, BGR; after the last one the first."""
        if self._fresh or self._still:
            self._fresh, self._count = False, 1
            return self._first
        ok, picture = self._capture.read()
        if ok:
            self._count += 1
            return picture
        if self._count == 1:  # one image: nothing is gained by reading it again
            self._still = True
            return self._first
        self._capture.release()
        self._capture = self._open()
        ok, picture = self._capture.read()
        self._count = 1
        return picture if ok else None

    def close(self) -> None:
        self._capture.release()


class FileSource(_OpenCvSource):
    """A video file or a still image, played at `rate_hz` from the start over and over, as a camera would give it.

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
        try:
            there = Path(path).is_file()
        except OSError as error:
            raise CameraError(f"{path} cannot be looked at: {error}") from None
        if not there:
            raise CameraError(f"no video file {path}")
        if not os.access(path, os.R_OK):
            raise CameraError(f"no right to read {path}")
        playback = _Playback(path)

        def grab() -> Any | None:
            wait(1.0 / rate_hz)
            return playback.next()

        super().__init__(playback.close, grab, clock)
