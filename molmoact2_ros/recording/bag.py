"""Writing one bag: serialized messages in, a rosbag2 directory with MCAP storage and `metadata.yaml` out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from molmoact2_ros.recording.streams import Stream

CHUNK_S = 1.0
"""A chunk is closed at least this often, so that a kill costs one second of a slow stream and not a megabyte of it."""


@dataclass
class StreamAudit:
    """What one stream of a bag came to.

    Attributes:
        messages, bytes: how much of it was written.
        dropped: messages that arrived but found the queue full.
        first_ns, last_ns: receive times, ns; None when nothing came.
        largest_gap_s: longest time between two messages, s.
    """

    messages: int = 0
    bytes: int = 0
    dropped: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    largest_gap_s: float = 0.0

    def add(self, size: int, received_ns: int) -> None:
        """Count one written message."""
        if self.last_ns is not None:
            self.largest_gap_s = max(self.largest_gap_s, (received_ns - self.last_ns) * 1e-9)
        self.first_ns = received_ns if self.first_ns is None else self.first_ns
        self.last_ns = received_ns
        self.messages += 1
        self.bytes += size

    @property
    def rate_hz(self) -> float | None:
        """Mean rate, or None for fewer than two messages."""
        if self.first_ns is None or self.last_ns is None or self.last_ns <= self.first_ns:
            return None
        return (self.messages - 1) * 1e9 / (self.last_ns - self.first_ns)


def audit_lines(audits: dict[str, StreamAudit]) -> list[str]:
    """The audit for a reader: one line a stream that has messages, one for all that stayed silent."""
    lines, silent = [], []
    for topic, audit in audits.items():
        if not audit.messages and not audit.dropped:
            silent.append(topic)
            continue
        rate = "" if audit.rate_hz is None else f", {audit.rate_hz:.1f} Hz, largest gap {audit.largest_gap_s:.3f} s"
        lost = f", {audit.dropped} DROPPED" if audit.dropped else ""
        lines.append(f"{topic}: {audit.messages}{rate}{lost}")
    if silent:
        lines.append("nothing on: " + ", ".join(silent))
    return lines


def preload() -> None:
    """Load the writing library now: within the first message of an episode it would cost the messages of a second."""
    from rosbags.rosbag2 import Writer as _  # noqa: F401

    _typestore()


@cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def _offered_qos(stream: Stream) -> Any:
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    unlimited = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if stream.latched else stream.depth,
        QosReliability.RELIABLE if stream.reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if stream.latched else QosDurability.VOLATILE,
        unlimited,
        unlimited,
        QosLiveliness.AUTOMATIC,
        unlimited,
        False,
    )


class Bag:
    """One bag being written. Not thread-safe: one thread owns it.

    Invariant: what was written more than about `CHUNK_S` ago can be read from the file even if this process is killed.
    """

    def __init__(self, path: Path, streams: Sequence[Stream], zstd: bool = False) -> None:
        """Create the directory `path` and declare `streams` (their `topic` as it shall stand in the bag).

        Raises:
            FileExistsError: `path` is there already; a bag is never overwritten.
        """
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

        if path.exists():
            raise FileExistsError(f"{path} exists already; a bag is never overwritten")
        self.path = path
        self.audits = {stream.topic: StreamAudit() for stream in streams}
        self._writer: Any = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        if zstd:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._connections = {
            stream.topic: self._writer.add_connection(
                stream.topic, stream.msgtype, typestore=_typestore(), offered_qos_profiles=[_offered_qos(stream)]
            )
            for stream in streams
        }
        self._chunk_begin_ns: int | None = None

    def write(self, topic: str, data: bytes, received_ns: int) -> None:
        """Write one serialized message (CDR) that was received at `received_ns`."""
        self._writer.write(self._connections[topic], received_ns, data)
        self.audits[topic].add(len(data), received_ns)
        if self._chunk_begin_ns is None:
            self._chunk_begin_ns = received_ns
        elif received_ns - self._chunk_begin_ns > CHUNK_S * 1e9:
            self.flush()

    def flush(self) -> None:
        """Close the pending chunk and hand it to the operating system."""
        storage = self._writer.storage
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        self._chunk_begin_ns = None

    def close(self, custom: dict[str, str]) -> None:
        """Write the summary and `metadata.yaml` with `custom` and the audit in its `custom_data`."""
        audit = {topic: asdict(audit) for topic, audit in self.audits.items()}
        for key, value in {**custom, "audit": json.dumps(audit)}.items():
            self._writer.set_custom_data(key, value)
        self._writer.close()

    def abort(self) -> None:
        """Let go of the file as it is."""
        self._writer.abort()

    @property
    def messages(self) -> int:
        """Messages written so far."""
        return sum(audit.messages for audit in self.audits.values())
