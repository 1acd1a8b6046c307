"""The emulated Franka Hand (version 3 of its protocol): fingers that take their time, and hold what is between them.

`move` goes to a width; `grasp` closes until something is in the way and then presses on; `stop` stops the fingers where
they are, and lets go of what a grasp pressed, as libfranka's maintainers describe it. A new command aborts the one
before. What the real hand answers before it was homed is not documented; here it fails, and its largest width is 0.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from contextlib import suppress

from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink
from molmoact2_ros.simulation.emulators.fci_wire import GRIPPER_STATE, GRIPPER_VERSION, Connection

MAX_WIDTH = 0.08
FASTEST = 0.1
"""Of the width, m/s."""
STATES_TICKS = 20
SETTLED_M, AHEAD_M, RESTING_S = 0.001, 0.002, 0.1
"""A finger has arrived this close to its goal; it rests against something when its goal has been so far ahead, and it
has not moved, for so long."""
_HOMING, _GRASP, _MOVE, _STOP = 1, 2, 3, 4
_SUCCESS, _FAIL, _UNSUCCESSFUL, _ABORTED = range(4)


class EmulatedHand:
    """Fingers by their half width, m: `step` every millisecond, at which the goal goes on at the commanded speed."""

    def __init__(self, link: FciLink) -> None:
        self._link = link
        self.clients: list[Connection] = []
        self._doing: tuple[Connection, int, int] | None = None
        self._wanted = self._goal = float(link.targets[7])
        self._speed = FASTEST / 2.0
        self._stepped_s = time.monotonic()
        self._rested: deque[tuple[float, float]] = deque()
        self.grasped = False

    def command(self, client: Connection, command: int, number: int, payload: bytes) -> None:
        """Take a message of a client."""
        fault = self._link.fault[0]
        if command == 0:
            version, port = struct.unpack("<HH", payload)
            client.udp = client.link.getpeername()[0], port
            client.answer(command, number, struct.pack("<HH", int(version != GRIPPER_VERSION), GRIPPER_VERSION))
            return
        self._link.hand[command - 1] += 1.0
        self._end(_ABORTED)
        if command == _STOP:
            self._wanted = self._goal = float(self._link.positions[7])
            self._link.targets[7], self.grasped = self._goal, False
            client.answer(command, number, struct.pack("<H", _SUCCESS))
        elif fault is Fault.HAND_REFUSED or (fault is Fault.HAND_UNHOMED and command != _HOMING):
            client.answer(command, number, struct.pack("<H", _FAIL))
        else:
            width, speed = MAX_WIDTH, FASTEST
            if command == _MOVE:
                width, speed = struct.unpack_from("<dd", payload)
            elif command == _GRASP:
                width, _, _, speed = struct.unpack_from("<dddd", payload)
            self._wanted, self._speed = min(MAX_WIDTH, max(0.0, width)) / 2.0, min(speed, FASTEST) / 2.0
            self._goal, self.grasped = float(self._link.positions[7]), False
            self._doing = client, command, number
            self._rested.clear()
            self._link.drive()

    def forget(self, client: Connection) -> None:
        """A client has gone; what it began goes on."""
        self.clients.remove(client)
        client.link.close()
        if self._doing is not None and self._doing[0] is client:
            self._doing = None

    def step(self, tick: int, udp: socket.socket) -> None:
        """One millisecond: move the goal, answer a motion that has ended, send states."""
        now = time.monotonic()
        since, self._stepped_s = now - self._stepped_s, now
        if self._doing is not None:
            self._move(now, since)
        if tick % STATES_TICKS or self._link.fault[0] in (Fault.HAND_SILENT, Fault.SILENT):
            return
        homed = self._link.fault[0] is not Fault.HAND_UNHOMED
        width = 2.0 * float(self._link.positions[7])
        state = GRIPPER_STATE.pack(tick, width, MAX_WIDTH if homed else 0.0, self.grasped, 30)
        for client in self.clients:
            if client.udp is not None:
                with suppress(OSError):
                    udp.sendto(state, client.udp)

    def _move(self, now: float, since: float) -> None:
        assert self._doing is not None
        position, way = float(self._link.positions[7]), self._wanted - self._goal
        self._goal += max(-self._speed * since, min(self._speed * since, way))
        hard = self._link.object_m
        blocked = position >= hard > self._goal
        self._link.targets[7] = hard if blocked else self._goal
        self._rested.append((now, position))
        while now - self._rested[0][0] > RESTING_S:
            self._rested.popleft()
        still = now - self._rested[0][0] > 0.8 * RESTING_S and abs(self._rested[0][1] - position) < 2e-4
        if self._goal == self._wanted and abs(position - self._wanted) < SETTLED_M:
            self.grasped = self._doing[1] == _GRASP
            self._end(_SUCCESS)
        elif still and abs(position - self._goal) > AHEAD_M:
            self.grasped = self._doing[1] == _GRASP
            if self.grasped and not blocked:
                self._link.targets[7] = self._wanted  # presses on
            self._end(_SUCCESS if self.grasped else _UNSUCCESSFUL)

    def _end(self, status: int) -> None:
        doing, self._doing = self._doing, None
        if doing is not None:
            client, command, number = doing
            client.answer(command, number, struct.pack("<H", status))
