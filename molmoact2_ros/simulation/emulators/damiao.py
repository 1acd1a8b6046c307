"""Damiao motors of one YAM arm on an emulated CAN bus: what i2rt talks to when there is no arm.

Motors answer enable, disable, clear, MIT frames and register reads and writes, protect themselves by a watchdog, and
drive a `Plant`. A motor with a position gain drives its joint to the commanded position; without one it lets the joint
be, as a motor does whose torque just balances gravity. The gripper's motor follows its torque to the stop. Not
emulated: torques as such, bit times, and the fall of a disabled arm, which stays where it is.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.yam_bimanual import GRIPPER_STROKE
from molmoact2_ros.simulation.emulators.can_link import FRAME, packed
from molmoact2_ros.simulation.emulators.plant import Plant

Array = NDArray[np.float64]

REGISTERS, READ, WRITE, SAVE = 0x7FF, 0x33, 0x55, 0xAA
ENABLE, DISABLE, SET_ZERO, CLEAR = 0xFC, 0xFD, 0xFE, 0xFB
DISABLED, NORMAL, OVER_TEMPERATURE, SILENT = 0x0, 0x1, 0xC, 0xD
TIMEOUT_REGISTER, TIMEOUT_TICK_S = 9, 50e-6
OVERHEATED_C = 100
GRIPPER_TURN = 6.57
"""Turn of the gripper's motor from closed to open, rad (i2rt's linear gripper)."""
GRIPPER_CLOSED = 0.5
"""Where the gripper's motor stands when the fingers are closed, rad; it turns back to open."""
_FREE_KP = 0.5


@dataclass
class Faults:
    """Fault switches; each may be set at any time from any thread.

    Attributes:
        silent: ids of motors that do not answer and do not act.
        frozen: ids of motors whose encoder repeats its last value.
        lost: share of the frames (0 to 1) that get lost, as corrupt ones do on a CAN bus.
        delay_s: answers come so much later.
        hot: temperatures in degrees C that motors report instead of their own, by id.
    """

    silent: frozenset[int] = frozenset()
    frozen: frozenset[int] = frozenset()
    lost: float = 0.0
    delay_s: float = 0.0
    hot: dict[int, int] = field(default_factory=dict)


def _coded(value: float, bound: float, bits: int) -> int:
    full = (1 << bits) - 1
    return round((min(bound, max(-bound, value)) + bound) * full / (2.0 * bound))


def _decoded(code: int, bound: float, bits: int) -> float:
    return code * 2.0 * bound / ((1 << bits) - 1) - bound


class Motor:
    """One motor: its state and registers.

    Args:
        number: its id on the bus.
        gear: gear ratio; 40 for DM4340, 10 for DM4310.
        speed, torque: the bounds of its codes, rad/s and Nm.
    """

    def __init__(self, number: int, gear: float, speed: float, torque: float) -> None:
        self.number, self.speed, self.torque = number, speed, torque
        self.state = DISABLED
        self.heard_s = 0.0
        self.target: float | None = None
        self.push = 0.0
        self.angle = self.rate = 0.0
        floats = {20: gear, 21: 12.5, 22: speed, 23: torque, 2: float(OVERHEATED_C)}
        whole = {7: number + 16, 8: number, TIMEOUT_REGISTER: 8000, 10: 1, 13: 1, 14: 5013, 35: 4}
        self.registers = {address: struct.pack("<f", value) for address, value in floats.items()}
        self.registers |= {address: struct.pack("<I", value) for address, value in whole.items()}

    def watch(self, now: float) -> None:
        """Switch off when nobody has spoken for longer than the watchdog allows."""
        limit = struct.unpack("<I", self.registers[TIMEOUT_REGISTER])[0] * TIMEOUT_TICK_S
        if self.state == NORMAL and limit > 0.0 and now - self.heard_s > limit:
            self.state, self.target, self.push = SILENT, None, 0.0

    def command(self, data: bytes, now: float) -> None:
        """Take a frame that is addressed to this motor."""
        self.heard_s = now
        if data[:7] == b"\xff" * 7:
            if data[7] == ENABLE and self.state in (DISABLED, NORMAL):
                self.state = NORMAL
            elif data[7] in (DISABLE, CLEAR) and not (data[7] == CLEAR and self.state == NORMAL):
                self.state = DISABLED
            self.target, self.push = None, 0.0
            return
        gain = ((data[3] & 0xF) << 8 | data[4]) * 500.0 / 4095.0
        self.target = _decoded(data[0] << 8 | data[1], 12.5, 16) if gain > _FREE_KP else None
        self.push = _decoded((data[6] & 0xF) << 8 | data[7], self.torque, 12) if gain <= _FREE_KP else 0.0

    def feedback(self, temperature: int) -> bytes:
        """The frame with which a motor answers."""
        angle, rate = _coded(self.angle, 12.5, 16), _coded(self.rate, self.speed, 12)
        effort = _coded(0.0, self.torque, 12)
        head = bytes((self.state << 4 | self.number, angle >> 8, angle & 0xFF, rate >> 4))
        return head + bytes(((rate & 0xF) << 4 | effort >> 8, effort & 0xFF, temperature, temperature))


def yam_motors() -> dict[int, Motor]:
    """The seven motors of one arm, by id: three DM4340, three DM4310, and the gripper's DM4310."""
    large = {i: Motor(i, 40.0, 10.0, 28.0) for i in (1, 2, 3)}
    return large | {i: Motor(i, 10.0, 30.0, 10.0) for i in (4, 5, 6, 7)}


class DamiaoBus:
    """The motors of one arm, on a bus that appears as the socket `link`. Use as a context manager.

    Args:
        plant: six joints in rad and the gripper's stroke in m, (7,).
        link: path of the socket.
        answer_s: time a motor takes to answer; with it i2rt's loop runs at about the 250 Hz of the real bus.
        seed: where lost frames come from.
    """

    def __init__(self, plant: Plant, link: Path, answer_s: float = 0.0004, seed: int = 0) -> None:
        self.plant, self.link = plant, link
        self.motors = yam_motors()
        self.faults = Faults()
        self._answer_s = answer_s
        self._rng = np.random.default_rng(seed)
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []
        self._ended = threading.Event()
        self._wanted = True
        self._thread = threading.Thread(target=self._serve, name=f"damiao {link.name}", daemon=True)

    def __enter__(self) -> DamiaoBus:
        self.link.parent.mkdir(parents=True, exist_ok=True)
        self._open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(5.0)
        self._shut()

    def unplug(self) -> None:
        """Pull the CAN adapter out: the channel is gone within some milliseconds. The motors keep their supply."""
        self._wanted = False

    def plug(self) -> None:
        """Put the adapter back."""
        self._wanted = True

    def _open(self) -> None:
        self.link.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(self.link))
        self._listener.listen(8)

    def _shut(self) -> None:
        for one in (*self._clients, self._listener):
            if one is not None:
                one.close()
        self._clients.clear()
        self._listener = None
        self.link.unlink(missing_ok=True)

    # -- the bus's thread ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._ended.is_set():
            if not self._wanted:
                if self._listener is not None:
                    self._shut()
                time.sleep(0.01)
                self._watch()
                continue
            if self._listener is None:
                self._open()
            with selectors.DefaultSelector() as selector:
                assert self._listener is not None
                selector.register(self._listener, selectors.EVENT_READ)
                for client in self._clients:
                    selector.register(client, selectors.EVENT_READ)
                # The set of ends changes rarely: go on with one selector until it does.
                while self._step(selector):
                    pass

    def _step(self, selector: selectors.BaseSelector) -> bool:
        """Serve what is there; False when the set of ends has changed or the bus is to end."""
        ready = selector.select(0.02)
        self._watch()
        for key, _ in ready:
            if key.fileobj is self._listener:
                assert self._listener is not None
                client, _ = self._listener.accept()
                client.setblocking(False)  # an end that does not listen loses frames; it does not stop the bus
                self._clients.append(client)
                return False
            one = key.fileobj
            assert isinstance(one, socket.socket)
            try:
                frame = one.recv(FRAME.size)
            except OSError:
                frame = b""
            if not frame:
                self._clients.remove(one)
                one.close()
                return False
            identifier, length, data = FRAME.unpack(frame)
            self._frame(identifier, data[:length])
        return self._wanted and not self._ended.is_set()

    def _watch(self) -> None:
        now = time.monotonic()
        for motor in self.motors.values():
            motor.watch(now)

    def _frame(self, identifier: int, data: bytes) -> None:
        if self._lost():
            return
        if identifier == REGISTERS:
            self._register(data)
            return
        motor = self.motors.get(identifier)
        if motor is None or motor.number in self.faults.silent or len(data) != 8:
            return
        motor.command(data, time.monotonic())
        if self.faults.hot.get(motor.number, 0) >= OVERHEATED_C:
            motor.state, motor.target = OVER_TEMPERATURE, None
        self._move()
        self._measure()
        self._answer(motor.number + 16, motor.feedback(self.faults.hot.get(motor.number, 35)))

    def _register(self, data: bytes) -> None:
        motor = self.motors.get(data[0])
        if motor is None or motor.number in self.faults.silent:
            return
        motor.heard_s = time.monotonic()
        if data[2] == WRITE and data[3] in motor.registers:
            motor.registers[data[3]] = data[4:8]
        value = motor.registers.get(data[3], b"\x00" * 4)
        self._answer(REGISTERS, data[:4] + value)

    def _lost(self) -> bool:
        return self.faults.lost > 0.0 and self._rng.random() < self.faults.lost

    def _answer(self, identifier: int, data: bytes) -> None:
        time.sleep(self._answer_s + self.faults.delay_s)
        if self._lost():
            return
        for client in self._clients:
            with suppress(OSError):
                client.send(packed(identifier, data))

    def _measure(self) -> None:
        positions, velocities = self.plant.joints()
        turn = -GRIPPER_TURN / GRIPPER_STROKE
        for number, motor in self.motors.items():
            if number in self.faults.frozen:
                continue
            j = number - 1
            if number == 7:
                motor.angle, motor.rate = GRIPPER_CLOSED + turn * float(positions[j]), turn * float(velocities[j])
            else:
                motor.angle, motor.rate = float(positions[j]), float(velocities[j])

    def _move(self) -> None:
        positions, _ = self.plant.joints()
        targets = np.array(positions, dtype=np.float64)
        for number, motor in self.motors.items():
            if motor.state != NORMAL or number in self.faults.silent:
                continue
            if number == 7:
                if motor.target is not None:
                    targets[6] = (GRIPPER_CLOSED - motor.target) * GRIPPER_STROKE / GRIPPER_TURN
                elif abs(motor.push) > 0.1:
                    targets[6] = 0.0 if motor.push > 0.0 else GRIPPER_STROKE
                targets[6] = min(GRIPPER_STROKE, max(0.0, targets[6]))
            elif motor.target is not None:
                targets[number - 1] = motor.target
        self.plant.drive(targets)
