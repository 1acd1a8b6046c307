"""What figures were measured on, and the time that a hypervisor gave to other machines meanwhile."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from molmoact2_ros import __version__

_PACKAGES = ("ros-rclpy", "ros-fastrtps", "torch", "lerobot", "mujoco", "numpy")


class StolenTime:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._start = psutil.cpu_times()

    def share(self) -> float:
        """Of all processor time since then, 0 .. 1; 0 where no hypervisor tells (on bare metal nothing is stolen)."""
        now = psutil.cpu_times()
        spent = sum(now) - sum(self._start)
        stolen = getattr(now, "steal", 0.0) - getattr(self._start, "steal", 0.0)
        return max(stolen, 0.0) / spent if spent > 0.0 else 0.0


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    cpu = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return {
        "Machine": f"{cpu}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()} {platform.release()}",
        "Versions": f"molmoact2_ros {__version__}, Python {platform.python_version()}, " + ", ".join(found),
    }
