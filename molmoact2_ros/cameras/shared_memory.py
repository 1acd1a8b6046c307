"""How much shared memory the middleware needs for the images of these cameras, and the profile that gives it.

An image that does not fit into the publisher's shared-memory segment of Fast DDS is lost, or cut into hundreds of UDP
packets of which one gets lost, and nobody is told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from molmoact2_ros.cameras.source import CameraSettings

PROFILE_VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"
"""Read once by a process, before it makes its first node; counts for what it publishes."""
IMAGES = 6
"""Images of a camera that are on their way at once: publishers keep five, and one is being written."""
SMALLEST = 16 * 2**20
_DEFAULT = 512 * 2**10
"""Of Fast DDS itself, without a profile."""
_SIZE = re.compile(r"<segment_size>\s*(\d+)\s*</segment_size>")


def segment_bytes(cameras: Iterable[CameraSettings]) -> int:
    """Bytes of shared memory that the process which publishes `cameras` needs, in whole MiB, at least 16."""
    total = sum(camera.width * camera.height * (7 if camera.depth else 3) * IMAGES for camera in cameras)
    return max(SMALLEST, -(-total // 2**20) * 2**20)


def profile_bytes(path: str) -> int:
    """Bytes of shared memory that the Fast DDS profile at `path` gives a participant; Fast DDS's own size without."""
    if not path:
        return _DEFAULT
    try:
        found = _SIZE.search(Path(path).read_text())
    except OSError:
        return _DEFAULT
    return int(found[1]) if found else _DEFAULT


def sized_profile(template: str, size: int) -> str:
    """The text of the profile `template` with a segment of `size` bytes.

    Raises:
        ValueError: the template says no size.
    """
    text, count = _SIZE.subn(f"<segment_size>{size}</segment_size>", template)
    if not count:
        raise ValueError("the Fast DDS profile has no <segment_size> to set")
    return text


def write_profile(template: Path, cameras: Iterable[CameraSettings], folder: Path) -> Path:
    """Write the profile for the images of `cameras` into `folder`; returns its path, for `PROFILE_VARIABLE`.

    Whoever starts a camera node calls this before and sets the variable in that process's environment.
    """
    size = segment_bytes(cameras)
    path = folder / f"fastdds_{size >> 20}_mb.xml"
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(sized_profile(template.read_text(), size))
    scratch.replace(path)  # two robots that start at once write the same
    return path


def shortage(cameras: Iterable[CameraSettings], profile: str, free_bytes: int) -> str:
    """Why images will be lost with the Fast DDS profile at `profile`; empty when they fit.

    `free_bytes` is what is left on /dev/shm.
    """
    needed, given = segment_bytes(cameras), profile_bytes(profile)
    if given < needed:
        which = f"{profile} gives {given / 2**20:.3g}" if profile else f"Fast DDS alone gives {given / 2**20:.3g}"
        return (
            f"images need {needed >> 20} MB of shared memory, {which} MB: some will be lost; set <segment_size> to "
            f"{needed} in the file that {PROFILE_VARIABLE} names"
        )
    if free_bytes < given:
        return (
            f"images need {needed >> 20} MB of shared memory, /dev/shm has {free_bytes >> 20} MB free; make it larger "
            "(docker: --shm-size or --ipc=host), or take smaller images"
        )
    return ""
