"""A bus of Feetech STS3215 servos on a pseudo-terminal: what lerobot's `SO101Follower` talks to when there is no arm.

The servos keep registers, answer pings, reads, writes and their synchronous forms, and drive a `Plant`. Register
addresses and the packet form are those of Feetech's STS series (protocol 0). Not emulated: the time that bytes take at
1 Mbaud, the lock of the EPROM, currents, and gravity on a servo without torque, which stays where it is.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
import tty
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.simulation.emulators.plant import Plant

Array = NDArray[np.float64]

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
BROADCAST = 0xFE
RADIANS_A_TICK = 2.0 * np.pi / 4096.0
MIDDLE = 2047.5
MODEL = 777
OVERHEATED_C = 70
"""A servo sets its overheating bit at this temperature."""
MULTI_TURN = 0x10
"""The bit of the phase register with which a servo counts on over whole turns."""

# Registers: address (and two bytes from there where the value is wider).
_MODEL, _ID, _BAUD, _LOWEST, _HIGHEST, _PHASE, _HOMING = 3, 5, 6, 9, 11, 18, 31
_TORQUE, _GOAL, _POSITION, _VELOCITY, _VOLTAGE, _TEMPERATURE, _MOVING = 40, 42, 56, 58, 62, 63, 66
_SIZE = 96


@dataclass
class Faults:
    """Fault switches; each may be set at any time from any thread.

    Attributes:
        silent: ids of servos that do not answer and do not act.
        frozen: ids of servos whose encoder repeats its last value.
        corrupt: share of the answers (0 to 1) that lose a bit on the way.
        delay_s: answers come so much later.
        hot: temperatures in degrees C that servos report instead of their own, by id.
        limp: ids of servos that have switched off their torque.
        overloaded: ids of servos that do as they are told and report an overload with every answer.
    """

    silent: frozenset[int] = frozenset()
    frozen: frozenset[int] = frozenset()
    corrupt: float = 0.0
    delay_s: float = 0.0
    hot: dict[int, int] = field(default_factory=dict)
    limp: frozenset[int] = frozenset()
    overloaded: frozenset[int] = frozenset()


def _word(data: bytearray, address: int, sign_bit: int = 0) -> int:
    value = data[address] | data[address + 1] << 8
    if sign_bit and value >> sign_bit & 1:
        return -(value & (1 << sign_bit) - 1)
    return value


def _put(data: bytearray, address: int, value: int, sign_bit: int = 0) -> None:
    if value < 0:
        value = -value | 1 << sign_bit
    data[address : address + 2] = value.to_bytes(2, "little")


class Servo:
    """One servo: its registers, and where its joint's zero lies on its encoder.

    Args:
        number: its id on the bus.
        zero: the joint angle at the middle of the encoder's calibrated range, rad.
        lowest, highest: position limits, ticks, as calibration leaves them.
        homing: ticks between the encoder's own zero and the calibrated one.

    Attributes:
        turns: whole turns that it has counted since it was switched on; they show where it counts over turns.
    """

    def __init__(self, number: int, zero: float, lowest: int, highest: int, homing: int) -> None:
        self.number, self._zero, self._mount = number, zero, homing
        self.turns = 0
        self.registers = bytearray(_SIZE)
        self.registers[0:2] = bytes((3, 10))
        _put(self.registers, _MODEL, MODEL)
        self.registers[_ID] = number
        _put(self.registers, _LOWEST, lowest)
        _put(self.registers, _HIGHEST, highest)
        _put(self.registers, _HOMING, homing, 11)
        self.registers[_VOLTAGE], self.registers[_TEMPERATURE] = 74, 32

    def measure(self, position: float, velocity: float) -> None:
        """Take the joint's angle, rad, and speed, rad/s, into the registers."""
        ticks = MIDDLE + (position - self._zero) / RADIANS_A_TICK + self._mount - _word(self.registers, _HOMING, 11)
        count = round(ticks) + 4096 * self.turns if self._counts_turns else round(ticks) % 4096
        _put(self.registers, _POSITION, count, 15)
        speed = round(velocity / RADIANS_A_TICK)
        _put(self.registers, _VELOCITY, max(-32767, min(32767, speed)), 15)
        self.registers[_MOVING] = int(abs(speed) > 10)

    def target(self) -> float | None:
        """The joint angle that the servo drives to, rad; None without torque."""
        if self.registers[_TORQUE] != 1:
            return None
        low, high = _word(self.registers, _LOWEST), _word(self.registers, _HIGHEST)
        goal = _word(self.registers, _GOAL, 15)
        goal = goal - 4096 * self.turns if self._counts_turns else max(low, min(high, goal))
        return float((goal + _word(self.registers, _HOMING, 11) - self._mount - MIDDLE) * RADIANS_A_TICK + self._zero)

    @property
    def _counts_turns(self) -> bool:
        return bool(self.registers[_PHASE] & MULTI_TURN)

    def write(self, address: int, data: bytes) -> None:
        """Write registers; those that only the servo sets stay as they are."""
        for offset, value in enumerate(data):
            if _ID <= address + offset < _POSITION:
                self.registers[address + offset] = value


def so101_servos() -> dict[int, Servo]:
    """The six servos of an SO-101, calibrated as lerobot does it, by id."""
    robot = embodiment("so101")
    servos = {}
    for j, name in enumerate(robot.joint_names):
        low, high = float(robot.limits.lower[j]), float(robot.limits.upper[j])
        zero = (low + high) / 2.0 if name == "gripper" else 0.0
        if name == "wrist_roll":  # lerobot gives the roll its whole turn
            lowest, highest = 0, 4095
        else:
            reach = (high - low) / 2.0 / RADIANS_A_TICK
            lowest, highest = round(MIDDLE - reach), round(MIDDLE + reach)
        servos[j + 1] = Servo(j + 1, zero, lowest, highest, homing=100 * j - 250)
    return servos


def write_calibration(servos: dict[int, Servo], folder: Path, name: str) -> Path:
    """Write the calibration file that lerobot would have written for these servos, and return its path."""
    entries = {}
    for joint, (number, servo) in zip(embodiment("so101").joint_names, sorted(servos.items()), strict=True):
        data = servo.registers
        entries[joint] = {
            "id": number,
            "drive_mode": 0,
            "homing_offset": _word(data, _HOMING, 11),
            "range_min": _word(data, _LOWEST),
            "range_max": _word(data, _HIGHEST),
        }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(entries, indent=4))
    return path


class FeetechBus:
    """Servos on a pseudo-terminal that appears as `link`. Use as a context manager.

    Args:
        plant: the joints, in the order of the servos' ids.
        link: path of the symbolic link to the port, as udev would make it under /dev/serial/by-id.
        servos: by id; by default those of an SO-101.
        seed: where the corrupted bits come from.
    """

    def __init__(self, plant: Plant, link: Path, servos: dict[int, Servo] | None = None, seed: int = 0) -> None:
        self.plant, self.link = plant, link
        self.servos = servos if servos is not None else so101_servos()
        self.faults = Faults()
        self.requests = 0
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._master: int | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._ended = threading.Event()
        self._answers: deque[tuple[float, bytes]] = deque()
        self._buffer = bytearray()
        self._thread = threading.Thread(target=self._serve, name="feetech bus", daemon=True)

    def __enter__(self) -> FeetechBus:
        self.plug()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        os.write(self._wake_write, b"x")
        self._thread.join(5.0)
        self.unplug()
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def plugged(self) -> bool:
        """True while the port is there."""
        return self._master is not None

    def plug(self) -> None:
        """Put the USB cable in: the port appears. The servos have their own supply and kept their state."""
        with self._lock:
            if self._master is not None:
                return
            self._master, slave = os.openpty()
            tty.setraw(slave)
            self.link.parent.mkdir(parents=True, exist_ok=True)
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(os.ttyname(slave))
            os.set_blocking(self._master, False)
            self._slave = slave  # held open: without a holder the master reports a hang-up until somebody opens it
            self._buffer.clear()
        os.write(self._wake_write, b"x")

    def power_cycle(self) -> None:
        """Switch the arm's supply off and on: no servo has torque, and goals are gone."""
        with self._lock:
            for servo in self.servos.values():
                servo.registers[_TORQUE] = 0
                _put(servo.registers, _GOAL, 0)

    def unplug(self) -> None:
        """Pull the USB cable out: the port is gone, reads and writes on it fail."""
        with self._lock:
            if self._master is None:
                return
            self.link.unlink(missing_ok=True)
            os.close(self._slave)
            os.close(self._master)
            self._master = None
            self._answers.clear()
        with suppress(OSError):
            os.write(self._wake_write, b"x")

    # -- the bus's thread ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._ended.is_set():
            wait = max(0.0, self._answers[0][0] - time.monotonic()) if self._answers else 0.5
            watched = [self._wake_read] + ([self._master] if self._master is not None else [])
            try:
                ready, _, _ = select.select(watched, [], [], wait)
            except (OSError, ValueError):  # unplugged between the two lines
                continue
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            with self._lock:
                if self._master is None:
                    continue
                if self._master in ready:
                    with suppress(BlockingIOError, OSError):
                        self._buffer += os.read(self._master, 4096)
                    self._parse()
                self._send_due()

    def _parse(self) -> None:
        buffer = self._buffer
        while True:
            start = buffer.find(b"\xff\xff")
            if start < 0 or len(buffer) < start + 4:
                return
            end = start + 4 + buffer[start + 3]
            if len(buffer) < end:
                return
            packet = bytes(buffer[start + 2 : end])
            del buffer[:end]
            if packet[-1] == ~sum(packet[:-1]) & 0xFF:
                self.requests += 1
                self._execute(packet[0], packet[2], packet[3:-1])

    def _execute(self, number: int, instruction: int, data: bytes) -> None:
        if instruction == SYNC_READ:
            self._measure()
            address, length, *asked = data
            for one in asked:
                self._answer(one, bytes(self._registers(one)[address : address + length]))
        elif instruction == SYNC_WRITE:
            address, length = data[0], data[1]
            step = length + 1
            for at in range(2, len(data) - length, step):
                self._write(data[at], address, data[at + 1 : at + step])
            self._drive()
        else:
            asked = sorted(self.servos) if number == BROADCAST else [number]
            for one in asked:
                if instruction == PING:
                    self._answer(one, b"")
                elif instruction == READ:
                    self._measure()
                    self._answer(one, bytes(self._registers(one)[data[0] : data[0] + data[1]]))
                elif instruction == WRITE:
                    self._write(one, data[0], data[1:])
                    self._drive()
                    self._answer(one, b"")

    def _registers(self, number: int) -> bytearray:
        servo = self.servos.get(number)
        if servo is None:
            return bytearray(_SIZE)
        registers = bytearray(servo.registers)
        registers[_TEMPERATURE] = self.faults.hot.get(number, registers[_TEMPERATURE])
        return registers

    def _write(self, number: int, address: int, data: bytes) -> None:
        servo = self.servos.get(number)
        if servo is None or number in self.faults.silent:
            return
        if address == _TORQUE and data[:1] == b"\x01" and servo.registers[_TORQUE] != 1:
            self._measure()
        servo.write(address, data)

    def _measure(self) -> None:
        positions, velocities = self.plant.joints()
        for j, (number, servo) in enumerate(sorted(self.servos.items())):
            if number in self.faults.limp:
                servo.registers[_TORQUE] = 0
            if number not in self.faults.frozen:
                servo.measure(float(positions[j]), float(velocities[j]))

    def _drive(self) -> None:
        positions, _ = self.plant.joints()
        targets = np.array(positions, dtype=np.float64)
        for j, (_, servo) in enumerate(sorted(self.servos.items())):
            target = servo.target()
            if target is not None:
                targets[j] = target
        self.plant.drive(targets)

    def _answer(self, number: int, data: bytes) -> None:
        if number not in self.servos or number in self.faults.silent:
            return
        error = 4 if self._registers(number)[_TEMPERATURE] >= OVERHEATED_C else 0
        error |= 32 if number in self.faults.overloaded else 0
        body = bytes((number, len(data) + 2, error)) + data
        packet = bytearray(b"\xff\xff" + body + bytes((~sum(body) & 0xFF,)))
        if self.faults.corrupt and self._rng.random() < self.faults.corrupt:
            packet[int(self._rng.integers(2, len(packet)))] ^= 1 << int(self._rng.integers(0, 8))
        self._answers.append((time.monotonic() + self.faults.delay_s, bytes(packet)))

    def _send_due(self) -> None:
        now = time.monotonic()
        assert self._master is not None
        while self._answers and self._answers[0][0] <= now:
            _, packet = self._answers.popleft()
            with suppress(BlockingIOError, OSError):
                os.write(self._master, packet)
