"""What an arm is to this package: fresh readings, joint targets, and its state of health."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One reading of all encoders.

    Attributes:
        stamp_ns: not later than the moment at which the first encoder was read, ns.
        positions: shape (dof,), rad or m, ROS order.
        velocities: shape (dof,), rad/s or m/s, where the arm measures them.
    """

    stamp_ns: int
    positions: Array
    velocities: Array | None = None


@dataclass(frozen=True)
class Health:
    """State of the hardware: level, one line for the user, and the figures behind it."""

    level: Level = Level.OK
    message: str = "ok"
    values: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class DriverError(RuntimeError):
    """The arm cannot be used as it is; the message says what to do. Trying again helps once that has been done."""


class StaleError(RuntimeError):
    """A reading that cannot be proven fresh, or a command that did not go out. Passes by itself, or the arm is lost."""


class MissingPackageError(DriverError):
    """A hardware package is not installed; the message carries the install line."""


class Driver(Protocol):
    """One arm, or one pair of arms. All methods are called from one thread."""

    robot: Embodiment

    def connect(self) -> None:
        """Open the arm so that it holds its measured position.

        Raises:
            DriverError: it cannot be used; the message says what to do.
        """

    def read(self) -> Reading:
        """Return a reading that was taken after this call began.

        Raises:
            StaleError: there is none that can be proven fresh.
        """

    def write(self, positions: Array) -> None:
        """Send joint targets (dof,), rad or m, ROS order.

        Raises:
            StaleError: they did not go out.
        """

    def hold(self, positions: Array) -> None:
        """Stop, and stay at `positions` (dof,) where the arm cannot stop better by itself. Raises StaleError as `write`
        does."""

    def confirms(self, positions: Array) -> bool:
        """Tell whether the hardware's own goal is `positions`, written before. Raises StaleError as `read` does."""

    def health(self) -> Health:
        """Ask the hardware how it is; called about twice a second. Raises StaleError as `read` does."""

    def disconnect(self) -> None:
        """Drop the connection, to connect anew; an arm that holds goes on holding. Safe when nothing answers."""

    def close(self) -> None:
        """Let go of the arm for good; safe to call twice and when nothing answers any more.

        Raises:
            DriverError: a part was to be without torque and is not; the message names it. All else has been let go of.
        """


def hardware_package(module: str, extra: str, package: str) -> ModuleType:
    """Import an optional hardware package.

    Raises:
        MissingPackageError: it is not installed; the message is one line with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and not module.startswith(error.name.partition(".")[0]):
            raise MissingPackageError(
                f"{package} needs {error.name}, which is not installed: pip install '.[{extra}]' in the checkout"
            ) from error
        raise MissingPackageError(f"{package} is not installed: pip install '.[{extra}]' in the checkout") from error
