"""Franka's control box on a loopback address: what pylibfranka talks to when there is no arm. A process of its own.

It streams the robot's state at 1 kHz and takes joint position commands (FCI version 10), answers motion, stop,
recovery and setter commands, and serves the Franka Hand (version 3). Positions and targets are exchanged with the cell
through shared memory (`FciLink`), so that 1 kHz does not depend on what the cell's process computes. Not emulated: the
other control modes, torques and collisions, the shell's voltage of safety functions, and strict real time: a motion is
aborted after `PATIENCE_S` without a command, where the real box allows 20 ms.

    python -m molmoact2_ros.simulation.emulators.fci <address> <name of the shared memory>
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.franka_droid import FRANKA
from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink

Array = NDArray[np.float64]

ROBOT_PORT, GRIPPER_PORT = 1337, 1338
ROBOT_VERSION, GRIPPER_VERSION = 10, 3
STATE = struct.Struct("<Q320fBB41s41sBf")
COMMAND = struct.Struct("<Q38d??7d?")
HEADER = struct.Struct("<III")
GRIPPER_HEADER = struct.Struct("<HII")
GRIPPER_STATE = struct.Struct("<Idd?H")
PERIOD_S, PATIENCE_S = 0.001, 0.25
MAX_WIDTH = 0.08
FASTEST = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
"""FR3's velocity limits, rad/s; a command that is faster aborts the motion."""
_COLLISION, _DISCONTINUITY, _LATE = 6, 14, 25
"""Bits of the errors: joint reflex, discontinuous velocity of the commands, no commands in time."""
_Q, _Q_D, _DQ, _DQ_D, _THETA = 147, 154, 161, 168, 270
_MATRICES = range(0, 96, 16)


class Mode(IntEnum):
    """The robot's mode."""

    OTHER, IDLE, MOVE, GUIDING, REFLEX, USER_STOPPED, RECOVERY = range(7)


def _model() -> str:
    """The model that libfranka asks for, as far as it reads it: seven joints with their limits."""
    offset, deceleration = FRANKA.arm.offset, FRANKA.arm.deceleration
    assert offset is not None and deceleration is not None
    text = "<robot name='fr3'><link name='link0'/>"
    for i in range(7):
        text += (
            f"<link name='link{i + 1}'/><joint name='joint{i + 1}' type='revolute'><parent link='link{i}'/>"
            f"<child link='link{i + 1}'/><axis xyz='0 0 1'/><limit lower='{FRANKA.limits.lower[i]}' "
            f"upper='{FRANKA.limits.upper[i]}' velocity='{FASTEST[i]}' effort='87'/><position_based_velocity_limits "
            f"velocity_offset='{offset[i]}' deceleration_limit='{deceleration[i]}'/></joint>"
        )
    return text + "</robot>"


class _Connection:
    """A client on a TCP port, with the UDP port that it wants states on."""

    def __init__(self, link: socket.socket, header: struct.Struct) -> None:
        link.setblocking(False)
        self.link, self.header = link, header
        self.buffer = b""
        self.udp: tuple[str, int] | None = None

    def messages(self) -> list[tuple[int, int, bytes]] | None:
        """Messages that have come: command, id, payload; None when the client has gone."""
        try:
            data = self.link.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.buffer += data
        found = []
        while len(self.buffer) >= self.header.size:
            command, number, size = self.header.unpack_from(self.buffer)
            if len(self.buffer) < size:
                break
            found.append((command, number, self.buffer[self.header.size : size]))
            self.buffer = self.buffer[size:]
        return found

    def answer(self, command: int, number: int, payload: bytes) -> None:
        """Send a response."""
        with suppress(OSError):
            self.link.send(self.header.pack(command, number, self.header.size + len(payload)) + payload)


class ControlBox:
    """The box: call `step` every millisecond."""

    def __init__(self, address: str, link: FciLink, seed: int = 0) -> None:
        self._address, self._link = address, link
        self._rng = np.random.default_rng(seed)
        self._listeners: dict[int, socket.socket] = {}
        self._clients: dict[int, _Connection | None] = {ROBOT_PORT: None, GRIPPER_PORT: None}
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((address, 0))
        self._udp.setblocking(False)
        self.mode = Mode.IDLE
        self._moving: int | None = None
        self._started_s = self._heard_s = 0.0
        self._commanded: Array = np.zeros(7)
        self._speed: Array = np.zeros(7)
        self._frozen: Array | None = None
        self._tick = self._error = 0
        self._late: list[tuple[float, bytes]] = []
        self._gripping: tuple[int, int, float] | None = None
        self._open()

    def _open(self) -> None:
        for port in (ROBOT_PORT, GRIPPER_PORT):
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._address, port))
            listener.listen(2)
            listener.setblocking(False)
            self._listeners[port] = listener

    def close(self) -> None:
        """Close every socket."""
        for one in (*self._listeners.values(), *(c.link for c in self._clients.values() if c is not None), self._udp):
            one.close()

    def step(self) -> None:
        """One millisecond of the box."""
        self._tick += 1
        fault, figure = self._link.fault
        self._apply(fault)
        if fault is Fault.UNPLUG:
            self._drop()
            return
        self._accept()
        for port, client in self._clients.items():
            messages = client.messages() if client is not None else []
            if messages is None:
                self._forget(port)
                continue
            for command, number, payload in messages:
                if port == ROBOT_PORT:
                    self._robot_command(command, number, payload)
                else:
                    self._gripper_command(command, number, payload)
        self._take_commands(fault, figure)
        self._grip()
        self._send_states(fault, figure)

    # -- clients ------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        if not self._listeners:
            self._open()
        for port, listener in self._listeners.items():
            with suppress(BlockingIOError):
                link, _ = listener.accept()
                self._forget(port)
                header = HEADER if port == ROBOT_PORT else GRIPPER_HEADER
                self._clients[port] = _Connection(link, header)

    def _forget(self, port: int) -> None:
        client, self._clients[port] = self._clients[port], None
        if client is not None:
            client.link.close()
        if port == ROBOT_PORT and self._moving is not None:
            self._moving, self.mode = None, Mode.IDLE

    def _drop(self) -> None:
        for port in list(self._clients):
            self._forget(port)
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    # -- the arm ------------------------------------------------------------------------------------------------------

    def _apply(self, fault: Fault) -> None:
        if fault is Fault.USER_STOP and self.mode is not Mode.USER_STOPPED:
            self._abort(3)
            self.mode = Mode.USER_STOPPED
        elif fault is not Fault.USER_STOP and self.mode is Mode.USER_STOPPED:
            self.mode = Mode.IDLE
        elif fault is Fault.REFLEX and self.mode is not Mode.REFLEX:
            self._reflex(_COLLISION)
        if fault is not Fault.FROZEN:
            self._frozen = None
        elif self._frozen is None:
            self._frozen = self._link.positions.copy()

    def _abort(self, status: int) -> None:
        """End a motion with a response of `status`."""
        client, number = self._clients[ROBOT_PORT], self._moving
        self._moving = None
        if client is not None and number is not None:
            client.answer(1, number, bytes((status,)))

    def _reflex(self, error: int) -> None:
        self._error = error
        self._abort(8)
        self.mode = Mode.REFLEX

    def _robot_command(self, command: int, number: int, payload: bytes) -> None:
        client = self._clients[ROBOT_PORT]
        assert client is not None
        if command == 0:
            version, port = struct.unpack("<HH", payload)
            client.udp = client.link.getpeername()[0], port
            client.answer(command, number, struct.pack("<BH", int(version != ROBOT_VERSION), ROBOT_VERSION))
        elif command == 1:
            generator = struct.unpack_from("<II", payload)[1]
            if self.mode is not Mode.IDLE or generator != 0:
                client.answer(command, number, bytes((4 if self.mode is Mode.USER_STOPPED else 5,)))
                return
            self._moving, self.mode = number, Mode.MOVE
            self._commanded, self._speed = self._link.positions[:7].copy(), np.zeros(7)
            self._heard_s = time.monotonic()
            client.answer(command, number, b"\x01")
        elif command == 2:
            self._abort(2)
            self.mode = Mode.IDLE if self.mode is Mode.MOVE else self.mode
            client.answer(command, number, b"\x00")
        elif command == 10:
            still = self._link.fault[0] is Fault.REFLEX or self.mode is Mode.USER_STOPPED
            if not still:
                self.mode = Mode.IDLE
            client.answer(command, number, bytes((2 if still else 0,)))
        elif command == 11:
            client.answer(command, number, b"\x00" + _model().encode())
        else:
            client.answer(command, number, b"\x00")

    def _take_commands(self, fault: Fault, figure: float) -> None:
        now = time.monotonic()
        newest = None
        with suppress(BlockingIOError):
            while True:
                data = self._udp.recv(4096)
                if len(data) == COMMAND.size and not self._lost(fault, figure):
                    newest = COMMAND.unpack(data)
        if self._moving is None:
            return
        if newest is None:
            if now - self._heard_s > PATIENCE_S:
                self._reflex(_LATE)
            return
        wanted = np.array(newest[1:8])
        elapsed = max(PERIOD_S, now - self._heard_s)
        self._heard_s = now
        # Commands come unevenly on a machine without real time: what counts is the way per time that has passed.
        if np.any(np.abs(wanted - self._commanded) > 1.5 * FASTEST * (elapsed + 0.02)):
            self._reflex(_DISCONTINUITY)
            return
        self._speed = (wanted - self._commanded) / elapsed
        self._commanded = wanted
        self._link.targets[:7] = wanted
        self._link.drive()
        if newest[40]:
            self._abort(0)
            self.mode = Mode.IDLE

    def _lost(self, fault: Fault, figure: float) -> bool:
        return fault is Fault.LOST and self._rng.random() < figure

    def _send_states(self, fault: Fault, figure: float) -> None:
        if fault is Fault.SILENT:
            return
        robot, gripper = self._clients[ROBOT_PORT], self._clients[GRIPPER_PORT]
        now = time.monotonic()
        if robot is not None and robot.udp is not None and not self._lost(fault, figure):
            self._late.append((now + (figure if fault is Fault.DELAY else 0.0), self._state()))
            while self._late and self._late[0][0] <= now:
                _, state = self._late.pop(0)
                with suppress(OSError):
                    self._udp.sendto(state, robot.udp)
        if gripper is not None and gripper.udp is not None and self._tick % 20 == 0:
            width = 2.0 * float(self._link.positions[7])
            state = GRIPPER_STATE.pack(self._tick, width, MAX_WIDTH, False, 30)
            with suppress(OSError):
                self._udp.sendto(state, gripper.udp)

    def _state(self) -> bytes:
        values = np.zeros(320, np.float32)
        for start in _MATRICES:
            values[[start, start + 5, start + 10, start + 15]] = 1.0
        where = self._link.positions if self._frozen is None else self._frozen
        moving = self._moving is not None
        values[_Q : _Q + 7] = values[_THETA : _THETA + 7] = where[:7]
        values[_Q_D : _Q_D + 7] = self._commanded if moving else where[:7]
        values[_DQ : _DQ + 7] = self._link.velocities[:7] if self._frozen is None else 0.0
        values[_DQ_D : _DQ_D + 7] = self._speed if moving else 0.0
        errors = bytearray(41)
        if self.mode is Mode.REFLEX:
            errors[self._error] = 1
        modes = (1, 0) if moving else (0, 3)
        return STATE.pack(self._tick, *values.tolist(), *modes, bytes(errors), bytes(errors), self.mode, 1.0)

    # -- the hand -----------------------------------------------------------------------------------------------------

    def _gripper_command(self, command: int, number: int, payload: bytes) -> None:
        client = self._clients[GRIPPER_PORT]
        assert client is not None
        if command == 0:
            version, port = struct.unpack("<HH", payload)
            client.udp = client.link.getpeername()[0], port
            client.answer(command, number, struct.pack("<HH", int(version != GRIPPER_VERSION), GRIPPER_VERSION))
            return
        if self._gripping is not None:  # a new command ends the one before
            client.answer(self._gripping[0], self._gripping[1], struct.pack("<H", 3))
            self._gripping = None
        if command in (1, 2, 3):
            width = struct.unpack_from("<d", payload)[0] if payload else MAX_WIDTH
            self._link.targets[7] = min(MAX_WIDTH, max(0.0, width)) / 2.0
            self._link.drive()
            self._gripping = command, number, time.monotonic()
        else:
            self._link.targets[7] = self._link.positions[7]
            client.answer(command, number, struct.pack("<H", 0))

    def _grip(self) -> None:
        """Answer a motion of the fingers when they have arrived, or rest against something."""
        client = self._clients[GRIPPER_PORT]
        if client is None or self._gripping is None:
            return
        command, number, begun = self._gripping
        arrived = abs(self._link.positions[7] - self._link.targets[7]) < 0.001
        resting = abs(self._link.velocities[7]) < 0.001 and time.monotonic() - begun > 0.3
        if arrived or resting:
            client.answer(command, number, struct.pack("<H", 0 if arrived or command == 2 else 2))
            self._gripping = None


def main() -> None:
    """Run a box until SIGTERM or SIGINT."""
    address, name = sys.argv[1:3]
    link = FciLink(name, create=False)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    box = ControlBox(address, link)
    print("ready", flush=True)
    deadline = time.monotonic()
    while not ended:
        box.step()
        deadline += PERIOD_S
        rest = deadline - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        elif rest < -0.05:
            deadline = time.monotonic()
    box.close()
    link.close()


if __name__ == "__main__":
    main()
