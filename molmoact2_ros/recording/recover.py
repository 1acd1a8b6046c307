"""Making a whole bag of what a killed recorder left: `python -m molmoact2_ros.recording.recover DIRECTORY`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molmoact2_ros.recording.bag import ABOUT, Bag
from molmoact2_ros.recording.streams import Stream


@dataclass
class Found:
    """What is readable of a damaged file.

    Attributes:
        about: what the recorder knew of the episode when it began.
        streams: by channel number. messages: how many. damaged: chunks whose checksum is wrong.
        zstd: whether chunks are compressed.
    """

    about: dict[str, str] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    messages: int = 0
    damaged: int = 0
    zstd: bool = False


def being_written(directory: Path) -> bool:
    """Whether a recorder has the bag `directory` open."""
    for path in directory.glob("*.mcap"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
    return False


def _records(path: Path) -> Iterator[Any]:
    """The records of a possibly damaged MCAP file, chunks as they are, up to the first that cannot be parsed."""
    from mcap.stream_reader import StreamReader

    with path.open("rb") as file:
        records = StreamReader(file, emit_chunks=True, record_size_limit=path.stat().st_size).records
        while True:
            try:
                record = next(records)
            except Exception:  # the end of what reached the disk: any parse error that half a record may cause
                return
            yield record


def _readable(path: Path, found: Found) -> Iterator[Any]:
    """Every message in the whole chunks of a possibly damaged file; `found` is filled on the way."""
    from mcap.records import Channel, Chunk, Message, Metadata, Schema
    from mcap.stream_reader import breakup_chunk

    schemas: dict[int, str] = {}
    for outer in _records(path):
        if isinstance(outer, Metadata) and outer.name == ABOUT:
            found.about = dict(outer.metadata)
            listed = json.loads(found.about.pop("streams", "[]"))
            found.streams = {number: Stream(**values) for number, values in enumerate(listed, 1)}
        inner = [outer]
        if isinstance(outer, Chunk):
            found.zstd = outer.compression == "zstd"
            try:
                inner = breakup_chunk(outer, validate_crc=True)
            except Exception:  # a flipped byte, or zeros where the end should be; the next chunk may be whole
                found.damaged += 1
                continue
        for record in inner:
            if isinstance(record, Schema):
                schemas[record.id] = record.name
            elif isinstance(record, Channel) and record.id not in found.streams:
                qos = record.metadata.get("offered_qos_profiles", "")
                name = schemas.get(record.schema_id, "")
                found.streams[record.id] = Stream(
                    record.topic, name, "best_effort" not in qos, "transient_local" in qos
                )
            elif isinstance(record, Message) and record.channel_id in found.streams:
                found.messages += 1
                yield record


def recover(directory: Path) -> Path:
    """Write the messages of the unfinished bag `directory` into a new bag `<directory>_recovered`; return its path.

    The unfinished bag stays as it is. Nothing of the new one is left when it cannot be finished.

    Raises:
        FileNotFoundError: there is no MCAP file.
        FileExistsError: it was recovered before.
        ValueError: the bag is not unfinished, or no whole chunk reached the disk.
        OSError: the disk is full.
    """
    files = sorted(directory.glob("*.mcap"))
    if not files:
        raise FileNotFoundError(f"{directory}: no .mcap file; give the directory of one episode")
    if (directory / "metadata.yaml").exists():
        raise ValueError(f"{directory} has a metadata.yaml: the bag was finished and needs no recovery")
    if being_written(directory):
        raise ValueError(f"{directory} is being written by a recorder; stop that first")
    found = Found()
    for _ in _readable(files[0], found):
        pass
    if not found.messages:
        raise ValueError(f"{directory}: no whole chunk reached the disk; there is nothing to recover")
    target = directory.with_name(directory.name + "_recovered")
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it to recover {directory.name} again")
    folder = directory.with_name(f".recovering_{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _copy(files[0], folder / target.name, directory.name, found)
        (folder / target.name).rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _copy(source: Path, target: Path, name: str, found: Found) -> None:
    bag = Bag(target, list(found.streams.values()), found.zstd, found.about)
    try:
        for message in _readable(source, Found()):
            bag.write(found.streams[message.channel_id].topic, message.data, message.log_time)
            if bag.full:
                raise OSError(f"cannot write {target}: {bag.full}")
        bag.close({"recovered_from": name, "damaged_chunks": str(found.damaged)})
    except BaseException:
        bag.abort()
        raise


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m molmoact2_ros.recording.recover DIRECTORY_OF_ONE_EPISODE")
    try:
        print(f"recovered: {recover(Path(sys.argv[1]))}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
