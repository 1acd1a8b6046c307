"""Executor and driver together, on emulated buses: nothing moves an arm that nobody asked to move.

Pins: an e-stop that was released moved the arms on by 0.035 to 0.061 rad before anybody reset it; arms that had been
guided by hand snapped back; an SO-101 whose supply came back went to its old pose; a held arm sank with every arming.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from molmoact2_ros.benchmarking.unasked import SCENARIOS, play
from molmoact2_ros.benchmarking.unasked_report import MEANINGS, exceeded, unasked_table

FAST = {
    "so101": ("e_stop_released", "power_cut"),
    "yam": ("hand_guiding",),
}
STATES = {
    **dict.fromkeys(("e_stop_released", "e_stop_tapped", "e_stop_best_effort"), ("ESTOPPED",)),
    **dict.fromkeys(("e_stop_other_lets_go", "user_stop"), ("ESTOPPED",)),
    **dict.fromkeys(("hand_guiding", "power_cut", "cable_pulled", "hot"), ("FAULT",)),
    "silence": ("DISARMED", "FAULT"),
    "arm_and_disarm": ("DISARMED",),
}


def check(robot: str, scenarios: tuple[str, ...], folder: Path) -> None:
    rows = play(robot, folder, scenarios)
    assert [row["scenario"] for row in rows] == list(scenarios)
    assert not exceeded(rows), "\n".join(unasked_table(rows))
    for row in rows:
        assert row["state"] in STATES[row["scenario"]], row
        assert row["reason"], row


@pytest.mark.parametrize("robot", sorted(FAST))
def test_nothing_moves_an_arm_that_nobody_asked_to_move(robot: str, tmp_path: Path) -> None:
    check(robot, FAST[robot], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("robot", sorted(SCENARIOS))
def test_in_every_scenario(robot: str, tmp_path: Path) -> None:
    check(robot, SCENARIOS[robot], tmp_path)


def test_more_than_the_limit_and_a_value_that_is_none_are_exceeded() -> None:
    row = {"scenario": "e_stop_released", "moved_rad": 0.0099, "stop_rad": 0.1, "state": "ESTOPPED", "reason": "x"}
    assert not exceeded([row])
    assert exceeded([{**row, "moved_rad": 0.0101}]) and exceeded([{**row, "moved_rad": float("nan")}])
    assert "**NO**" in "".join(unasked_table([{**row, "moved_rad": 0.06}]))
    assert set().union(*SCENARIOS.values()) <= set(MEANINGS) and set(STATES) == set(MEANINGS)
