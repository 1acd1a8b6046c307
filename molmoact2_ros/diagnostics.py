"""How bad a state is, as every room says it. The numbers are those of `diagnostic_msgs/DiagnosticStatus`."""

from __future__ import annotations

from enum import IntEnum


class Level(IntEnum):
    """OK, WARN: works, but worse or not for everything, ERROR: does not work. Of a driver's hardware, ERROR means that
    the arm must stop until somebody has looked."""

    OK = 0
    WARN = 1
    ERROR = 2
