"""`molmoact2 doctor`: the findings as a table or as JSON; status 1 when something does not work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.checks import examine
from molmoact2_ros.doctor.finding import Cell, Finding
from molmoact2_ros.doctor.probe import Machine
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.parameter_files import parameters_for, robot_files, user_files


def cell_of(robot: str, config: str, record_dir: str) -> Cell:
    """Return what the workcell is meant to be, from its parameter files.

    Args:
        config: the user's own, on top of those that ship here; empty for none.

    Raises:
        ValueError: the robot is unknown, or `config` is no parameter file.
    """
    if not robot:
        return Cell(record_dir=record_dir)
    family = embodiment(robot).family
    files = (*robot_files(family), *user_files(config))
    parameters = {
        node: parameters_for(files, node) for node in ("camera", f"{family}_driver", "executor", "visualizer")
    }
    return Cell(family, parameters, record_dir)


def as_json(findings: Sequence[Finding]) -> str:
    """One JSON object: `ok`, and the findings in order."""
    rows = [{**vars(finding), "level": finding.level.name} for finding in findings]
    return json.dumps({"ok": worst(findings) < Level.ERROR, "findings": rows})


def as_text(findings: Sequence[Finding]) -> str:
    """A line a finding, with the command that mends it below."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.name:<5} {finding.check:<{width}}  {finding.message}")
        if finding.command:
            lines.append(f"{'':<5} {'':<{width}}  -> {finding.command}")
    return "\n".join(lines)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among the findings."""
    return max((finding.level for finding in findings), default=Level.OK)


def main(robot: str, config: str, record_dir: str, json_wanted: bool, machine: Machine | None = None) -> int:
    """Examine the machine, print what was found, and return the exit status: 1 with an ERROR among it, else 0."""
    findings = examine(machine or Machine(), cell_of(robot, config, record_dir))
    print(as_json(findings) if json_wanted else as_text(findings))
    sys.stdout.flush()
    return int(worst(findings) is Level.ERROR)
