"""The command loop: one thread on absolute deadlines, with a record of its own punctuality."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

CLOCK_SLACK_NS = 2_000_000
"""How far ROS time at a deadline may differ from the even grid before the grid is moved towards it."""
CLOCK_STEP_NS = 50_000_000
"""From here on a difference is a clock that was set: the grid follows at once. Below, it was corrected, as time
servers do all day: the grid follows by at most a tenth of a period a tick, so that time never goes back for it."""


def _real_time(priority: int) -> str:
    """Put the calling thread under SCHED_FIFO; returns what became of it."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return (
            f"normal: SCHED_FIFO {priority} is not permitted ({error}); give the user an rtprio limit of at least "
            f"{priority} in /etc/security/limits.conf and log in again"
        )
    return f"SCHED_FIFO {priority}"


def _pinned(cpu: int) -> str:
    """Keep the calling thread on one CPU; returns what became of it."""
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, AttributeError) as error:
        permitted = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"
        return f"not pinned: CPU {cpu} is not permitted ({error}); this process may use {permitted}"
    return f"CPU {cpu}"


class RosClock:
    """ROS time of a monotonic deadline: an offset that follows corrections slowly and settings at once.

    The two clocks cannot be read at the same instant. A reading of ROS time is held between two of the monotonic
    clock, so a thread that was away in between (a busy machine) learns little from it, and nothing wrong.

    Args:
        now_ns, monotonic_ns: ROS time, which may step, and a clock that never does.
        slew_ns: how much the offset may follow in one `update`.
    """

    def __init__(self, now_ns: Callable[[], int], monotonic_ns: Callable[[], int], slew_ns: int) -> None:
        self._now_ns, self._monotonic_ns, self._slew_ns = now_ns, monotonic_ns, slew_ns
        self.offset_ns = now_ns() - monotonic_ns()

    def update(self) -> int:
        """Compare the clocks; returns the offset, ns, to add to a monotonic time."""
        before = self._monotonic_ns()
        now = self._now_ns()
        after = self._monotonic_ns()
        least, most = now - after - CLOCK_SLACK_NS, now - before + CLOCK_SLACK_NS
        wrong = min(max(self.offset_ns, least), most) - self.offset_ns
        if abs(wrong) > CLOCK_STEP_NS:
            self.offset_ns = now - after
        else:
            self.offset_ns += min(max(wrong, -self._slew_ns), self._slew_ns)
        return self.offset_ns


class DeadlineLoop:
    """Calls `body(deadline_ns)` at an even rate.

    The deadline is in ROS time, on an even grid: a tick that starts a little late still samples the motion of its
    deadline, so scheduling jitter does not become jitter of the set-points. Missed deadlines are skipped and
    counted, not made up for.

    Args:
        rate_hz: ticks a second.
        now_ns, monotonic_ns: ROS time, which may step, and a clock that never does.
        sleep: waits so many seconds.
        realtime_priority: SCHED_FIFO priority; 0 leaves the thread as it is.
        cpu: the CPU that the thread stays on; -1 for any.
        history_s: how far back `punctuality` looks.
    """

    def __init__(
        self,
        rate_hz: float,
        body: Callable[[int], None],
        now_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        sleep: Callable[[float], None],
        realtime_priority: int = 0,
        cpu: int = -1,
        history_s: float = 60.0,
    ) -> None:
        self.period_ns = round(1e9 / rate_hz)
        self.missed = 0
        self.scheduling = "normal"
        """How the thread is scheduled, and why not in real time or on its CPU where that was asked for."""
        self.failure: Exception | None = None
        """What ended the loop, if something did."""
        self._body, self._now_ns, self._monotonic_ns, self._sleep = body, now_ns, monotonic_ns, sleep
        self._realtime_priority, self._cpu = realtime_priority, cpu
        self._periods = np.zeros(max(2, round(history_s * rate_hz)))
        self._costs = np.zeros_like(self._periods)
        self._ticks = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self.run, name="command_loop", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread; safe to call twice."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        self._thread = None

    def run(self) -> None:
        """Tick until `stop`. An exception of `body` ends the loop and stays in `failure`."""
        if self._realtime_priority > 0:
            self.scheduling = _real_time(self._realtime_priority)
        if self._cpu >= 0:
            self.scheduling = f"{self.scheduling}, {_pinned(self._cpu)}"
        clock = RosClock(self._now_ns, self._monotonic_ns, self.period_ns // 10)
        deadline = last = self._monotonic_ns()
        try:
            while not self._stop.is_set():
                deadline += self.period_ns
                wait = deadline - self._monotonic_ns()
                if wait > 0:
                    self._sleep(wait * 1e-9)
                started = self._monotonic_ns()
                missed = max(0, started - deadline) // self.period_ns
                self.missed += missed
                deadline += missed * self.period_ns
                self._body(deadline + clock.update())
                i = self._ticks % len(self._periods)
                self._periods[i], last = started - last, started
                self._costs[i] = self._monotonic_ns() - started
                self._ticks += 1
        except Exception as error:  # the owner must learn of it: the thread has nobody to raise to
            self.failure = error

    def punctuality(self) -> dict[str, float]:
        """Period and cost of a tick in ms: median, 99th percentile, worst. Empty before the second tick."""
        count = min(self._ticks, len(self._periods))
        if count < 2:
            return {}
        first = 1 if self._ticks <= len(self._periods) else 0
        periods, costs = self._periods[first:count] * 1e-6, self._costs[first:count] * 1e-6
        out = {}
        for name, values in (("period", periods), ("tick", costs)):
            p50, p99, worst = np.percentile(values, (50.0, 99.0, 100.0))
            out.update({f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99), f"{name}_worst_ms": float(worst)})
        return out
