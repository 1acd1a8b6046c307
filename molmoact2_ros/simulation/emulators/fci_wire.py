"""How Franka's control box and its hand talk: message layouts of FCI version 10, modes, errors, and a TCP client."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from enum import IntEnum

ROBOT_PORT, GRIPPER_PORT = 1337, 1338
ROBOT_VERSION, GRIPPER_VERSION = 10, 3
STATE = struct.Struct("<Q320fBB41s41sBf")
COMMAND = struct.Struct("<Q38d??7d?")
HEADER = struct.Struct("<III")
GRIPPER_HEADER = struct.Struct("<HII")
GRIPPER_STATE = struct.Struct("<Idd?H")
Q, Q_D, DQ, DQ_D, DDQ_D, THETA = 147, 154, 161, 168, 175, 270
"""Where each vector of seven begins among the state's numbers."""
MATRICES = range(0, 96, 16)

ERRORS: dict[str, int] = {
    "joint_reflex": 6,
    "joint_position_motion_generator_start_pose_invalid": 11,
    "joint_motion_generator_position_limits_violation": 12,
    "joint_motion_generator_velocity_limits_violation": 13,
    "joint_motion_generator_velocity_discontinuity": 14,
    "joint_motion_generator_acceleration_discontinuity": 15,
    "communication_constraints_violation": 25,
}
"""Those that are emulated, by their place among the state's 41 error bits."""


class Mode(IntEnum):
    """The robot's mode."""

    OTHER, IDLE, MOVE, GUIDING, REFLEX, USER_STOPPED, RECOVERY = range(7)


class Connection:
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
