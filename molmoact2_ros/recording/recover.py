"""Making a whole bag of what a killed recorder left: `python -m molmoact2_ros.recording.recover DIRECTORY`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmoact2_ros.recording.bag import Bag
from molmoact2_ros.recording.streams import Stream


def _readable(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """(schema, channel, message) of every message in the whole chunks of a possibly truncated MCAP file."""
    from mcap.exceptions import McapError
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader

    schemas: dict[int, Any] = {}
    channels: dict[int, Any] = {}
    with path.open("rb") as file:
        try:
            for record in StreamReader(file).records:
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    channel = channels[record.channel_id]
                    yield schemas[channel.schema_id], channel, record
        except McapError:
            return  # the end of what reached the disk


def recover(directory: Path) -> Path:
    """Write the messages of the unfinished bag `directory` into a new bag `<directory>_recovered`; return its path.

    The unfinished bag stays as it is.

    Raises:
        FileNotFoundError: there is no MCAP file.
        ValueError: the bag is not unfinished, or no whole chunk reached the disk.
    """
    files = sorted(directory.glob("*.mcap"))
    if not files:
        raise FileNotFoundError(f"{directory}: no .mcap file; give the directory of one episode")
    if (directory / "metadata.yaml").exists():
        raise ValueError(f"{directory} has a metadata.yaml: the bag was finished and needs no recovery")
    streams: dict[str, Stream] = {}
    for schema, channel, _ in _readable(files[0]):
        qos = channel.metadata.get("offered_qos_profiles", "")
        streams.setdefault(
            channel.topic,
            Stream(channel.topic, schema.name, "best_effort" not in qos, "transient_local" in qos),
        )
    if not streams:
        raise ValueError(f"{directory}: no whole chunk reached the disk; there is nothing to recover")
    bag = Bag(directory.with_name(directory.name + "_recovered"), list(streams.values()))
    for _, channel, message in _readable(files[0]):
        bag.write(channel.topic, message.data, message.log_time)
    bag.close({"recovered_from": directory.name})
    return bag.path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m molmoact2_ros.recording.recover DIRECTORY_OF_ONE_EPISODE")
    try:
        print(f"recovered: {recover(Path(sys.argv[1]))}")
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(str(error))
