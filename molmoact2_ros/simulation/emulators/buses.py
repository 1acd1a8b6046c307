"""A simulated cell behind the bus of the real arm: encoders answer on the bus, goals from it move the cell."""

from __future__ import annotations

import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.simulation.emulators.plant import SharedPlant

Array = NDArray[np.float64]


class EmulatedBus(Protocol):
    """An emulated bus with a cell behind it."""

    FAULTS: tuple[str, ...]
    """What `fault` understands, as a user would type it."""

    def measured(self, positions: Array, velocities: Array) -> None:
        """Take the cell's encoders (dof,), rad or m, ROS order. Called at every reading of the cell."""

    def fault(self, text: str) -> None:
        """Switch a fault on, after switching the others off; `none` only switches off.

        Raises:
            ValueError: no such fault; the message lists them.
        """

    def close(self) -> None:
        """Take the bus down."""


def switch(text: str, known: tuple[str, ...]) -> tuple[str, float]:
    """Split `silent 3` into a fault's name and its figure (0 without one).

    Raises:
        ValueError: the name is not in `known`, or the figure is none.
    """
    name, _, figure = text.strip().partition(" ")
    if name not in {one.partition(" ")[0] for one in known} | {"none"}:
        raise ValueError(f"fault {text!r} is unknown; there are: {', '.join(known)}, none")
    return name, float(figure) if figure else 0.0


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


class So101Bus:
    """The servos of an SO-101 on a serial port `<folder>/so101`, with lerobot's calibration file `so101.json` beside.

    Args:
        folder: where the port appears.
        command: sets the cell's targets (6,), rad.
        start: encoders until the first report, (6,), rad.
    """

    FAULTS: tuple[str, ...] = (
        "silent 3",
        "frozen 1",
        "corrupt 0.02",
        "corrupt 1",
        "delay 0.15",
        "hot 3",
        "limp 2",
        "unplug",
        "power",
    )

    def __init__(self, folder: Path, command: Callable[[Array], None], start: Array) -> None:
        from molmoact2_ros.simulation.emulators.feetech import FeetechBus, write_calibration

        self._plant = SharedPlant(start, command)
        self.bus = FeetechBus(self._plant, folder / "so101")
        self._calibration = write_calibration(self.bus.servos, folder, "so101")
        self.bus.__enter__()

    def measured(self, positions: Array, velocities: Array) -> None:
        """See `EmulatedBus`."""
        self._plant.measured(positions, velocities)

    def fault(self, text: str) -> None:
        """See `EmulatedBus`; the figure is a servo's id, a share of the answers, or s."""
        from molmoact2_ros.simulation.emulators.feetech import Faults

        name, figure = switch(text, self.FAULTS)
        one = frozenset({int(figure)})
        limp = self.bus.faults.limp
        self.bus.faults = {
            "silent": Faults(silent=one),
            "frozen": Faults(frozen=one),
            "corrupt": Faults(corrupt=figure),
            "delay": Faults(delay_s=figure),
            "hot": Faults(hot={int(figure): 68}),
            "limp": Faults(limp=one),
            "power": Faults(silent=frozenset(self.bus.servos)),
        }.get(name, Faults())
        if name == "power" or (limp and name != "limp"):
            self.bus.power_cycle()  # what a servo that has switched itself off needs
        if name == "unplug":
            self.bus.unplug()
        else:
            self.bus.plug()

    def close(self) -> None:
        """See `EmulatedBus`."""
        self.bus.__exit__()
        self._calibration.unlink(missing_ok=True)
        _remove_if_empty(self._calibration.parent)


class YamBuses:
    """The motors of two YAM arms on the buses `<folder>/can_left` and `<folder>/can_right`.

    Args:
        folder: where the buses appear.
        command: sets the cell's targets (14,), rad and m.
        start: encoders until the first report, (14,).
    """

    FAULTS: tuple[str, ...] = (
        "silent 3",
        "frozen 1",
        "lost 0.001",
        "lost 1",
        "delay 0.02",
        "hot 4",
        "overheat 4",
        "unplug",
    )

    def __init__(self, folder: Path, command: Callable[[Array], None], start: Array) -> None:
        from molmoact2_ros.simulation.emulators.damiao import DamiaoBus

        self._command, self._targets = command, np.array(start, dtype=np.float64)
        self._lock = threading.Lock()
        self._plants = [
            SharedPlant(start[:7], lambda targets: self._drive(0, targets)),
            SharedPlant(start[7:], lambda targets: self._drive(1, targets)),
        ]
        self.buses = [
            DamiaoBus(plant, folder / f"can_{side}", seed=seed)
            for seed, (plant, side) in enumerate(zip(self._plants, ("left", "right"), strict=True))
        ]
        for bus in self.buses:
            bus.__enter__()

    def _drive(self, arm: int, targets: Array) -> None:
        with self._lock:
            self._targets[7 * arm : 7 * arm + 7] = targets
            self._command(self._targets.copy())

    def measured(self, positions: Array, velocities: Array) -> None:
        """See `EmulatedBus`."""
        for arm, plant in enumerate(self._plants):
            part = slice(7 * arm, 7 * arm + 7)
            plant.measured(positions[part], velocities[part])

    def fault(self, text: str) -> None:
        """See `EmulatedBus`; of the left arm. The figure is a motor's id, a share of the frames, or s; a motor that
        overheats switches itself off."""
        from molmoact2_ros.simulation.emulators.damiao import Faults

        name, figure = switch(text, self.FAULTS)
        one = frozenset({int(figure)})
        bus = self.buses[0]
        bus.faults = {
            "silent": Faults(silent=one),
            "frozen": Faults(frozen=one),
            "lost": Faults(lost=figure),
            "delay": Faults(delay_s=figure),
            "hot": Faults(hot={int(figure): 85}),
            "overheat": Faults(hot={int(figure): 105}),
        }.get(name, Faults())
        if name == "unplug":
            bus.unplug()
        else:
            bus.plug()

    def close(self) -> None:
        """See `EmulatedBus`."""
        for bus in self.buses:
            bus.__exit__()
        _remove_if_empty(self.buses[0].link.parent)


class FrankaBox:
    """Franka's control box in a process of its own, on a loopback address that belongs to the folder's name.

    Args:
        folder: its name picks the address; the file `address` in it holds it.
        command: sets the cell's targets (8,), rad and m.
        start: encoders until the first report, (8,).
    """

    FAULTS: tuple[str, ...] = (
        "lost 0.02",
        "silent",
        "frozen",
        "reflex",
        "user_stop",
        "unplug",
        "guiding",
        "refused",
        "slow_recovery",
        "hand_silent",
        "hand_refused",
        "hand_unhomed",
        "hand_gone",
    )

    def __init__(self, folder: Path, command: Callable[[Array], None], start: Array) -> None:
        from molmoact2_ros.simulation.emulators.fci_link import FciLink

        self._command = command
        name = folder.name
        self._link = FciLink(f"{name}_fci", create=True)
        self._link.positions[:] = self._link.targets[:] = start
        self.address = fci_address(name)
        module = "molmoact2_ros.simulation.emulators.fci"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, self.address, f"{name}_fci"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if "ready" not in self._process.stdout.readline():
            self.close()
            raise RuntimeError(f"the emulated control box did not start on {self.address}")

    def measured(self, positions: Array, velocities: Array) -> None:
        """See `EmulatedBus`."""
        self._link.positions[:], self._link.velocities[:] = positions, velocities
        if self._link.driven:
            self._command(self._link.targets.copy())

    def fault(self, text: str) -> None:
        """See `EmulatedBus`; the figure of `lost` is a share of the packets. `refused`: the box takes no motion;
        `slow_recovery`: it takes its time to recover. Those of the hand are its own."""
        from molmoact2_ros.simulation.emulators.fci_link import Fault

        name, figure = switch(text, self.FAULTS)
        self._link.fault = Fault[name.upper()], figure

    def close(self) -> None:
        """See `EmulatedBus`."""
        self._process.terminate()
        try:
            self._process.wait(3.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._link.close()


def fci_address(name: str) -> str:
    """A loopback address for the control box called `name`, so that several can run on one machine."""
    code = zlib.crc32(name.encode())
    return f"127.{64 + code % 64}.{code // 64 % 250 + 1}.{code // 16000 % 250 + 1}"


EMULATED_BUSES: dict[str, Callable[[Path, Callable[[Array], None], Array], EmulatedBus]] = {
    "so101": So101Bus,
    "yam": YamBuses,
    "franka": FrankaBox,
}
"""Emulated buses by robot."""
