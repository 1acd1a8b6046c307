"""What the doctor says about one thing, and what the workcell is meant to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from molmoact2_ros.diagnostics import Level


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `message` says how it is, `command` what mends it (empty when it needs no mending)."""

    check: str
    level: Level
    message: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """What the workcell is meant to be: robot (empty: none in particular) and its parameters by node name."""

    robot: str = ""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    record_dir: str = "bags"

    def parameter(self, node: str, key: str, default: Any) -> Any:
        """A node's parameter from the config file."""
        return self.parameters.get(node, {}).get(key, default)


def sound(check: str, message: str) -> Finding:
    """Nothing is wrong with `check`."""
    return Finding(check, Level.OK, message)
