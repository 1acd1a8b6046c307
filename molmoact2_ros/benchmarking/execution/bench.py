"""`molmoact2 bench execution`: the executor against lerobot's ways to play chunks, its loop, its faults, on one page.

Three parts write their sections of the page and leave the others as they are: the replay on simulated time, the cost of
a tick and the command loop beside a busy policy (`--loop`, real time), and the fault table (`--faults`, from what the
fault tests wrote).
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from molmoact2_ros.benchmarking.execution.measures import Measures, measures_of
from molmoact2_ros.benchmarking.execution.players import OURS, OurPlayer, Player, play
from molmoact2_ros.benchmarking.execution.report import (
    FAULTS,
    LOOP,
    REPLAY,
    TICK,
    assemble,
    fault_section,
    loop_section,
    replay_section,
    tick_section,
)
from molmoact2_ros.benchmarking.execution.streams import LINKS, Link, Stream, recorded, synthetic
from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.embodiments import embodiment

ROBOTS = ("so101", "franka", "yam")
MULTIPLES = {"so101": 3, "franka": 16, "yam": 8}
"""Set-points a row: 90, 240 and 240 a second, the multiples of the rows' rates next to the rates of the configs."""
KINDS = ("steady", "undecided")
SECONDS = 10.0
SEED = 1

Results = dict[tuple[str, str, str, str], Measures]
"""By robot, link, stream and player."""


@dataclass(frozen=True)
class ExecutionBench:
    """What to measure, of which robots: the replay, or else the loop for so many seconds and the fault table."""

    robots: tuple[str, ...] = ROBOTS
    loop_s: float = 0.0
    faults: Path | None = None


def bench_execution(settings: ExecutionBench, page: Path) -> dict[str, Any]:
    """Run what `settings` ask for, write its sections of `page` and return its figures.

    Raises:
        ValueError: an unknown robot. FileNotFoundError: no recording, or no report of the fault tests.
    """
    for name in settings.robots:
        embodiment(name)
    sections: dict[str, str] = {}
    found: dict[str, Any] = {}
    if settings.loop_s > 0.0:
        from molmoact2_ros.benchmarking.execution.command_loop import measure_loops

        found["tick_us"] = {name: tick_costs(name) for name in settings.robots}
        sections[TICK] = tick_section(found["tick_us"])
        found["loop"] = measure_loops(settings.robots, settings.loop_s)
        sections[LOOP] = loop_section(found["loop"], settings.loop_s)
    if settings.faults is not None:
        sections[FAULTS], found["faults"] = fault_section(settings.faults)
    if not sections:
        results = replay_all(settings.robots)
        found = judge(results)
        sections[REPLAY] = replay_section(results, found)
    page.parent.mkdir(parents=True, exist_ok=True)
    old = page.read_text() if page.is_file() else ""
    page.write_text(assemble(old, sections, machine(), date.today().isoformat()))
    return found


def streams_of(robot: str) -> list[Stream]:
    """The recorded streams where there are some for `robot`, and the synthetic ones."""
    return [
        *(stream for stream in recorded() if stream.robot.name == robot),
        *(synthetic(embodiment(robot), kind, SECONDS, SEED) for kind in KINDS),
    ]


def replay_all(robots: Iterable[str], links: Iterable[Link] = LINKS) -> Results:
    """Every stream of every robot behind every link through every player."""
    from molmoact2_ros.benchmarking.execution.lerobot_players import lerobot_players

    results: Results = {}
    for name in robots:
        multiple = MULTIPLES[name]
        for stream in streams_of(name):
            start = np.clip(stream.rows[0, 0], stream.robot.limits.lower, stream.robot.limits.upper)
            for link in links:
                players: list[Player] = [OurPlayer(stream.robot, start, stream.rate_hz * multiple)]
                players += lerobot_players(stream.robot, start, multiple)
                for player in players:
                    replay = play(player, stream, link, multiple, SEED)
                    results[name, link.name, stream.name, player.name] = measures_of(replay)
            print(f"replayed {name}, {stream.name}", file=sys.stderr)
    return results


def judge(results: Results) -> dict[str, Any]:
    """What the replay comes to: one object of plain figures.

    `violations` and `stalls` (while a chunk covers the moment) are ours, of all replays. `seam_jerk_ratio_200ms` is how
    many times larger the best of the others' largest jerk at a seam is, in the least favourable stream with a delay of
    200 ms and above. `lag_excess_ms`: how much further behind its chunk an arm that keeps its limits is under ours than
    under the best of the others, on average over a robot's streams, for the worst robot, by link; an arm that is ahead
    of its chunk counts as not behind.
    """
    delays = {link.name: link.delay_s for link in LINKS}
    ours = {key: m for key, m in results.items() if key[3] == OURS}
    ratios: dict[str, float] = {}
    lags: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (robot, link, stream, _), mine in ours.items():
        others = [m for key, m in results.items() if key[:3] == (robot, link, stream) and key[3] != OURS]
        ratio = min(m.jerk for m in others) / max(mine.jerk, 1e-12)
        ratios[link] = min(ratio, ratios.get(link, np.inf))
    for (robot, link, _stream, player), m in results.items():
        lags[f"{robot} {link}", player].append(m.arm_lag_s)
    excess: dict[str, float] = {}
    for where, player in lags:
        if player != OURS:
            continue
        link = where.partition(" ")[2]
        best = min(max(0.0, float(np.mean(v))) for (w, p), v in lags.items() if w == where and p != OURS)
        behind = max(0.0, float(np.mean(lags[where, OURS])))
        excess[link] = max(excess.get(link, -np.inf), 1e3 * (behind - best))
    return {
        "violations": sum(m.violations for m in ours.values()),
        "stalls": sum(m.stalls_covered for m in ours.values()),
        "seam_jerk_ratio_200ms": round(min(r for name, r in ratios.items() if delays[name] >= 0.2), 1),
        "seam_jerk_ratio": {name: round(r, 1) for name, r in ratios.items()},
        "lag_excess_ms": {name: round(value, 1) for name, value in excess.items()},
        "refused": sum(m.refused for m in ours.values()),
        "violations_of_others": sum(m.violations for key, m in results.items() if key[3] != OURS),
        "replays": len(results),
        "robots": sorted({key[0] for key in results}),
    }


def tick_costs(robot_name: str, seconds: float = 20.0) -> Mapping[str, Mapping[str, float]]:
    """Microseconds of one tick, one joint state and one chunk of the executor, as p50, p99 and worst.

    The arm follows the `undecided` stream with 200 ms of delay; the calls are timed one by one on this thread.
    """
    robot = embodiment(robot_name)
    stream = synthetic(robot, "undecided", seconds, SEED)
    player = TimedPlayer(robot, stream.rows[0, 0], stream.rate_hz * MULTIPLES[robot_name])
    play(player, stream, Link("200 ms", 0.2), MULTIPLES[robot_name], SEED)
    out = {}
    for name, values in player.costs_us.items():
        p50, p99, worst = np.percentile(values, (50.0, 99.0, 100.0))
        out[name] = {"count": len(values), "p50": float(p50), "p99": float(p99), "worst": float(worst)}
    return out


class TimedPlayer(OurPlayer):
    """Our player with a stopwatch on the executor's calls."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.costs_us: dict[str, list[float]] = {"tick": [], "joint state": [], "chunk": []}
        executor = self.executor
        for name, method in (("tick", "tick"), ("joint state", "on_joint_state"), ("chunk", "on_chunk")):
            setattr(executor, method, self._timed(getattr(executor, method), self.costs_us[name]))

    @staticmethod
    def _timed(call: Any, costs: list[float]) -> Any:
        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter_ns()
            try:
                return call(*arguments)
            finally:
                costs.append((time.perf_counter_ns() - begun) * 1e-3)

        return timed
