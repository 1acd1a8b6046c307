"""What a recording holds: every stream of the robot's namespace that an episode can be understood from."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

DIAGNOSTICS = "/diagnostics"
"""Of all robots; of it only what comes from the recorder's own namespace is taken."""


@dataclass(frozen=True)
class Stream:
    """One topic of a recording.

    Attributes:
        topic: name relative to the robot's namespace, or absolute.
        msgtype: `package/msg/Name`.
        reliable: whether the publisher offers reliable delivery; sensor streams do not.
        latched: whether the last message is kept for late joiners. Such a message belongs to every episode after it.
        depth: how many messages may wait for the recorder.
        all_hold: whether every message of a latched stream belongs to every episode, and not the last one only.
    """

    topic: str
    msgtype: str
    reliable: bool = True
    latched: bool = False
    depth: int = 20
    all_hold: bool = False


def stream_named(text: str) -> Stream:
    """The stream that a text such as `force:geometry_msgs/msg/WrenchStamped` names.

    Raises:
        ValueError: the text is of another form.
    """
    topic, _, msgtype = text.rpartition(":")
    if not topic or len(msgtype.split("/")) != 3 or msgtype.split("/")[1] != "msg":
        raise ValueError(f"topics: {text!r} must be like force:geometry_msgs/msg/WrenchStamped")
    return Stream(topic, msgtype, reliable=False, depth=100)


def streams_of(
    cameras: Sequence[str],
    raw: bool = True,
    compressed: bool = False,
    depth: bool = False,
    more: Sequence[str] = (),
    joint_states: Sequence[str] = ("joint_states",),
) -> tuple[Stream, ...]:
    """Streams of a robot with these `cameras`, with their `depth` images, those that `more` names, and the topics of
    `joint_states`.

    Raises:
        ValueError: no image stream is chosen although there are cameras, or a text in `more` names none.
    """
    if cameras and not (raw or compressed):
        raise ValueError("a recording needs raw or compressed images of its cameras; choose at least one")
    out: list[Stream] = []
    for camera in cameras:
        if raw:
            out.append(Stream(f"cameras/{camera}/image_raw", "sensor_msgs/msg/Image", reliable=False))
        if compressed:
            out.append(
                Stream(f"cameras/{camera}/image_raw/compressed", "sensor_msgs/msg/CompressedImage", reliable=False)
            )
        if depth:
            out.append(Stream(f"cameras/{camera}/depth/image_raw", "sensor_msgs/msg/Image", reliable=False))
        out.append(Stream(f"cameras/{camera}/camera_info", "sensor_msgs/msg/CameraInfo", reliable=False))
        out.append(Stream(f"cameras/{camera}/state", "diagnostic_msgs/msg/DiagnosticStatus", latched=True))
    return (
        *out,
        *(Stream(name, "sensor_msgs/msg/JointState", reliable=False, depth=100) for name in joint_states if name),
        Stream("task", "std_msgs/msg/String", latched=True),
        Stream("policy/task", "std_msgs/msg/String", latched=True),
        Stream("policy/action_chunk", "trajectory_msgs/msg/JointTrajectory"),
        Stream("policy/depth_codes", "sensor_msgs/msg/Image"),
        Stream("policy/depth_updated", "sensor_msgs/msg/Image"),
        Stream("executor/command", "sensor_msgs/msg/JointState", reliable=False, depth=100),
        Stream("executor/driving", "std_msgs/msg/Header", reliable=False, depth=100),
        Stream("teleop/command", "sensor_msgs/msg/JointState", reliable=False, depth=100),
        Stream("executor/state", "diagnostic_msgs/msg/DiagnosticStatus", latched=True),
        Stream("driver/state", "diagnostic_msgs/msg/DiagnosticStatus", latched=True),
        Stream("driver/acknowledgement", "sensor_msgs/msg/JointState", reliable=False, depth=100),
        Stream("e_stop", "std_msgs/msg/Bool", latched=True),
        Stream("controller/commands", "std_msgs/msg/Float64MultiArray", depth=100),
        Stream("sim/episode", "diagnostic_msgs/msg/DiagnosticStatus", latched=True),
        Stream("sim/object_pose", "geometry_msgs/msg/PoseStamped", reliable=False, depth=100),
        Stream("tf", "tf2_msgs/msg/TFMessage", depth=100),
        Stream("tf_static", "tf2_msgs/msg/TFMessage", latched=True, all_hold=True),
        Stream(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray"),
        *(stream_named(text) for text in more if text),
    )


class Arrival(Enum):
    """What a message is among those of its topic that were heard before."""

    NEWEST = "newest"
    LATE = "late"
    AGAIN = "again"


class DuplicateFilter:
    """Tells apart the messages of topics that several subscriptions listen to.

    They are emptied one after the other, so that what one of them kept from before may be taken after something
    newer that another one heard: it belongs into the bag, but is not what holds now. What is newer is told by when
    it was received here: publishers' clocks differ.
    """

    REMEMBERED = 64
    """Messages of a topic; more than can wait in its three queues."""
    WAITING_NS = 10 * 10**9
    """Nothing waits longer to be taken; a larger step back is a clock that was set."""

    def __init__(self) -> None:
        self._sent: dict[str, deque[int]] = {}
        self._newest_ns: dict[str, int] = {}

    def arrival(self, topic: str, sent_ns: int, received_ns: int) -> Arrival:
        """Take note of a message, which its source timestamp tells from others, received at `received_ns`."""
        sent = self._sent.setdefault(topic, deque(maxlen=self.REMEMBERED))
        if sent_ns in sent:
            return Arrival.AGAIN
        sent.append(sent_ns)
        if 0 < self._newest_ns.get(topic, received_ns) - received_ns <= self.WAITING_NS:
            return Arrival.LATE
        self._newest_ns[topic] = received_ns
        return Arrival.NEWEST
