"""The command loop: even deadlines, missed ones skipped and counted, a failure kept for the owner."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from molmoact2_ros.execution.loop import DeadlineLoop

PERIOD_NS = 10_000_000


class Time:
    """A clock that only sleep and the body move."""

    def __init__(self) -> None:
        self.ns = 0
        self.epoch_ns = 1_000_000_000_000

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9) + 50_000  # wakes up a little late, as sleep does

    def loop(self, body: object) -> DeadlineLoop:
        return DeadlineLoop(100.0, body, lambda: self.ns + self.epoch_ns, lambda: self.ns, self.sleep)  # type: ignore[arg-type]


def test_deadlines_are_even_although_ticks_start_late() -> None:
    time, seen = Time(), []

    def body(now_ns: int) -> None:
        seen.append(now_ns)
        time.ns += 3_000_000
        if len(seen) == 50:
            loop._stop.set()

    loop = time.loop(body)
    loop.run()
    assert [b - a for a, b in pairwise(seen)] == [PERIOD_NS] * 49
    assert loop.missed == 0
    figures = loop.punctuality()
    assert figures["period_p50_ms"] == pytest.approx(10.0)
    assert figures["tick_p50_ms"] == pytest.approx(3.0)


def test_missed_deadlines_are_counted_and_not_made_up_for() -> None:
    time, seen = Time(), []

    def body(now_ns: int) -> None:
        seen.append(now_ns)
        time.ns += 45_000_000 if len(seen) == 3 else 0
        if len(seen) == 6:
            loop._stop.set()

    loop = time.loop(body)
    loop.run()
    steps = [(b - a) // PERIOD_NS for a, b in pairwise(seen)]
    assert steps == [1, 1, 4, 1, 1]
    assert loop.missed == 3


def test_a_tick_that_wakes_up_late_is_not_told_a_time_long_past() -> None:
    time, late = Time(), []
    naps = iter([0, 130_000_000, 0, 0])

    def oversleep(seconds: float) -> None:
        time.ns += round(seconds * 1e9) + next(naps)

    def body(now_ns: int) -> None:
        late.append(time.ns + time.epoch_ns - now_ns)
        if len(late) == 4:
            loop._stop.set()

    loop = DeadlineLoop(100.0, body, lambda: time.ns + time.epoch_ns, lambda: time.ns, oversleep)
    loop.run()
    assert all(0 <= ns < PERIOD_NS for ns in late), late
    assert loop.missed == 13


def test_a_step_of_the_system_clock_reaches_the_body() -> None:
    time, seen = Time(), []

    def body(now_ns: int) -> None:
        seen.append(now_ns)
        if len(seen) == 3:
            time.epoch_ns += 2_000_000_000
        if len(seen) == 5:
            loop._stop.set()

    loop = time.loop(body)
    loop.run()
    assert seen[3] - seen[2] == PERIOD_NS + 2_000_000_000
    assert seen[4] - seen[3] == PERIOD_NS


def ticks_of(time: Time, now_ns: object, count: int, change: object = lambda tick: None) -> list[int]:
    """ROS times of `count` ticks of a loop whose ROS clock is `now_ns`; `change(i)` comes after the i-th."""
    seen: list[int] = []

    def body(now_ns: int) -> None:
        seen.append(now_ns)
        change(len(seen))  # type: ignore[operator]
        if len(seen) == count:
            loop._stop.set()

    loop = DeadlineLoop(100.0, body, now_ns, lambda: time.ns, time.sleep)  # type: ignore[arg-type]
    loop.run()
    return seen


@pytest.mark.parametrize("late", ["before", "after"])
def test_a_thread_that_is_away_while_it_reads_the_clocks_sees_no_jump(late: str) -> None:
    time, readings = Time(), [0]

    def now_ns() -> int:
        readings[0] += 1
        away = 8_000_000 if readings[0] % 7 == 3 else 0
        if late == "before":
            time.ns += away
            return time.ns + time.epoch_ns
        now = time.ns + time.epoch_ns
        time.ns += away
        return now

    assert [b - a for a, b in pairwise(ticks_of(time, now_ns, 50))] == [PERIOD_NS] * 49


@pytest.mark.parametrize("by_ns", [-30_000_000, -6_000_000, 6_000_000, 30_000_000])
def test_a_corrected_system_clock_is_followed_slowly_and_time_never_goes_back(by_ns: int) -> None:
    time = Time()

    def correct(tick: int) -> None:
        time.epoch_ns += by_ns if tick == 5 else 0

    seen = ticks_of(time, lambda: time.ns + time.epoch_ns, 60, correct)
    steps = [b - a for a, b in pairwise(seen)]
    assert all(abs(step - PERIOD_NS) <= PERIOD_NS // 10 for step in steps)
    assert abs(time.ns + time.epoch_ns - seen[-1]) < 2_200_000, "it arrives, to the slack and the lateness of a tick"


def test_a_failure_of_the_body_ends_the_loop_and_is_kept() -> None:
    def body(now_ns: int) -> None:
        raise RuntimeError("no such joint")

    loop = Time().loop(body)
    loop.run()
    assert str(loop.failure) == "no such joint"


def test_a_priority_or_a_cpu_that_is_not_permitted_is_said_clearly_and_the_loop_runs_anyway() -> None:
    time, ticks = Time(), []

    def body(now_ns: int) -> None:
        ticks.append(now_ns)
        if len(ticks) == 3:
            loop._stop.set()

    clocks = (lambda: time.ns + time.epoch_ns, lambda: time.ns, time.sleep)
    loop = DeadlineLoop(100.0, body, *clocks, realtime_priority=1000, cpu=1_000)
    loop.run()
    assert len(ticks) == 3
    assert "normal: SCHED_FIFO 1000 is not permitted" in loop.scheduling
    assert "not pinned: CPU 1000 is not permitted" in loop.scheduling and "this process may use [" in loop.scheduling


def test_the_loops_thread_stays_on_its_cpu_and_no_other_thread_does() -> None:
    time, seen = Time(), []
    before = os.sched_getaffinity(0)

    def body(now_ns: int) -> None:
        seen.append(os.sched_getaffinity(0))
        loop._stop.set()

    cpu = min(before)
    loop = DeadlineLoop(100.0, body, lambda: time.ns, lambda: time.ns, time.sleep, cpu=cpu)
    loop.start()
    loop._thread.join(10.0)
    assert seen == [{cpu}]
    assert os.sched_getaffinity(0) == before
    assert loop.scheduling == f"normal, CPU {cpu}"


def test_punctuality_looks_a_minute_back() -> None:
    time = Time()
    loop = DeadlineLoop(100.0, lambda now_ns: None, lambda: time.ns, lambda: time.ns, time.sleep)
    assert len(loop._periods) == 6000
