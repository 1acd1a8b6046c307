"""Reading a bag, ours or another's (rosbag2, MCAP or sqlite3), and which topic of it is what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from molmoact2_ros.recording.audit import IMAGES
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions

JOINTS = "sensor_msgs/msg/JointState"
COMMANDS = (JOINTS, "trajectory_msgs/msg/JointTrajectory", "std_msgs/msg/Float64MultiArray")
STRING = "std_msgs/msg/String"
MAPPED = "joints, action, camera.<name>"


class Source:
    """A bag that is open for reading; nothing in it is ever written. Use as a context manager.

    Attributes:
        types: message type of every topic that has messages.
        about: what its recorder knew of the episode (`custom_data`); empty for another's bag.

    Raises:
        ExportError: it is no bag, or was left unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._reader: Any = None
        self.types: dict[str, str] = {}
        self.about: dict[str, str] = {}

    def __enter__(self) -> Self:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore

        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            raise ExportError(
                f"{self.path} has no metadata.yaml: its recorder was cut off; make it whole first: python -m "
                f"molmoact2_ros.recording.recover {self.path} (another's bag: ros2 bag reindex {self.path})"
            )
        try:
            self._reader = AnyReader([self.path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
            self._stack.enter_context(self._reader)
            if self.path.is_dir():
                values = yaml.safe_load((self.path / "metadata.yaml").read_text())
                self.about = dict(values["rosbag2_bagfile_information"].get("custom_data") or {})
        except Exception as error:  # whatever a damaged or foreign file makes of its readers
            self._stack.close()
            raise ExportError(f"{self.path} cannot be read as a bag: {error}") from None
        self.types = {c.topic: c.msgtype for c in self._reader.connections if c.msgcount}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """Topic, receive time, ns, and bytes (CDR) of every message on `topics`, in order of time.

        Raises:
            ExportError: the bag ends, or is damaged, in the middle.
        """
        wanted = set(topics)
        connections = [c for c in self._reader.connections if c.topic in wanted]
        messages = self._reader.messages(connections=connections) if connections else iter(())
        while True:
            try:
                connection, received_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:
                raise ExportError(
                    f"{self.path} is damaged: {error!r}; remove its metadata.yaml and recover what is before (python "
                    "-m molmoact2_ros.recording.recover), or leave the bag out"
                ) from None
            yield connection.topic, received_ns, data

    def decoded(self, topic: str, data: bytes) -> Any:
        """The message in `data`.

        Raises:
            ExportError: it cannot be read.
        """
        try:
            return self._reader.deserialize(data, self.types[topic])
        except Exception as error:
            raise ExportError(f"{self.path}: a message on {topic} cannot be read: {error!r}") from None


@dataclass(frozen=True)
class Topics:
    """Which topic of a bag is what; empty where it has none.

    Attributes:
        joints: the joint states'. commands: what was sent to the arm. cameras: each camera's images.
        task: what to do. driving: who decides where the arm goes, a tick (a Header whose frame_id says it).
    """

    joints: tuple[str, ...]
    commands: str
    cameras: Mapping[str, str]
    task: str = ""
    driving: str = ""


def topics_of(source: Source, options: ExportOptions) -> Topics:
    """Find the topics of a bag of this package, or those that the topic map names.

    Raises:
        ExportError: something is missing or ambiguous; the message has what there is.
    """
    return _mapped(source, options) if options.topics else _own(source, options)


def _own(source: Source, options: ExportOptions) -> Topics:
    robot = source.about.get("robot", "")
    if robot and robot != options.robot:
        raise ExportError(
            f"{source.path} was recorded on {robot}, and {options.robot} is exported; one robot a dataset"
        )
    namespaces = sorted({found[1] for topic in source.types if (found := re.match(r"(.*)/cameras/[^/]+/", topic))})
    namespace = "/" + options.namespace.strip("/") if options.namespace else ""
    if not namespaces or (namespace and namespace not in namespaces):
        raise ExportError(
            f"{source.path} has no {namespace or '/<robot>'}/cameras/<name>/image_raw, only {_listed(source.types)}; "
            f"for the bag of another system say which topic is what: --map KEY=TOPIC, with {MAPPED}"
        )
    if not namespace and len(namespaces) > 1:
        raise ExportError(f"{source.path} has several robots: {', '.join(namespaces)}; choose one with --namespace")
    namespace = namespace or namespaces[0]
    cameras = {}
    for topic, kind in source.types.items():
        found = re.fullmatch(re.escape(namespace) + r"/cameras/([^/]+)/image_raw(/compressed)?", topic)
        if found and kind in IMAGES and not (found[2] and found[1] in cameras):  # raw goes before compressed
            cameras[found[1]] = topic

    def there(*names: str) -> str:
        return next((topic for name in names if (topic := f"{namespace}/{name}") in source.types), "")

    joints = there("joint_states")
    return Topics(
        (joints,) if joints else (),
        there("executor/command"),
        cameras,
        there("policy/task", "task"),
        there("executor/driving"),
    )


def _mapped(source: Source, options: ExportOptions) -> Topics:
    cameras = {}
    joints: tuple[str, ...] = ()
    command = ""
    for key, value in options.topics.items():
        kinds: tuple[str, ...] = (JOINTS,)
        if key == "joints":
            joints = tuple(value.split(","))
        elif key == "action":
            command, kinds = value, COMMANDS
        elif key.startswith("camera.") and key != "camera.":
            cameras[key.removeprefix("camera.")], kinds = value, IMAGES
        else:
            raise ExportError(f"--map {key}={value}: expected one of {MAPPED}")
        for topic in value.split(",") if key == "joints" else [value]:
            found = source.types.get(topic)
            if found is None:
                raise ExportError(f"{source.path} has nothing on {topic} ({key}), only {_listed(source.types)}")
            if found not in kinds:
                raise ExportError(f"{source.path}: {topic} ({key}) is {found}, expected {' or '.join(kinds)}")
    return Topics(joints, command, cameras)


def _listed(topics: Iterable[str]) -> str:
    names = sorted(topics)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"
