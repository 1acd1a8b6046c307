"""A CAN bus as a Unix socket: python-can's side of it. Interface name `molmoact2_link`, channel the socket's path.

Every frame goes to everybody on the bus but its sender, whole and in order, as on a wire; arbitration and bit times are
not emulated.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Any

import can

FRAME = struct.Struct("<IB8s")
"""Arbitration id, length, data padded to 8 bytes."""


def packed(identifier: int, data: bytes) -> bytes:
    """Return a frame as it travels."""
    return FRAME.pack(identifier, len(data), data)


class LinkBus(can.BusABC):
    """One end on the bus.

    Raises:
        can.CanInitializationError: nobody has put up the bus.
    """

    def __init__(self, channel: str, **kwargs: Any) -> None:
        self.channel_info = f"emulated bus {channel}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(channel)
        except OSError as error:
            self._socket.close()
            self._is_shutdown = True
            raise can.CanInitializationError(f"no emulated bus {channel}: {error.strerror}") from error
        super().__init__(channel=channel, **kwargs)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Send a frame; raises CanOperationError when the bus is gone."""
        try:
            self._socket.send(packed(msg.arbitration_id, bytes(msg.data)))
        except OSError as error:
            raise can.CanOperationError(f"{self.channel_info}: {error.strerror}") from error

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        try:
            if not select.select([self._socket], [], [], timeout)[0]:
                return None, False
            frame = self._socket.recv(FRAME.size)
        except (OSError, ValueError) as error:
            raise can.CanOperationError(f"{self.channel_info}: {error}") from error
        if not frame:
            raise can.CanOperationError(f"{self.channel_info}: the bus is gone")
        identifier, length, data = FRAME.unpack(frame)
        message = can.Message(
            timestamp=time.time(), arbitration_id=identifier, data=data[:length], is_extended_id=False
        )
        return message, False

    def fileno(self) -> int:
        """The socket, for select."""
        return self._socket.fileno()

    def shutdown(self) -> None:
        """Leave the bus; safe to call twice."""
        super().shutdown()
        self._socket.close()
