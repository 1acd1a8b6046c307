"""`molmoact2 bench robots --unasked`: what moves an arm that nobody asked to move. Nothing may."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from molmoact2_ros.benchmarking.robots import check_robots, keep, run_drill

COMMON = ("e_stop_released", "e_stop_tapped", "e_stop_best_effort", "e_stop_other_lets_go", "silence", "hot")
SCENARIOS = {
    "so101": (*COMMON, "power_cut", "cable_pulled", "arm_and_disarm"),
    "yam": (*COMMON, "hand_guiding", "cable_pulled", "arm_and_disarm"),
    "franka": (*COMMON, "user_stop", "cable_pulled", "arm_and_disarm"),
}
"""Scenarios by robot; `unasked_node` plays them, `unasked_report` says what they are."""
MOTION_S = 3.0


def bench_unasked(robots: list[str], out: Path, page: Path) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Play every scenario of `robots`, put the tables into `page`, and return the page and the rows by robot.

    Raises:
        ValueError: a robot has no plan. SessionError: a scenario did not come to its end.
    """
    check_robots(robots)
    found = {robot: play(robot, out, SCENARIOS[robot]) for robot in robots}
    today = date.today().isoformat()
    keep(page, {robot: {"unasked_date": today, "unasked": rows} for robot, rows in found.items()})
    return page, found


def play(robot: str, out: Path, scenarios: tuple[str, ...]) -> list[dict[str, Any]]:
    """Play some scenarios of one robot; returns a row for each."""
    report = run_drill(robot, out, MOTION_S, {"scenarios": list(scenarios)}, "unasked_node", arm_needs_chunk=False)
    rows: list[dict[str, Any]] = report["unasked"]
    return rows
