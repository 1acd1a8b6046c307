"""Franka's control box on a loopback address: what pylibfranka talks to when there is no arm. A process of its own.

It streams the robot's state at 1 kHz and takes joint position commands (FCI version 10), answers motion, stop,
recovery and setter commands, and serves the Franka Hand. Commands that break the robot's limits are reflexes, with the
errors of the real box (`fci_rules`). Positions and targets are exchanged with the cell through shared memory
(`FciLink`), so that 1 kHz does not depend on what the cell's process computes. Not emulated: the other control modes,
torques and collisions, and the shell's voltage of safety functions.

Time: the real box takes a command that is not there after its millisecond as missing. On a machine without real time
both sides are late all the time, and for reasons that say nothing about the driver; so a millisecond here lasts until
its command has come, `patience_s` at most, and only then is the packet missing. What counts is still that there is one
command for each state, and that 20 missing ones in a row end the motion. With `patience_s` 0 the real rule holds.

    python -m molmoact2_ros.simulation.emulators.fci <address> <name of the shared memory> [<patience_s>]
"""

from __future__ import annotations

import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.franka_droid import FRANKA
from molmoact2_ros.simulation.emulators.fci_hand import EmulatedHand
from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink
from molmoact2_ros.simulation.emulators.fci_rules import MISSED_IN_A_ROW, STEP_S, MotionRules
from molmoact2_ros.simulation.emulators.fci_wire import (
    COMMAND,
    DDQ_D,
    DQ,
    DQ_D,
    ERRORS,
    GRIPPER_HEADER,
    GRIPPER_PORT,
    HEADER,
    MATRICES,
    Q_D,
    ROBOT_PORT,
    ROBOT_VERSION,
    STATE,
    THETA,
    Connection,
    Mode,
    Q,
)

Array = NDArray[np.float64]

PATIENCE_S = 0.025
"""20 of them are half a second."""
START_S = 0.5
"""A motion's first command may take so long: the real box lets the client begin when it is ready."""
RECOVERY_S = 1.5
"""How long error recovery takes under the fault `SLOW_RECOVERY`."""


def _model() -> str:
    """The model that libfranka asks for, as far as it reads it: seven joints with their limits."""
    arm = FRANKA.arm
    assert arm.offset is not None and arm.deceleration is not None
    text = "<robot name='fr3'><link name='link0'/>"
    for i in range(7):
        text += (
            f"<link name='link{i + 1}'/><joint name='joint{i + 1}' type='revolute'><parent link='link{i}'/>"
            f"<child link='link{i + 1}'/><axis xyz='0 0 1'/><limit lower='{arm.lower[i]}' "
            f"upper='{arm.upper[i]}' velocity='{arm.velocity[i]}' effort='87'/><position_based_velocity_limits "
            f"velocity_offset='{arm.offset[i]}' deceleration_limit='{arm.deceleration[i]}'/></joint>"
        )
    return text + "</robot>"


class ControlBox:
    """The box: call `step` when a millisecond has passed, and while it returns False when something has come."""

    def __init__(self, address: str, link: FciLink, seed: int = 0, patience_s: float = PATIENCE_S) -> None:
        self._address, self._link, self._patience_s = address, link, patience_s
        self._rng = np.random.default_rng(seed)
        self._listeners: dict[int, socket.socket] = {}
        self._client: Connection | None = None
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, 0))
        self.udp.setblocking(False)
        self.hand = EmulatedHand(link)
        self.mode = Mode.IDLE
        self.rules = MotionRules(FRANKA.arm, link.positions[:7])
        self.error = ""
        self._moving: int | None = None
        self._answered = self._begun = False
        self._sent_s = self._started_s = 0.0
        self._waited = 0
        self._state_lost = False
        self._recovery: tuple[float, int] | None = None
        self._frozen: Array | None = None
        self._tick = 0
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
        self._drop()
        self.udp.close()

    def step(self) -> bool:
        """One millisecond of the box; False while it waits for the command of the last one."""
        fault, figure = self._link.fault
        self._apply(fault)
        if fault is Fault.UNPLUG:
            self._drop()
            return True
        self._accept(fault)
        self._listen()
        self.hand.step(self._tick, self.udp)
        if not self._take_command(fault, figure):
            return False
        self._tick += 1
        self._answered, self._sent_s = False, time.monotonic()
        self._state_lost = fault is Fault.SILENT or self._lost(fault, figure)
        if self._client is not None and self._client.udp is not None and not self._state_lost:
            with suppress(OSError):
                self.udp.sendto(self._state(), self._client.udp)
        self._tell()
        return True

    # -- clients ------------------------------------------------------------------------------------------------------

    def _accept(self, fault: Fault) -> None:
        if not self._listeners:
            self._open()
        for port, listener in self._listeners.items():
            with suppress(BlockingIOError):
                link, _ = listener.accept()
                if port == GRIPPER_PORT and fault is Fault.HAND_GONE:
                    link.close()
                elif port == GRIPPER_PORT:
                    self.hand.clients.append(Connection(link, GRIPPER_HEADER))
                else:
                    self._forget()
                    self._client = Connection(link, HEADER)
        if fault is Fault.HAND_GONE:
            for client in tuple(self.hand.clients):
                self.hand.forget(client)

    def _listen(self) -> None:
        client = self._client
        messages = client.messages() if client is not None else []
        if messages is None:
            self._forget()
        for command, number, payload in messages or ():
            self._robot_command(command, number, payload)
        for one in tuple(self.hand.clients):
            messages = one.messages()
            if messages is None:
                self.hand.forget(one)
            for command, number, payload in messages or ():
                self.hand.command(one, command, number, payload)

    def _forget(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.link.close()
        if self._moving is not None:
            self._moving, self.mode = None, Mode.IDLE

    def _drop(self) -> None:
        self._forget()
        for client in tuple(self.hand.clients):
            self.hand.forget(client)
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    # -- the arm ------------------------------------------------------------------------------------------------------

    def _apply(self, fault: Fault) -> None:
        by_hand = {Fault.USER_STOP: Mode.USER_STOPPED, Fault.GUIDING: Mode.GUIDING}.get(fault)
        if by_hand is not None and self.mode is not by_hand:
            self._abort(3)
            self.mode = by_hand
        elif by_hand is None and self.mode in (Mode.USER_STOPPED, Mode.GUIDING):
            self.mode = Mode.IDLE
        elif fault is Fault.REFLEX and self.mode is not Mode.REFLEX:
            self._reflex("joint_reflex")
        if fault is not Fault.FROZEN:
            self._frozen = None
        elif self._frozen is None:
            self._frozen = self._link.positions.copy()

    def _abort(self, status: int) -> None:
        """End a motion with a response of `status`."""
        number, self._moving = self._moving, None
        if self._client is not None and number is not None:
            self._client.answer(1, number, bytes((status,)))

    def _reflex(self, error: str) -> None:
        self.error = error
        self._link.reflexes[ERRORS[error]] += 1.0
        print(f"control box: reflex {error} after {self.rules.commands} commands", file=sys.stderr, flush=True)
        self._abort(8)
        self.mode = Mode.REFLEX

    def _robot_command(self, command: int, number: int, payload: bytes) -> None:
        client = self._client
        assert client is not None
        if command == 0:
            version, port = struct.unpack("<HH", payload)
            client.udp = client.link.getpeername()[0], port
            client.answer(command, number, struct.pack("<BH", int(version != ROBOT_VERSION), ROBOT_VERSION))
        elif command == 1:
            generator = struct.unpack_from("<II", payload)[1]
            refused = self._link.fault[0] is Fault.REFUSED or not self.rules.rests
            if self.mode is not Mode.IDLE or generator != 0 or refused:
                client.answer(command, number, bytes((4 if self.mode is Mode.USER_STOPPED else 5,)))
                return
            self._moving, self.mode = number, Mode.MOVE
            self.rules.start(self.rules.position)
            self._begun, self._started_s = False, time.monotonic()
            client.answer(command, number, b"\x01")
        elif command == 2:
            self._abort(2)
            self.mode = Mode.IDLE if self.mode is Mode.MOVE else self.mode
            client.answer(command, number, b"\x00")
        elif command == 10:
            slow = RECOVERY_S if self._link.fault[0] is Fault.SLOW_RECOVERY else 0.0
            self._recovery = time.monotonic() + slow, number
        elif command == 11:
            client.answer(command, number, b"\x00" + _model().encode())
        else:
            client.answer(command, number, b"\x00")

    def _recover(self) -> None:
        if self._recovery is None or time.monotonic() < self._recovery[0]:
            return
        number, self._recovery = self._recovery[1], None
        still = self._link.fault[0] is Fault.REFLEX or self.mode is Mode.USER_STOPPED
        if not still:
            self.mode = Mode.IDLE
        if self._client is not None:
            self._client.answer(10, number, bytes((2 if still else 0,)))

    def _take_command(self, fault: Fault, figure: float) -> bool:
        """Take the command that answers the last state, or do what the box does without one. False: not decided yet."""
        self._recover()
        command = self._newest(fault, figure)
        if self._moving is None:
            self._stand()
            return True
        now = time.monotonic()
        if command is None and not self._begun:
            if now - self._started_s > START_S:
                self._reflex("communication_constraints_violation")
            return True
        if command is not None:
            self._begun = True
            error = self.rules.take(np.array(command[1:8]))
        elif self._answered or self._state_lost or now - self._sent_s >= self._patience_s:
            error = self.rules.miss()
        else:
            self._waited += 1
            return False
        if error:
            self._reflex(error)
            return True
        self._drive()
        if command is not None and command[40]:
            self._abort(0)
            self.mode = Mode.IDLE
        return True

    def _newest(self, fault: Fault, figure: float) -> tuple[float, ...] | None:
        """The command that answers the last state; one that answers an earlier state has come too late."""
        found = None
        with suppress(BlockingIOError):
            while True:
                data = self.udp.recv(4096)
                if len(data) != COMMAND.size:
                    continue
                command = COMMAND.unpack(data)
                if command[0] == self._tick or (not self._begun and command[0] > self._tick - MISSED_IN_A_ROW):
                    self._answered = True
                    found = None if self._lost(fault, figure) else command
        return found

    def _stand(self) -> None:
        """Without a motion: brake what still moves, and stay; an arm that is guided, or never moved, is where it is."""
        if not self.rules.rests:
            self.rules.brake()
            self._drive()
        elif self.mode is Mode.GUIDING or not self._link.driven:
            self.rules.start(self._link.positions[:7])

    def _drive(self) -> None:
        self._link.targets[:7] = self.rules.position
        self._link.drive()

    def _lost(self, fault: Fault, figure: float) -> bool:
        return fault is Fault.LOST and self._rng.random() < figure

    def _tell(self) -> None:
        rules = self.rules
        self._link.seen[:] = (
            rules.fastest,
            rules.bent,
            rules.jerked,
            rules.commands,
            rules.missed,
            rules.longest,
            self._waited,
        )

    def _state(self) -> bytes:
        values = np.zeros(320, np.float32)
        for start in MATRICES:
            values[[start, start + 5, start + 10, start + 15]] = 1.0
        where = self._link.positions if self._frozen is None else self._frozen
        moving = self._moving is not None
        values[Q : Q + 7] = values[THETA : THETA + 7] = where[:7]
        values[DQ : DQ + 7] = self._link.velocities[:7] if self._frozen is None else 0.0
        values[Q_D : Q_D + 7] = self.rules.position
        values[DQ_D : DQ_D + 7] = self.rules.velocity
        values[DDQ_D : DDQ_D + 7] = self.rules.acceleration
        errors = bytearray(41)
        if self.mode is Mode.REFLEX:
            errors[ERRORS[self.error]] = 1
        modes = (1, 0) if moving else (0, 3)
        return STATE.pack(self._tick, *values.tolist(), *modes, bytes(errors), bytes(errors), self.mode, 1.0)

    def summary(self) -> str:
        """What was commanded, in a line."""
        rules = self.rules
        reflexes = ", ".join(f"{n} {name}" for name, bit in ERRORS.items() if (n := int(self._link.reflexes[bit])))
        return (
            f"{rules.commands} commands, largest share of a velocity limit {rules.fastest:.3f}, acceleration "
            f"{rules.bent:.2f} rad/s2, jerk {rules.jerked:.0f} rad/s3; {rules.missed} missed, {rules.longest} at most "
            f"in a row, {self._waited} waits; reflexes: {reflexes or 'none'}"
        )


def main() -> None:
    """Run a box until SIGTERM or SIGINT."""
    address, name = sys.argv[1:3]
    patience_s = float(sys.argv[3]) if len(sys.argv) > 3 else PATIENCE_S
    link = FciLink(name, create=False)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.append(1))
    box = ControlBox(address, link, patience_s=patience_s)
    print("ready", flush=True)
    deadline = time.monotonic()
    while not ended:
        while not box.step() and not ended:
            select.select((box.udp,), (), (), STEP_S)
        deadline += STEP_S
        rest = deadline - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        elif rest < -0.05:
            deadline = time.monotonic()
    print(f"control box: {box.summary()}", file=sys.stderr, flush=True)
    box.close()
    link.close()


if __name__ == "__main__":
    main()
