"""Executor, driver node, emulated bus and physics in their own processes: each fault switch leads to its state.

The fast run takes one fault of each kind (silence, unsound hardware, a cable that comes back); the slow one takes all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from molmoact2_ros.benchmarking import robots
from molmoact2_ros.benchmarking.robots import PLANS, Plan, drill, render

FAST = {"so101": ("silent 3", "hot 3", "unplug")}


def passed(robot: str, plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    # Deadlines are the benchmark's affair: here a busy machine may take its time.
    patient = replace(
        plan,
        cases=tuple(case if case.expected == "TRACKING" else replace(case, deadline_s=20.0) for case in plan.cases),
    )
    monkeypatch.setitem(robots.PLANS, robot, patient)
    found = drill(robot, folder, motion_s=3.0)
    wrong = [case for case in found["faults"] if case["state"] != case["expected"]]
    assert not wrong, "\n".join(f"{case['fault']}: {case['story']}" for case in wrong)
    return found


@pytest.mark.parametrize("robot", sorted(FAST))
def test_faults_on_the_emulated_bus_stop_the_arm_and_it_goes_on_when_they_are_gone(
    robot: str, tmp_path: Path, monkeypatch
):
    plan = PLANS[robot]
    chosen = tuple(case for case in plan.cases if case.fault in FAST[robot])
    assert len(chosen) == len(FAST[robot])
    found = passed(robot, replace(plan, cases=chosen), tmp_path, monkeypatch)
    assert found["motion"]["travel"] > 0.05
    page = render({robot: {"date": "today", **found}})
    assert all(f"`{case.fault}`" in page for case in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("robot", sorted(PLANS))
def test_every_fault_switch_leads_to_its_state(robot: str, tmp_path: Path, monkeypatch):
    passed(robot, PLANS[robot], tmp_path, monkeypatch)
