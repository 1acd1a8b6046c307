"""Time that a hypervisor gave to other machines: gaps of the command loop that nothing on this machine explains."""

from __future__ import annotations

import psutil


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
