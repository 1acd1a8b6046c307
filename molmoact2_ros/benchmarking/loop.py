"""`molmoact2 bench loop`: ages and periods of the closed loop on the simulated cell, measured over real ROS."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import node_environment
from molmoact2_ros.bringup.session import Line, orderly_signals, run_session
from molmoact2_ros.bringup.specs import NodeSpec, nodes

Stats = Mapping[str, float]


def bench_loop(options: Options, out: Path, page: Path) -> Path:
    """Run the episodes of `options` with a probe beside them, write `page` (Markdown) and return its path.

    Raises:
        SessionError, NodeEndedError: the run did not get to its end.
    """
    specs = nodes(options)
    report = out / "probe.json"
    out.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    probe = NodeSpec(
        executable="probe_node",
        name="probe",
        namespace=specs[0].namespace,
        configs=specs[0].configs,
        parameters=MappingProxyType({"robot": options.robot, "report": str(report)}),
        environment=MappingProxyType({"OMP_NUM_THREADS": "1"}),
    )
    load_before = os.getloadavg()[0]
    with orderly_signals():
        summary = run_session([*specs, probe], out / "log", node_environment(), _say)
    found = json.loads(report.read_text())
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(options, summary, found, load_before))
    return page


def _say(line: Line) -> None:
    if line["type"] == "result":
        print(f"episode {line['episode'] + 1}/{line['episodes']}: {line['outcome']}", file=sys.stderr)
    elif line["type"] == "warning":
        print(f"warning: {line['message']}", file=sys.stderr)


def render(options: Options, summary: Line, found: Mapping[str, Any], load_before: float) -> str:
    """Return the page for one measurement.

    Args:
        options: what was run.
        summary: the episode node's summary.
        found: the probe's report.
        load_before: load average of the machine before the run; above 0 others had a share of it.
    """
    lines = [
        "# The closed loop on the simulated cell",
        "",
        f"Written by `molmoact2 bench loop --policy {options.policy} --episodes {options.episodes} "
        f"--seed {options.seed}` on {date.today().isoformat()}.",
        f"Policy `{options.policy}`; {summary['successes']} of {summary['episodes']} episodes succeeded. Figures count "
        "while the executor follows the policy, all nodes and the simulator (software rendering where there is no GPU) "
        "on one machine.",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        f"- Load average before the run: {load_before:.1f}",
        "",
        "## Seen by a subscriber of its own process, ms",
        "",
        "Age is arrival minus the stamp that the message carries: the capture of the image, the reading of the",
        "encoders, or the oldest observation behind a chunk. `chunk in use` is what the executor says about itself.",
        "",
        *_table("what", found["loop"]),
        "",
        "## The command loop as the executor measures it, ms",
        "",
        "| what | p50 | p99 | worst |",
        "|---|---|---|---|",
    ]
    own = found["executor"]
    for name in ("period", "tick"):
        values = [own.get(f"{name}_{which}_ms") for which in ("p50", "p99", "worst")]
        if None not in values:
            lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    lines += [
        "",
        "## The policy, ms",
        "",
        "From the oldest observation to the chunk's arrival, then the policy's own times by stage (each second, its",
        "last call).",
        "",
        "| what | p50 | p90 | p99 |",
        "|---|---|---|---|",
    ]
    stages = {"capture to chunk": summary["policy_latency_ms"], **summary["policy_stages_ms"]}
    for name, values in stages.items():
        if values:
            lines.append(f"| {name} | " + " | ".join(f"{values[key]:.1f}" for key in ("p50", "p90", "p99")) + " |")
    return "\n".join(lines) + "\n"


def _table(first: str, rows: Mapping[str, Stats]) -> list[str]:
    lines = [f"| {first} | samples | p50 | p99 | worst |", "|---|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        lines.append(f"| {name} | {row['count']} | {row['p50']:.1f} | {row['p99']:.1f} | {row['max']:.1f} |")
    return lines
