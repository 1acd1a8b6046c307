"""Writing one bag: serialized messages in, a rosbag2 directory with MCAP storage and `metadata.yaml` out."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from molmoact2_ros.recording.audit import StreamAudit, audit_data, problems
from molmoact2_ros.recording.streams import DIAGNOSTICS, Stream

CHUNK_S = 1.0
"""A chunk is closed at least this often, so that a kill costs one second of a slow stream and not a megabyte of it."""
CHUNK_BYTES = 2**20
ABOUT = "molmoact2"
"""Name of the MCAP metadata record at the start of a file: robot, task, configuration, and what is recorded."""
RESERVE = ".reserve"
RESERVE_BYTES = 8 * 2**20
"""Room on the disk that is kept for the end of a bag, so that one on a full disk is still whole."""
DISTRIBUTION = "jazzy"
_UNLIMITED = {"sec": 9223372036, "nsec": 854775807}


def preload() -> None:
    """Load the writing library now: within the first message of an episode it would cost the messages of a second."""
    import mcap.writer  # noqa: F401

    _typestore()


@cache
def _typestore() -> Any:
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def offered_qos(stream: Stream) -> dict[str, Any]:
    """What the publishers of a stream offer, as rosbag2 writes it."""
    return {
        "history": "keep_last",
        "depth": 1 if stream.latched else stream.depth,
        "reliability": "reliable" if stream.reliable else "best_effort",
        "durability": "transient_local" if stream.latched else "volatile",
        "deadline": dict(_UNLIMITED),
        "lifespan": dict(_UNLIMITED),
        "liveliness": "automatic",
        "liveliness_lease_duration": dict(_UNLIMITED),
        "avoid_ros_namespace_conventions": False,
    }


class Output:
    """The file of a bag, with room on the disk in reserve for its end.

    Invariant: when the disk is full the reserve is given up once and `full` says so; what is written after that is
    meant to be the end of the file.
    """

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        self.path = path
        self.full = ""
        self.broken = False
        self._position = 0
        self._reserve = path.with_name(RESERVE)
        self._reserved = 0
        self._file = path.open("xb", buffering=0)
        with suppress(OSError):  # who looks for unfinished bags tells one that is being written from one that was left
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.reserve(reserve_bytes)

    def reserve(self, size: int) -> None:
        """Keep `size` bytes of the disk for the end.

        Raises:
            OSError: there is no such room.
        """
        if size > self._reserved and not self.full:
            with self._reserve.open("ab") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise  # other errors are of file systems that cannot keep room
            self._reserved = size

    def write(self, data: bytes | memoryview) -> None:
        """Append to the file."""
        rest = memoryview(data).cast("B")
        while rest:
            try:
                written = self._file.write(rest)
            except OSError as error:
                if self.full:
                    self.broken = True
                    raise
                self.full = str(error)
                self.release()
                continue
            self._position += written or 0
            rest = rest[written:]

    def release(self) -> None:
        """Give the reserve back."""
        self._reserve.unlink(missing_ok=True)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Nothing is kept back here.

        Raises:
            FileNotFoundError: the file or its folder was removed, or renamed.
        """
        mine = os.fstat(self._file.fileno())
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise FileNotFoundError(f"{self.path} was removed or renamed while it was being written")

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and give the reserve back; safe to call twice."""
        self._file.close()
        self.release()


class Bag:
    """One bag being written. Not thread-safe: one thread owns it.

    Invariant: what was written more than about `CHUNK_S` ago can be read from the file even if this process is killed.
    """

    def __init__(
        self,
        path: Path,
        streams: Sequence[Stream],
        zstd: bool = False,
        about: Mapping[str, str] | None = None,
        steady: Callable[[], float] = time.monotonic,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """Create the directory `path` and declare `streams` (their `topic` as it shall stand in the bag).

        `about` says what is known of the episode; it stands at the start of the file, so that a kill does not lose it.

        Raises:
            FileExistsError: `path` is there already; a bag is never overwritten.
            OSError: there is no room for it.
        """
        from mcap.writer import CompressionType, Writer

        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"{path} exists already; a bag is never overwritten") from None
        self.path = path
        self.audits = {stream.topic: StreamAudit(stream.msgtype, stream.topic) for stream in streams}
        self._streams = tuple(streams)
        self._about = dict(about or {})
        self._steady = steady
        self._chunk_began: float | None = None
        self._smallest_reserve = reserve_bytes
        try:
            self._output = Output(path / f"{path.name}.mcap", reserve_bytes)
            compression = CompressionType.ZSTD if zstd else CompressionType.NONE
            self._writer = Writer(self._output, CHUNK_BYTES, compression)  # type: ignore[arg-type]
            self._writer.start("ros2", "molmoact2_ros")
            listed = json.dumps([asdict(stream) for stream in streams])
            self._writer.add_metadata(ABOUT, {**self._about, "streams": listed})
            self._channels = self._declare(streams)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def _declare(self, streams: Sequence[Stream]) -> dict[str, int]:
        schemas: dict[str, int] = {}
        channels = {}
        for stream in streams:
            if stream.msgtype not in schemas:
                text, _ = _typestore().generate_msgdef(stream.msgtype, ros_version=2)
                schemas[stream.msgtype] = self._writer.register_schema(stream.msgtype, "ros2msg", text.encode())
            metadata = {
                "offered_qos_profiles": yaml.safe_dump([offered_qos(stream)], sort_keys=False),
                "topic_type_hash": _typestore().hash_rihs01(stream.msgtype),
            }
            channels[stream.topic] = self._writer.register_channel(
                stream.topic, "cdr", schemas[stream.msgtype], metadata
            )
        return channels

    @property
    def full(self) -> str:
        """Why no more can be written: the disk is full. The bag must be closed now, for which there is room."""
        return self._output.full

    def write(self, topic: str, data: bytes, received_ns: int) -> None:
        """Write one serialized message (CDR) that was received at `received_ns`.

        Raises:
            OSError: the disk failed, or the folder is gone.
        """
        self._output.reserve(self._smallest_reserve + 2 * len(data) if len(data) > CHUNK_BYTES else 0)
        self._writer.add_message(self._channels[topic], received_ns, data, received_ns)
        self.audits[topic].add(data, received_ns)
        if self._chunk_began is None:
            self._chunk_began = self._steady()
        self.tick()

    def tick(self) -> None:
        """Close the pending chunk if it is due; for when no message comes."""
        if self._chunk_began is not None and self._steady() - self._chunk_began > CHUNK_S:
            self.flush()

    def flush(self) -> None:
        """Close the pending chunk and hand it to the operating system.

        Raises:
            OSError: the disk failed, or the folder is gone.
        """
        self._writer.flush()
        self._chunk_began = None

    def close(self, custom: Mapping[str, str]) -> None:
        """Write the summary and `metadata.yaml` with what is known of the episode, `custom` and the audit in it.

        Raises:
            OSError: the disk failed, or the folder is gone.
        """
        if self._output.broken:
            raise OSError(self.full)
        self.flush()
        told = {**self._about, **custom, "audit": json.dumps(audit_data(self.audits))}
        told["problems"] = json.dumps(problems(self.audits))
        information = self._information(told)
        self._output.release()
        self._writer.add_metadata("rosbag2", {"serialized_metadata": yaml.safe_dump(information, sort_keys=False)})
        self._writer.finish()
        self._output.sync()
        self._output.close()
        scratch = self.path / "metadata.yaml.tmp"
        with scratch.open("w") as file:
            yaml.safe_dump({"rosbag2_bagfile_information": information}, file, sort_keys=False)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path / "metadata.yaml")

    def _information(self, custom: Mapping[str, str]) -> dict[str, Any]:
        began = [audit.first_ns for audit in self.audits.values() if audit.first_ns is not None]
        ended = [audit.last_ns for audit in self.audits.values() if audit.last_ns is not None]
        start = min(began, default=0)
        span = {
            "duration": {"nanoseconds": max(0, max(ended, default=0) - start)},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": self.messages,
        }
        name = f"{self.path.name}.mcap"
        return {
            "version": 9,
            "storage_identifier": "mcap",
            "relative_file_paths": [name],
            **span,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": stream.topic,
                        "type": stream.msgtype,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": [offered_qos(stream)],
                        "type_description_hash": _typestore().hash_rihs01(stream.msgtype),
                    },
                    "message_count": self.audits[stream.topic].messages,
                }
                for stream in self._streams
            ],
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": name, **copy.deepcopy(span)}],
            "custom_data": dict(custom),
            "ros_distro": DISTRIBUTION,
        }

    def abort(self) -> None:
        """Let go of the file as it is."""
        self._output.close()

    @property
    def messages(self) -> int:
        """Messages written so far."""
        return sum(audit.messages for audit in self.audits.values())

    @property
    def nothing_came(self) -> bool:
        """No robot was heard; the recorder itself speaks on /diagnostics."""
        return not any(audit.messages for topic, audit in self.audits.items() if topic != DIAGNOSTICS)
