"""Parameters of the recorder node, and how it listens to a stream."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rclpy.qos import QoSProfile, ReliabilityPolicy

from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_TOPICS
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.subscriptions import every_kind
from molmoact2_ros.recording.streams import Stream

PARAMETERS = (
    Parameter("directory", "bags", "Where the bags go: episode_0001, episode_0002, ..."),
    Parameter("cameras", ["front", "wrist"], "Cameras to record."),
    Parameter("raw", True, "Record image_raw of every camera."),
    Parameter("compressed", False, "Record image_raw/compressed of every camera."),
    Parameter("depth", False, "Record depth/image_raw of every camera."),
    JOINT_STATE_TOPICS,
    Parameter("topics", [""], "What else to record, such as force:geometry_msgs/msg/WrenchStamped."),
    Parameter("zstd", True, "Compress the chunks of the bag; about a tenth of a core for two small cameras."),
    Parameter("autostart_recording", True, "Follow sim/episode where it is there: one bag a running episode."),
    Parameter("checkpoint", "", "Checkpoint that drives the robot, for the bag's metadata."),
    Parameter("config_files", [""], "Parameter files whose text goes into the bag's metadata, one after the other."),
    Parameter("min_free_mb", 500, "Recording does not start with less room than this on the disk.", 0, 10**7),
    Parameter("stop_free_mb", 100, "A recording ends when less room than this is left.", 0, 10**7),
)


def message_class(msgtype: str) -> Any | None:
    """Class of `package/msg/Name`; None when the package is not installed."""
    package, kind, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError):
        return None


def subscription_qos(stream: Stream) -> tuple[QoSProfile, ...]:
    """What the recorder asks for: best effort where that is offered, and every kind of publisher of latched streams."""
    if stream.latched:
        return every_kind(stream.depth)
    reliability = ReliabilityPolicy.RELIABLE if stream.reliable else ReliabilityPolicy.BEST_EFFORT
    return (QoSProfile(depth=stream.depth, reliability=reliability),)


def episode_metadata(param: Callable[[str], Any], task: str, outcome: str) -> dict[str, str]:
    """What is known of an episode besides its messages; `param` gives the recorder's parameters."""
    try:
        software = version("molmoact2_ros")
    except PackageNotFoundError:  # run from the source tree
        software = "source"
    out = {
        "robot": str(param("robot")),
        "checkpoint": str(param("checkpoint")),
        "task": task,
        "outcome": outcome,
        "cameras": json.dumps(list(param("cameras"))),
        "molmoact2_ros": software,
    }
    files = [Path(file) for file in param("config_files") if file]
    if files:
        texts = (file.read_text() if file.is_file() else "# not found" for file in files)
        out["config"] = "---\n".join(f"# {file}\n{text}" for file, text in zip(files, texts, strict=True))
    return out
