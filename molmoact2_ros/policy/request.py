"""When the next chunk is asked for. Times are handed in; nothing is counted but time."""

from __future__ import annotations

from dataclasses import dataclass

REQUESTS = ("asap", "remaining", "rate")
"""As fast as the model allows; when so much of the last chunk is left; so many times a second."""


@dataclass(frozen=True)
class RequestOptions:
    """When to ask.

    Attributes:
        policy: one of `REQUESTS`.
        remaining: "remaining": ask when this share of the last chunk's time is left, 0 to 1.
        rate_hz: "rate": chunks a second, Hz.
    """

    policy: str = "asap"
    remaining: float = 0.5
    rate_hz: float = 5.0

    def __post_init__(self) -> None:
        if self.policy not in REQUESTS:
            raise ValueError(f"unknown request policy {self.policy!r}; use {', '.join(REQUESTS)}")
        if not 0.0 <= self.remaining <= 1.0:
            raise ValueError(f"request remaining is a share of 0 to 1, got {self.remaining}")
        if not self.rate_hz > 0.0:
            raise ValueError(f"request rate_hz must be positive, got {self.rate_hz}")


class Requests:
    """Says how long to wait before the next call.

    Invariant: an epoch's first call never waits, and no wait is longer than a chunk or a period, whatever the clock
    does.

    Args:
        horizon_s: how long a chunk lasts from its stamp.
    """

    def __init__(self, options: RequestOptions, horizon_s: float) -> None:
        self._options, self._horizon_ns = options, round(horizon_s * 1e9)
        self._period_ns = round(1e9 / options.rate_hz)
        self._chunk_ns: int | None = None
        self._beat_ns: int | None = None

    def reset(self) -> None:
        """Begin an epoch: no chunk is out."""
        self._chunk_ns = self._beat_ns = None

    def called(self, now_ns: int) -> None:
        """A call begins now. Beats that passed during a slow call are left out; the others keep their times."""
        beat = self._beat_ns
        if beat is None or not 0 <= now_ns - beat < self._period_ns:
            # Behind by whole periods, or the clock was set back: at a later beat of the same row, or a new row.
            late = 0 if beat is None or now_ns < beat else (now_ns - beat) % self._period_ns
            beat = now_ns - late
        self._beat_ns = beat + self._period_ns

    def published(self, stamp_ns: int) -> None:
        """A chunk observed at `stamp_ns` went out."""
        self._chunk_ns = stamp_ns

    def wait_ns(self, now_ns: int) -> int:
        """Time until the next call may begin, 0 when it may now."""
        kind = self._options.policy
        if kind == "rate" and self._beat_ns is not None:
            return min(max(self._beat_ns - now_ns, 0), self._period_ns)
        if kind == "remaining" and self._chunk_ns is not None and now_ns >= self._chunk_ns:
            due = self._chunk_ns + round((1.0 - self._options.remaining) * self._horizon_ns)
            return max(due - now_ns, 0)
        return 0
