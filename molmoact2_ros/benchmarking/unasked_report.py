"""What moved unasked, as a table, and how much is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMIT_RAD = 0.01
"""Encoder noise, and what an arm settles when its driver takes over the hold: seven steps of an SO-101's encoder."""

MEANINGS = {
    "e_stop_released": "e-stop pressed in motion; at rest it is released, nobody resets",
    "e_stop_tapped": "e-stop pressed in motion and released 50 ms later",
    "e_stop_best_effort": "the same by a best-effort publisher",
    "e_stop_other_lets_go": "e-stop pressed by one publisher; another one says false",
    "hand_guiding": "armed and holding; guided by hand, moved by 0.3 rad, guiding ended",
    "power_cut": "armed and holding; the arm's supply cut, moved by 0.3 rad, supply back",
    "cable_pulled": "in motion; the cable pulled for 1.5 s and put back (YAM: moved meanwhile)",
    "silence": "in motion; a motor does not answer for 0.4 s",
    "user_stop": "the robot's own user stop pressed in motion, released at rest",
    "hot": "in motion; a hot motor (Franka: a reflex, recovered from), then sound again",
    "arm_and_disarm": "held, disarmed and armed ten times: what the arm sinks in all",
}


def exceeded(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the scenarios in which an arm moved further than is allowed."""
    return [row["scenario"] for row in rows if not row["moved_rad"] <= LIMIT_RAD]


def unasked_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table."""
    lines = [
        f"Moved unasked: largest movement of an arm joint after the event, before the next `executor/arm` (limit "
        f"{LIMIT_RAD:g} rad).",
        "",
        "| scenario | moved, mrad | the stop itself, rad | executor | reason |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        bad = " **NO**" if row["scenario"] in exceeded([row]) else ""
        moved = f"{1e3 * row['moved_rad']:.1f}{bad}"
        cells = (MEANINGS[row["scenario"]], moved, f"{row['stop_rad']:.3f}", row["state"], row["reason"])
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
