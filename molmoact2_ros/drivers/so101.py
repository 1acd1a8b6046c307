"""SO-100/101 through lerobot's `SO101Follower`, unmodified, on a guarded serial port.

Degrees exist in this file only: lerobot's follower reports degrees about mid-range and a gripper in 0..100, which is
the embodiment's ARM frame. Calibration is made by `lerobot-calibrate` and checked in `so101_calibration.py`.

A reading is proven fresh by the exchange itself. The input buffer is empty when the request goes out, every servo
answers with a valid checksum within 25 ms, and the servos are asked in an order drawn anew each time: answers come in
the order asked for, so one that is late does not pass for the answer to a later request (but for one of 720 orders).
After a failed exchange the line must fall silent before the next request, and two readings in a row must succeed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Array, DriverError, Health, Reading, StaleError, hardware_package
from molmoact2_ros.drivers.so101_calibration import calibration_path, check_calibration, check_servos
from molmoact2_ros.drivers.so101_range import OwnRange
from molmoact2_ros.drivers.so101_servos import aim_where_it_is, complaints, counting_turns, keeping_torque, registers
from molmoact2_ros.embodiments import ModelFrame, embodiment

_EXCHANGE_S = 0.25
"""No exchange lasts longer: a line that never falls silent would keep lerobot's SDK reading for ever."""
_ANSWER_MS = 25.0
"""All answers to a request must have come by then. lerobot allows 50 ms; USB adapters hold bytes for 16 ms at most."""
_BLOCK_S = 0.002
"""The SDK polls the port without a pause; reads that wait this long for bytes leave the processor to others."""
_BY_ID = Path("/dev/serial/by-id")
GOAL_TOLERANCE = 0.3
"""A goal is kept as a whole step of the encoder: 0.09 degrees, of the gripper's range of 100 up to 0.1."""


@dataclass(frozen=True)
class So101Config:
    """How the arm is reached and what is normal for it.

    Attributes:
        port: serial port, best `/dev/serial/by-id/...`, which stays the same from boot to boot.
        calibration_id, calibration_dir: which calibration file of lerobot; an empty directory is lerobot's own.
        write_calibration: write the file's values to servos that hold others, instead of refusing them.
        torque_off_on_close: let the arm go limp when the driver ends; otherwise it holds where it is.
        temperature_warn, temperature_limit: of the hottest servo, degrees Celsius.
        voltage_range: supply voltage that is normal, V (the arm exists for 7.4 V and 12 V).
        quiet_s: silence on the line after a corrupt answer. late_s: after an answer that did not come in time.
    """

    port: str
    calibration_id: str = "so101"
    calibration_dir: str = ""
    write_calibration: bool = False
    torque_off_on_close: bool = False
    temperature_warn: float = 55.0
    temperature_limit: float = 65.0
    voltage_range: tuple[float, float] = (6.0, 13.0)
    quiet_s: float = 0.005
    late_s: float = 0.035


@dataclass
class LineCounters:
    """What the line did."""

    corrupt: int = 0
    late: int = 0
    stray_bytes: int = 0


@dataclass
class So101Driver:
    """See `drivers.driver.Driver`.

    Args:
        config: see `So101Config`.
        now_ns: clock of the readings' stamps, ns.
        sleep: waits so many seconds; used for the silences only.
        rng: draws the orders.
    """

    config: So101Config
    now_ns: Callable[[], int] = time.time_ns
    sleep: Callable[[float], None] = time.sleep
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    line: LineCounters = field(default_factory=LineCounters)

    LEADER: ClassVar[bool] = False
    """Whether it is a leader arm: lerobot calibrates it as another kind of device."""

    def __post_init__(self) -> None:
        self.robot = embodiment("so101")
        self._follower: Any = None
        self._range: OwnRange | None = None
        self._suspect = False
        self._settings_note = ""
        self._powered = False
        """The servos had torque when they were last heard of."""

    # -- Driver -------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the port, check servos and calibration, and power the servos at their measured positions.

        Servos that are powered already (the cable was pulled out and put back) are left as they are: powering them
        anew would let the arm fall.
        """
        self.disconnect()
        hardware_package("scservo_sdk", "so101", "Feetech's SDK (feetech-servo-sdk)")
        port = _checked_port(self.config.port)
        kind, arm = ("teleop", "so101_leader") if self.LEADER else ("robot", "so101_follower")
        command = (
            f"lerobot-calibrate --{kind}.type={arm} --{kind}.port={self.config.port} "
            f"--{kind}.id={self.config.calibration_id}"
        )
        if self.config.calibration_dir:
            command += f" --{kind}.calibration_dir={self.config.calibration_dir}"
        path = calibration_path(self.config.calibration_dir, self.config.calibration_id, self.LEADER)
        check_calibration(path, self.robot, command, self.LEADER)
        follower = self._make_follower(port, path.parent)
        bus = follower.bus
        try:
            _guard(bus.port_handler, self.line)
            bus.connect()
            check_servos(follower, path, command, self.config.write_calibration)
            self._power(follower, port)
        except (DriverError, StaleError):
            _abandon(follower)
            raise
        except Exception as error:  # lerobot, its SDK and pyserial raise what they like
            told = complaints(bus) if isinstance(error, RuntimeError) else ""
            _abandon(follower)
            raise DriverError(told or _explained(error, port)) from error
        self._range = OwnRange(follower.calibration, self.robot.joint_names)
        self._follower, self._suspect, self._powered = follower, False, True

    def read(self) -> Reading:
        """See `Driver`. Takes 1 to 3 ms on the real bus."""
        names = [self.robot.joint_names[j] for j in self.rng.permutation(self.robot.dof)]
        positions, stamp = self._exchange("positions", lambda bus: bus.sync_read("Present_Position", names), trust=True)
        vector = np.array([positions[name] for name in self.robot.joint_names])
        return Reading(stamp, self.robot.joints_from_model(vector, ModelFrame.ARM))

    def write(self, positions: Array) -> None:
        """See `Driver`. The servos do not acknowledge it; the next readings show whether they follow.

        Goals beyond the calibrated range end where it does: there is the joint's stop.
        """
        vector = self.robot.model_from_joints(positions, ModelFrame.ARM)
        if self._range is not None:
            self._range.note(vector)
            vector = self._range.keep(vector)
        goals = {f"{name}.pos": float(value) for name, value in zip(self.robot.joint_names, vector, strict=True)}
        self._exchange("the command", lambda _: self._follower.send_action(goals))

    def hold(self, positions: Array) -> None:
        """See `Driver`: its place is a goal like any other."""
        self.write(positions)

    def confirms(self, positions: Array) -> bool:
        """See `Driver`: the servos are asked for their goals."""
        goals, _ = self._exchange("the goals", lambda bus: bus.sync_read("Goal_Position"))
        kept = np.array([goals[name] for name in self.robot.joint_names])
        wanted = self.robot.model_from_joints(positions, ModelFrame.ARM)
        if self._range is not None:
            wanted = self._range.keep(wanted)
        return bool(np.all(np.abs(kept - wanted) <= GOAL_TOLERANCE))

    def health(self) -> Health:
        """Temperature, voltage and torque of every servo."""
        read = {}
        for name in ("Present_Temperature", "Present_Voltage", "Torque_Enable"):
            read[name], _ = self._exchange(name, partial(registers, name))
        temperatures, voltages, torque = read.values()
        if not any(torque.values()):
            self.disconnect()
            self._powered = False
            raise StaleError("no servo has torque: the arm was switched off and on; connecting anew")
        volts = {name: value / 10.0 for name, value in voltages.items()}
        values: dict[str, object] = {f"{name}.temperature_c": value for name, value in temperatures.items()}
        values |= {f"{name}.voltage_v": value for name, value in volts.items()}
        values |= {f"line.{name}": value for name, value in vars(self.line).items()}
        values["goals_held_at_range"] = 0 if self._range is None else self._range.held
        return Health(*self._judged(temperatures, volts, torque), values)

    def disconnect(self) -> None:
        """See `Driver`. Servos that hold go on holding."""
        follower, self._follower = self._follower, None
        if follower is not None:
            _abandon(follower)

    def close(self) -> None:
        """See `Driver`. Torque goes off first where the config asks for it.

        Raises:
            DriverError: servos keep their torque, or may; the message names them.
        """
        powered, self._powered = self._powered and self.config.torque_off_on_close, False
        kept = ""
        if powered:
            kept = "the arm is not connected" if self._follower is None else keeping_torque(self._follower.bus)
        self.disconnect()
        if kept:
            raise DriverError(
                f"{kept}: torque on {self.config.port} is not off; support the arm and switch its power off"
            )

    # -- inside -------------------------------------------------------------------------------------------------------

    def _make_follower(self, port: str, folder: Path) -> Any:
        from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

        config = SO101FollowerConfig(
            port=port,
            id=self.config.calibration_id,
            calibration_dir=folder,
            disable_torque_on_disconnect=False,
            use_degrees=True,
            # A retry inside lerobot would take an answer to the first try for one to the second.
            num_read_retries=0,
        )
        try:
            return SO101Follower(config)
        except Exception as error:  # it reads the calibration again, which may have changed meanwhile
            raise DriverError(_explained(error, port)) from error

    def _power(self, follower: Any, port: str) -> None:
        """Give the servos torque where they are, unless they hold already.

        Raises:
            DriverError: some hold and some do not, or the angles are not known.
        """
        bus = follower.bus
        powered = bus.sync_read("Torque_Enable", normalize=False)
        if not any(powered.values()):
            aim_where_it_is(bus)
            follower.configure()
        elif not all(powered.values()):
            names = ", ".join(name for name, on in powered.items() if not on)
            raise DriverError(
                f"{names} of the arm on {port} have no torque while the others hold: one servo has switched itself "
                "off (overload?); support the arm, switch its power off and on again"
            )
        elif turning := counting_turns(bus):
            raise DriverError(
                f"{', '.join(turning)} of the arm on {port} counts on over whole turns while the arm holds, so its "
                "angle is not known; support the arm, switch its power off and on again"
            )
        gain = follower.config.position_p_coefficient
        kept = bus.sync_read("P_Coefficient", normalize=False)
        self._settings_note = "" if set(kept.values()) == {gain} else f"position gains are {kept}, expected {gain}"

    def _exchange(self, what: str, talk: Callable[[Any], Any], trust: bool = False) -> tuple[Any, int]:
        """One request and its answers; returns them with the time at which the request went out.

        With `trust` the first success after a failure is not returned: the next one must confirm it.

        Raises:
            StaleError: an answer is missing, late or corrupt, or the line was not silent before.
        """
        if self._follower is None:
            raise StaleError("the arm is not connected")
        bus, line = self._follower.bus, self.line
        begun, stamp = time.monotonic(), self.now_ns()
        try:
            stray = bus.port_handler.ser.in_waiting
            result = None if stray else talk(bus)
        except Exception as error:  # lerobot, its SDK and pyserial raise what they like
            late = time.monotonic() - begun > 0.02
            line.late += late
            line.corrupt += not late
            self._settle(bus, self.config.late_s if late else self.config.quiet_s)
            raise StaleError(f"{what} failed: {_explained(error, self.config.port)}") from error
        if stray:
            self._settle(bus, self.config.late_s)
            raise StaleError(f"{stray} bytes on the line that nobody asked for; dropped, with what follows them")
        if trust and self._suspect:
            self._suspect = False
            raise StaleError(f"{what} after a failure: not trusted before a second answer")
        return result, stamp

    def _settle(self, bus: Any, silence_s: float) -> None:
        """Drop what comes until the line is silent for `silence_s`."""
        self._suspect = True
        port = bus.port_handler
        port.is_using = False
        with suppress(OSError):  # a port that is gone is found out by the next exchange
            for _ in range(10):
                self.sleep(silence_s)
                if not port.ser.in_waiting:
                    return
                self.line.stray_bytes += port.ser.in_waiting
                port.ser.reset_input_buffer()

    def _judged(
        self, temperatures: dict[str, int], volts: dict[str, float], torque: dict[str, int]
    ) -> tuple[Level, str]:
        config = self.config
        hottest = max(temperatures, key=lambda name: temperatures[name])
        heat, (low, high) = temperatures[hottest], config.voltage_range
        odd = {name: value for name, value in volts.items() if not low <= value <= high}
        limp = [name for name, on in torque.items() if not on]
        if heat >= config.temperature_limit:
            return Level.ERROR, (
                f"{hottest} is at {heat} degrees C (limit {config.temperature_limit:g}); let it cool down"
            )
        if limp:
            return Level.ERROR, (
                f"{', '.join(limp)} lost torque, probably by overload; support the arm, switch its power off and on"
            )
        if odd:
            return (
                Level.WARN,
                f"supply voltage {odd} V, expected {low:g} to {high:g} V; is the power supply the right one?",
            )
        if heat >= config.temperature_warn:
            return Level.WARN, f"{hottest} is at {heat} degrees C (limit {config.temperature_limit:g})"
        held = "" if self._range is None else self._range.told()
        if held or self._settings_note:
            return Level.WARN, held or self._settings_note
        return Level.OK, f"hottest servo {heat} degrees C"


def _checked_port(text: str) -> str:
    """Return the port if it is there and may be opened.

    Raises:
        DriverError: it is not, or may not; the message names the ports there are and the command that helps.
    """
    path = Path(text)
    if not text or not path.exists():
        known = ", ".join(sorted(map(str, _BY_ID.iterdir()))) if _BY_ID.is_dir() else "none"
        raise DriverError(f"no serial port {text!r}; is the USB cable in? ports of this machine: {known}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DriverError(f"no right to open {text}: sudo usermod -aG dialout $USER, then log in again")
    return text


def _guard(port: Any, line: LineCounters) -> None:
    """Make lerobot's port empty its input before each request, and never read for longer than an exchange may last.

    The SDK's own `clearPort` flushes the output and drops nothing: after a burst of corrupt answers every later read
    returns a position that is several requests old.
    """
    deadline = [0.0]

    def clear_port() -> None:
        if port.ser.timeout == 0:
            port.ser.timeout = _BLOCK_S
        port.ser.flush()
        line.stray_bytes += port.ser.in_waiting
        port.ser.reset_input_buffer()
        deadline[0] = time.monotonic() + _EXCHANGE_S

    def read_port(length: int) -> Any:
        if time.monotonic() > deadline[0]:
            raise TimeoutError(f"the line did not fall silent within {_EXCHANGE_S} s; is a servo broken?")
        return port.ser.read(length)

    def set_timeout(length: int) -> None:
        port.packet_start_time = port.getCurrentTime()
        port.packet_timeout = port.tx_time_per_byte * length + _ANSWER_MS

    port.clearPort, port.readPort, port.setPacketTimeout = clear_port, read_port, set_timeout


def _abandon(follower: Any) -> None:
    """Close the port without a word to the servos."""
    with suppress(Exception):
        follower.bus.port_handler.closePort()


def _explained(error: Exception, port: str) -> str:
    text = " ".join(str(error).split())
    if "motor check failed" in text:
        text = text.partition("Full expected")[0]
        return f"{text.strip()}: is every servo's cable in, and the arm's power on?"
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
        return f"{port} does not work any more ({text}); is the USB cable in?"
    return text or repr(error)
