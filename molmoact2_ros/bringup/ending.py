"""How a run ends: in which order its nodes do, what the end of one means for the others, and who started them.

The executor ends first, and brings the arm to rest on its path as it does; the driver ends when it has gone, so that
somebody holds the arm until then; a simulated cell ends last, and so does the console. `ProcessGroup` signals the nodes
in this order. Ctrl-C on `ros2 launch` reaches all of them at once, so the nodes keep to it as well (`run_node`).
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from enum import Enum

LAUNCHER = "MOLMOACT2_LAUNCHER"
"""Environment variable of a node: process id of what started it."""
ENDS_AFTER = "MOLMOACT2_ENDS_AFTER"
"""Environment variable of a node: names of the nodes of its namespace that end before it, with spaces between."""
REST_S = 5.0
"""How long a driver waits for its executor to end. The executor gives an arm 2 s to come to rest."""
SETTLE_S = 0.5
"""How long a driver goes on after that: an arm comes in behind its last set-point, and is then held where it is."""
PARK_S = 60.0
"""How long a driver may take to park its arm and let go of it."""
RESTARTS, RESTART_DELAY_S = 3, 1.0
"""So often is a node started again, so long after its end."""

DRIVERS = ("so101_driver", "yam_driver", "franka_driver")


class OnEnd(Enum):
    """What the end of a node means for the run."""

    ENDS_RUN = "ends the run"
    """Nothing is left to do, and no arm to be held: the simulated cell and what its episodes need."""
    RESTARTED = "is started again"
    """On a robot: the driver goes on holding the arm while anything else is away."""
    REPORTED = "is reported"


def stage_of(name: str) -> int:
    """When the node called `name` ends: 0 first, nodes of one stage together."""
    if name == "executor":
        return 0
    if name in DRIVERS:
        return 2
    # Who can stop an arm that is being parked is there until it is.
    return 3 if name in ("sim", "operator", "panel") else 1


def ends_after(name: str) -> tuple[str, ...]:
    """Names of the nodes that end before the one called `name`: what moves an arm before what holds it."""
    return {2: ("executor",), 3: ("executor", *DRIVERS)}.get(stage_of(name), ())


class Launcher:
    """What started this process: the process that `LAUNCHER` names, or else the parent.

    The name comes first: a parent that ends while this process still imports its modules leaves no trace in
    `os.getppid`, and between the two there may be a shell or a debugger.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._parent = os.getppid()
        self._gone = False
        self._descriptor: int | None = None
        named = environment.get(LAUNCHER, "")
        if named:
            try:
                self._descriptor = os.pidfd_open(int(named))
            except ProcessLookupError:
                self._gone = True

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        if self._descriptor is not None:
            return bool(select.select([self._descriptor], [], [], 0.0)[0])
        return self._gone or os.getppid() != self._parent
