"""`molmoact2 doctor`: the findings as a table or as JSON; status 1 when something does not work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.checks import examine
from molmoact2_ros.doctor.finding import Cell, Finding
from molmoact2_ros.doctor.probe import Machine
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.share import share_path


def cell_of(robot: str, config: str, record_dir: str) -> Cell:
    """Return what the workcell is meant to be, from its parameter file.

    Raises:
        ValueError: the robot is unknown. FileNotFoundError: there is no such parameter file.
    """
    if not robot:
        return Cell(record_dir=record_dir)
    name = embodiment(robot).family
    text = Path(config or share_path(f"config/{name}.yaml")).read_text()
    sections = yaml.safe_load(text) or {}
    parameters = {key.rpartition("/")[2]: section.get("ros__parameters", {}) for key, section in sections.items()}
    return Cell(name, parameters, record_dir)


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
