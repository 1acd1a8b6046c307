"""The page of `molmoact2 bench execution`, section by section."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from molmoact2_ros.benchmarking.execution.measures import SEAM_WINDOW_S, Measures
from molmoact2_ros.benchmarking.execution.players import OURS

REPLAY = "Replay of the same chunk streams"
TICK = "Cost of one tick"
LOOP = "The command loop beside a busy policy"
FAULTS = "Faults"
ORDER = (REPLAY, TICK, LOOP, FAULTS)

HEAD = """# Execution

Written by `molmoact2 bench execution`; `--loop` and `--faults FILE` renew what is timed and what is measured over real
ROS 2. Each section says when it was made.
"""

METHOD = f"""\
A stream has a chunk for every frame: recorded once from the simulated SO-101 (the checkpoint of the cell, three
episodes, `molmoact2 bench execution --record`), or synthetic (slow curves on every joint, 1.5 mrad of noise a
row; `steady`: chunks of one opinion to 10 mrad, `undecided`: to 50 mrad, with a new aim every two seconds).
Every player gets the chunk of the newest frame when it asks, after the delay of the link: lerobot's players by
their own rules (`select_action`: when its queue is empty; the asynchronous client: at half of the chunk, its
default; the RTC queue: at 30 rows or fewer, its default), ours as soon as the last answer is there. All of
lerobot is its own code at 0.6.1: `MolmoAct2Policy.select_action`, `RobotClient` with `AGGREGATE_FUNCTIONS`,
`ActionQueue`, `ActionInterpolator`; only its network, threads and clock are replaced. lerobot gives one action
a row, held until the next; `interpolated` is the same through its `ActionInterpolator` at our command rate. The
guidance that RTC adds inside a policy cannot be replayed: the chunks are the same for all.

- Command rate: 90 (SO-101) and 240 set-points a second (Franka, YAM), for every player.
- Velocity, acceleration and jerk: first, second and third differences of the set-points at that rate; the
  largest of any arm joint within {SEAM_WINDOW_S:g} s after the first set-point of a new chunk (a seam). The
  first chunk, from rest, and grippers are left out. `jerk at the rate of the rows` takes every row's set-point
  only, so that how a player gets from row to row does not count.
- Stall: nothing to play, the last set-point is repeated. Standing: set-points slower than a twentieth of a
  chunk that moves.
- Lag: the shift in time with which the set-points fit the newest chunk best that the player has taken; negative is
  ahead of it. What is shifted is the motion that the stream's chunks have in common, the mean of all rows that are
  due at a moment. (To shift the chunk itself would call late whoever evens opinions out, since they grow along a
  chunk: a player that is exactly on time and has none by 38 to 82 ms; this way by -12 to 18.) Set-points that jump
  are ahead of any arm, so the lag is measured once more on an arm that is sent them and keeps its limits,
  time-optimally (`benchmarking/execution_follower.py`): that is the lag of the first table. The chunks of this
  replay do not follow the arm; on the recorded streams the policy's chunks run ahead of each other.
- Chunks refused: ours refuses a chunk that starts too far from the arm, which happens here because a fast recorded
  motion goes on without an arm that waits. A refused chunk covers nothing.
- Violations: set-points outside the position, velocity (FR3: position-dependent), acceleration or jerk limits,
  grippers included, of about 900 (SO-101) or 2400 a replay.
- A robot's streams are put together: sums of violations, means of shares and lags, the largest of the rest.
"""

COLUMNS: tuple[tuple[str, Callable[[Measures], str]], ...] = (
    ("Stall share, %", lambda m: f"{100 * m.stall_share:.1f}"),
    ("Standing while a chunk moves, %", lambda m: f"{100 * m.standing:.1f}"),
    ("Largest step of a set-point at seams, mrad", lambda m: f"{1e3 * m.step:.1f}"),
    ("Largest velocity at seams, rad/s", lambda m: f"{m.velocity:.2f}"),
    ("Largest acceleration at seams, rad/s^2", lambda m: f"{m.acceleration:.1f}"),
    ("Largest jerk at seams, rad/s^3", lambda m: f"{m.jerk:.0f}"),
    ("Largest jerk at seams, at the rate of the rows, rad/s^3", lambda m: f"{m.row_jerk:.0f}"),
    ("Lag of the set-points behind the newest chunk, ms", lambda m: f"{1e3 * m.lag_s:.0f}"),
    ("Lag of an arm that keeps its limits and is sent them, ms", lambda m: f"{1e3 * m.arm_lag_s:.0f}"),
    ("Distance of the set-points from the newest chunk, root mean square, mrad", lambda m: f"{1e3 * m.distance:.0f}"),
    ("Distance of that arm from the newest chunk, root mean square, mrad", lambda m: f"{1e3 * m.arm_distance:.0f}"),
    ("Limit violations", lambda m: f"{m.violations}"),
    ("Chunks refused", lambda m: f"{m.refused}"),
)


def assemble(old: str, sections: Mapping[str, str], machine: Mapping[str, str], today: str) -> str:
    """The page: what is new in `sections`, and the sections of the `old` page that are not."""
    kept: dict[str, str] = {}
    for part in old.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        if title in ORDER:
            kept[title] = body.strip()
    made = [f"- Date: {today}", *(f"- {name}: {value}" for name, value in machine.items())]
    for title, body in sections.items():
        kept[title] = "\n".join(made) + "\n\n" + body.strip()
    return HEAD + "".join(f"\n## {title}\n\n{kept[title]}\n" for title in ORDER if title in kept)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def replay_section(results: Mapping[tuple[str, str, str, str], Measures], verdict: Mapping[str, Any]) -> str:
    """The comparison: what it comes to, how it was made, and one table a figure for each robot."""
    ratios, lags = verdict["seam_jerk_ratio"], verdict["lag_excess_ms"]
    lines = [
        f"Ours: {verdict['violations']} limit violations, and {verdict['stalls']} stalls while a chunk covers the "
        f"moment; it refused {verdict['refused']} chunks. The others: {verdict['violations_of_others']} violations. "
        f"{verdict['replays']} replays in all.",
        "",
        "Against the best of the others: jerk in the least favourable stream of any robot, lag on average over the "
        "streams of the\nworst robot (an arm ahead of its chunk counts as not behind):",
        "",
        *table(
            ["link", "their largest jerk at seams over ours", "lag of the arm under ours beyond theirs, ms"],
            [[name, f"{ratios[name]:.0f}", f"{lags[name]:.0f}"] for name in ratios],
        ),
        "",
        METHOD,
    ]
    robots = list(dict.fromkeys(key[0] for key in results))
    links = list(dict.fromkeys(key[1] for key in results))
    for robot in robots:
        players = list(dict.fromkeys(key[3] for key in results if key[0] == robot))
        streams = list(dict.fromkeys(key[2] for key in results if key[0] == robot))
        lines += [f"### {robot}: {', '.join(streams)}", ""]
        for name, show in COLUMNS:
            rows = []
            for player in players:
                merged = [
                    Measures.worst([results[robot, link, stream, player] for stream in streams]) for link in links
                ]
                shown = [show(m) for m in merged]
                rows.append(
                    [f"**{player}**", *(f"**{value}**" for value in shown)] if player == OURS else [player, *shown]
                )
            lines += [f"{name}:", "", *table(["player", *links], rows), ""]
    return "\n".join(lines)


def tick_section(costs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Microseconds of the executor's calls, without ROS."""
    rows = [
        [robot, call, str(round(c["count"])), *(f"{c[key]:.0f}" for key in ("p50", "p99", "worst"))]
        for robot, calls in costs.items()
        for call, c in calls.items()
    ]
    return "\n".join(
        [
            "The executor's calls without ROS, microseconds, timed one by one while it follows the `undecided`",
            "stream at 200 ms. The chunk is taken in the spinning thread, not in the command loop.",
            "",
            *table(["robot", "call", "calls", "p50", "p99", "worst"], rows),
        ]
    )


def loop_section(found: list[dict[str, Any]], seconds: float) -> str:
    """Period and tick of the executor node's command loop, as it measures itself."""
    rows = []
    for run in found:
        figures = [
            f"{run[f'{what}_{which}_ms']:.3f}" for what in ("period", "tick") for which in ("p50", "p99", "worst")
        ]
        counted = [str(run["missed"]), f"{run['stolen']:.1%}", run["scheduling"]]
        rows.append([run["robot"], f"{run['rate_hz']:g}", *figures, *counted])
    head = [
        "robot",
        "rate, Hz",
        "period p50, ms",
        "p99",
        "worst",
        "tick p50, ms",
        "p99",
        "worst",
        "missed",
        "stolen",
        "scheduling",
    ]
    return "\n".join(
        [
            f"The executor node over ROS 2 for {seconds:g} s each, following chunks that come five times a second,",
            "beside a process that runs the policy of the simulated cell without a pause. Period and tick are what",
            "the command loop measures of itself; a tick includes publishing. Stolen: the share of processor time",
            "that the hypervisor of a virtual machine gave to others meanwhile; the long periods are that.",
            "",
            *table(head, rows),
        ]
    )


def fault_section(report: Path) -> tuple[str, int]:
    """The table of the fault tests' `report` (JSON, see `test/faults`), and how many faults it has.

    Raises:
        FileNotFoundError: there is no such report.
    """
    if not report.is_file():
        raise FileNotFoundError(
            f"{report}: no report of the fault tests; make it with "
            f"MOLMOACT2_FAULT_REPORT={report} make test ARGS=\"test/faults -m 'slow or not slow'\""
        )
    found = json.loads(report.read_text())
    rows = []
    for number, entry in enumerate(found["faults"], start=1):
        moved = "goes on" if entry["movement_rad"] is None else f"{entry['movement_rad']:.3f}"
        rows.append([str(number), entry["fault"], entry["state"], entry["reason"].replace("|", "/"), moved])
    lines = [
        f"{len(rows)} faults injected into the executor node over real ROS 2 ({found['robot']}, "
        f"{found['rate_hz']:g} Hz) by",
        "`test/faults/test_fault_table.py`, in motion unless the row says otherwise; every one ended in the state and",
        "with the reason that the table of the test asks for. Movement: the furthest that any arm joint was",
        "commanded from where its command stood when the fault was injected, until it rested; the chunks ask for",
        "0.4 rad/s, their horizon is 1 s, and the test bears 0.6 s of silent encoders. After an e-stop every command",
        "is the deceleration and then the hold, bit for bit, while chunks go on coming. Silent cameras:",
        "`test/faults/test_closed_loop.py`.",
        "",
        *table(["", "fault", "state", "reason, as published", "movement, rad"], rows),
    ]
    return "\n".join(lines), len(rows)
