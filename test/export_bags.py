"""Bags for tests of export and replay: an SO-101 that swings, as this package records it or as others do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recording_messages import STORE

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.recording.bag import Bag
from molmoact2_ros.recording.streams import Stream

ROBOT = embodiment("so101")
START_NS = 1_700_000_000_000_000_000
SIZE = (24, 32)
TASK = "pick up the red cube"
Message = tuple[int, str, bytes]
"""Receive time, ns, topic and bytes."""


def cdr(msgtype: str, *fields: Any) -> bytes:
    return bytes(STORE.serialize_cdr(STORE.types[msgtype](*fields), msgtype))


def header(time_ns: int) -> Any:
    stamp = STORE.types["builtin_interfaces/msg/Time"](*divmod(time_ns, 10**9))
    return STORE.types["std_msgs/msg/Header"](stamp, "")


def pixels(camera: str, time_ns: int) -> np.ndarray:
    """The image of a camera at a time: no two are the same."""
    seed = [ord(letter) for letter in camera] + [time_ns // 1000]
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def image(camera: str, time_ns: int) -> bytes:
    height, width = SIZE
    flat = pixels(camera, time_ns).ravel()
    return cdr("sensor_msgs/msg/Image", header(time_ns), height, width, "rgb8", 0, 3 * width, flat)


def swing(time_ns: int, dof: int = ROBOT.dof) -> np.ndarray:
    """Where the joints are told to be at a time."""
    phase = 2.0 * np.pi * 0.4 * (time_ns - START_NS) * 1e-9 + np.arange(dof)
    return ROBOT.rest_position + np.array([0.3, 0.3, 0.3, 0.3, 0.3, 0.2]) * np.sin(phase)


def joint_state(time_ns: int, position: np.ndarray, names: Iterable[str] = ROBOT.joint_names) -> bytes:
    none = np.zeros(0)
    return cdr("sensor_msgs/msg/JointState", header(time_ns), list(names), position, none, none)


@dataclass(frozen=True)
class Story:
    """What is recorded.

    Attributes:
        length_s, fps: of the whole, of the cameras. delay_ns: of an image on its way. lag_ns: the arm's behind its
        commands. commands: (first, last) s in which there are any. person: s in which a person drives.
    """

    length_s: float = 2.0
    fps: float = 30.0
    delay_ns: int = 8_000_000
    lag_ns: int = 50_000_000
    cameras: tuple[str, ...] = ("front", "wrist")
    commands: tuple[float, float] = (0.0, 1e9)
    person: tuple[float, float] = (0.0, 0.0)
    namespace: str = "/so101"
    task: str = TASK
    start_ns: int = START_NS


def messages(story: Story) -> list[Message]:
    """All messages of a story in the order of time."""
    out: list[Message] = []
    end_ns, name = story.start_ns + round(story.length_s * 1e9), story.namespace
    if story.task:
        out.append((story.start_ns, f"{name}/task", cdr("std_msgs/msg/String", story.task)))
    for number, camera in enumerate(story.cameras):
        count = int(story.length_s * story.fps)
        for i in range(count):
            taken = story.start_ns + round((i + 0.3 * number) * 1e9 / story.fps)
            topic = f"{name}/cameras/{camera}/image_raw"
            out.append((taken + story.delay_ns, topic, image(camera, taken)))
    for time_ns in range(story.start_ns, end_ns, 10_000_000):
        passed = (time_ns - story.start_ns) * 1e-9
        read_ns = time_ns - 1_000_000
        out.append((time_ns, f"{name}/joint_states", joint_state(read_ns, swing(read_ns - story.lag_ns))))
        if story.commands[0] <= passed <= story.commands[1]:
            sent = joint_state(time_ns, swing(time_ns))
            out.append((time_ns + 500_000, f"{name}/executor/command", sent))
            driving = "teleop" if story.person[0] <= passed < story.person[1] else "policy"
            stamp = STORE.types["builtin_interfaces/msg/Time"](*divmod(time_ns, 10**9))
            out.append((time_ns + 500_000, f"{name}/executor/driving", cdr("std_msgs/msg/Header", stamp, driving)))
    return sorted(out, key=lambda message: message[0])


TYPES = {
    "image_raw": "sensor_msgs/msg/Image",
    "joint_states": "sensor_msgs/msg/JointState",
    "command": "sensor_msgs/msg/JointState",
    "task": "std_msgs/msg/String",
    "driving": "std_msgs/msg/Header",
}


def write_bag(
    path: Path,
    story: Story | None = None,
    keep: Callable[[float, str], bool] = lambda passed, topic: True,
    stories: Iterable[Story] = (),
    **custom: str,
) -> Path:
    """Record a story (or several in one bag) as this package does; `keep` says which messages there are."""
    told = [story or Story(), *stories]
    every = sorted((m for one in told for m in messages(one)), key=lambda message: message[0])
    chosen = [m for m in every if keep((m[0] - told[0].start_ns) * 1e-9, m[1])]
    streams = [Stream(topic, TYPES[topic.rpartition("/")[2]]) for topic in dict.fromkeys(m[1] for m in every)]
    about = {"robot": told[0].namespace.strip("/"), "task": told[0].task, "outcome": "success"}
    bag = Bag(path, streams, about={**about, **custom})
    for received_ns, topic, data in chosen:
        bag.write(topic, data, received_ns)
    bag.close({})
    return path


def silent(topic: str, first: float, last: float) -> Callable[[float, str], bool]:
    """For `keep`: nothing on `topic` between two times, s."""
    return lambda passed, name: not (topic in name and first < passed < last)
