"""The recorded episodes of a folder: what each is, whether it can be trusted, and what a person says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from molmoact2_ros.recording.audit import IMAGES, short

TRASH = ".trash"
_NAME = re.compile(r"episode_(\d+)(_recovered)?")
_INFORMATION = "rosbag2_bagfile_information"
IMAGE_GAP_S, JOINTS_GAP_S = 0.5, 0.25
"""Longer silences than a policy's own timeouts are told."""
STALE_SHARE, SKEW_S = 0.01, 0.1


@dataclass(frozen=True)
class Episode:
    """One bag.

    Attributes:
        path: its folder. number: of the episode. whole: whether it has its metadata.
        length_s: from the first to the last message. task, outcome: in words.
        mark: `good` or `bad` as a person said, or empty.
        verdict: what is wrong with it, one line each; empty for an episode that can be trusted.
        audit: counts by topic.
    """

    path: Path
    number: int
    whole: bool
    length_s: float = 0.0
    task: str = ""
    outcome: str = ""
    mark: str = ""
    verdict: tuple[str, ...] = ()
    audit: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_topics(self) -> list[str]:
        """Topics with images of its cameras."""
        return [topic for topic, kind in self.types.items() if kind in IMAGES and "/cameras/" in topic]

    def summary(self) -> dict[str, Any]:
        """For a program."""
        return {
            "episode": self.number,
            "path": str(self.path),
            "whole": self.whole,
            "length_s": round(self.length_s, 3),
            "task": self.task,
            "outcome": self.outcome,
            "mark": self.mark,
            "verdict": list(self.verdict),
        }


def _metadata(path: Path) -> dict[str, Any]:
    values = yaml.safe_load((path / "metadata.yaml").read_text())
    if not isinstance(values, dict) or not isinstance(values.get(_INFORMATION), dict):
        raise ValueError(f"{path / 'metadata.yaml'}: no metadata of a bag")
    return values


def verdict(custom: Mapping[str, str]) -> tuple[str, ...]:
    """What is wrong with an episode, from what its recorder counted; `custom` is the bag's custom_data."""
    lines = [custom["error"]] if "error" in custom else []
    if "audit" not in custom:
        return (*lines, "it was not audited: another program recorded it")
    lines += json.loads(custom.get("problems", "[]"))
    damaged = int(custom.get("damaged_chunks", "0"))
    if damaged:
        lines.append(f"{damaged} damaged chunks were left out")
    for topic, stream in json.loads(custom["audit"]).items():
        image = "missing" in stream
        limit = IMAGE_GAP_S if image else JOINTS_GAP_S if topic.endswith("joint_states") else float("inf")
        if stream["largest_gap_s"] > limit:
            lines.append(f"{short(topic)}: nothing for {stream['largest_gap_s']:.2f} s")
        if stream["messages"] and stream.get("stale", 0) > STALE_SHARE * stream["messages"]:
            share = 100.0 * stream["stale"] / stream["messages"]
            lines.append(f"{short(topic)}: {share:.0f} % arrived late")
        if stream.get("skew_s", 0.0) > SKEW_S:
            lines.append(f"{short(topic)}: {stream['skew_s']:.2f} s apart from the first camera")
    return tuple(lines)


def read_episode(path: Path) -> Episode:
    """The episode whose bag is the folder `path`.

    Raises:
        ValueError: the folder is no episode's, or its metadata cannot be read.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path}: an episode's folder is named episode_0001 and so on")
    number = int(match[1])
    if not (path / "metadata.yaml").is_file():
        return Episode(path, number, False, verdict=("unfinished; recover it",))
    try:
        information = _metadata(path)[_INFORMATION]
        topics = [entry["topic_metadata"] for entry in information["topics_with_message_count"]]
        custom = information.get("custom_data") or {}
        return Episode(
            path,
            number,
            True,
            information["duration"]["nanoseconds"] * 1e-9,
            custom.get("task", ""),
            custom.get("outcome", ""),
            custom.get("mark", ""),
            verdict(custom),
            json.loads(custom.get("audit", "{}")),
            {topic["name"]: topic["type"] for topic in topics},
        )
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path / 'metadata.yaml'} cannot be read as a bag's: {error}") from None


def episodes(directory: Path) -> list[Episode]:
    """The episodes in `directory`, by number.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder of bags")
    found = [read_episode(entry) for entry in directory.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name)]
    return sorted(found, key=lambda episode: (episode.number, episode.path.name))


def latest(directory: Path, most: int, but: str = "") -> Iterator[dict[str, Any]]:
    """`Episode.summary` of the last `most` episodes in `directory`, the newest first; none where there is no folder.

    A bag that cannot be read says so as its verdict. `but`: name of a folder that is left out.
    """
    entries = directory.iterdir() if directory.is_dir() else iter(())
    named = [(int(match[1]), path.name, path) for path in entries if (match := _NAME.fullmatch(path.name))]
    for number, name, path in sorted(named, reverse=True)[:most]:
        if name == but:
            continue
        try:
            yield read_episode(path).summary()
        except (OSError, ValueError) as error:
            yield Episode(path, number, False, verdict=(str(error),)).summary()


def episode_of(directory: Path, number: int) -> Path:
    """The whole bag of episode `number`, the recovered one where the first was left unfinished.

    Raises:
        FileNotFoundError: there is none.
    """
    for episode in episodes(directory):
        if episode.number == number and episode.whole:
            return episode.path
    raise FileNotFoundError(f"{directory}: no whole bag of episode {number}")


def label(path: Path, **said: str) -> None:
    """Write what a person says of the bag `path` (`task`, `outcome`, `mark`) into its metadata.

    What the recorder had written is kept as `recorded_task` and `recorded_outcome`. The messages are not touched.

    Raises:
        ValueError: the metadata cannot be read.
    """
    values = _metadata(path)
    custom = values[_INFORMATION].get("custom_data") or {}
    for key, text in said.items():
        if key in custom and key != "mark":
            custom.setdefault(f"recorded_{key}", custom[key])
        custom[key] = text
    values[_INFORMATION]["custom_data"] = custom
    scratch = path / "metadata.yaml.tmp"
    with scratch.open("w") as file:
        yaml.safe_dump(values, file, sort_keys=False)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path / "metadata.yaml")


def delete(directory: Path, number: int) -> list[Path]:
    """Move everything of episode `number` into the trash folder of `directory`; returns where it lies now.

    Raises:
        FileNotFoundError: there is no such episode.
    """
    moved = []
    for episode in episodes(directory):
        if episode.number == number:
            target = directory / TRASH / episode.path.name
            target.parent.mkdir(exist_ok=True)
            shutil.move(episode.path, target)
            moved.append(target)
    if not moved:
        raise FileNotFoundError(f"{directory}: no episode {number}")
    return moved
