"""Bags of other systems: rosbag2 with sqlite3 or MCAP, JPEG images, names and topics of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from export_bags import ROBOT, SIZE, START_NS, cdr, header, joint_state, swing
from recording_messages import STORE
from rosbags.rosbag2 import StoragePlugin, Writer

from molmoact2_ros.recording.export.images import with_images
from molmoact2_ros.recording.export.moments import Plan, plan_of
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.export.source import Source, topics_of

TOPICS = {
    "joints": "/arm/joint_states,/hand/joint_states",
    "action": "/leader/joint_states",
    "camera.front": "/cam0/image/compressed",
}
OPTIONS = ExportOptions("so101", task="wave", topics=TOPICS, joint_map=("follower_*=*",))
NAMES = [f"follower_{name}" for name in ROBOT.joint_names]


def picture(number: int) -> np.ndarray:
    flat = np.random.default_rng(number).integers(0, 256, 3, dtype=np.uint8)
    return np.tile(flat, (*SIZE, 1))


def command(kind: str, time_ns: int) -> tuple[str, bytes]:
    position = swing(time_ns)
    if kind == "array":
        types = STORE.types
        layout = types["std_msgs/msg/MultiArrayLayout"]([], 0)
        return "std_msgs/msg/Float64MultiArray", cdr("std_msgs/msg/Float64MultiArray", layout, position)
    if kind == "trajectory":
        none = np.zeros(0)
        wait = STORE.types["builtin_interfaces/msg/Duration"](0, 50_000_000)
        point = STORE.types["trajectory_msgs/msg/JointTrajectoryPoint"](
            swing(time_ns + 50_000_000), none, none, none, wait
        )
        fields = (header(time_ns), NAMES, [point])
        return "trajectory_msgs/msg/JointTrajectory", cdr("trajectory_msgs/msg/JointTrajectory", *fields)
    return "sensor_msgs/msg/JointState", joint_state(time_ns, position, NAMES)


def write(path: Path, storage: StoragePlugin, kind: str = "state", stamped: bool = True) -> Path:
    """Two seconds: a camera with 15 Hz, arm and hand apart with 50 Hz, commands with 25 Hz."""
    with Writer(path, version=9, storage_plugin=storage) as bag:
        kinds = {topic: "sensor_msgs/msg/JointState" for topic in TOPICS["joints"].split(",")}
        kinds |= {
            TOPICS["camera.front"]: "sensor_msgs/msg/CompressedImage",
            TOPICS["action"]: command(kind, START_NS)[0],
        }
        to = {topic: bag.add_connection(topic, msgtype, typestore=STORE) for topic, msgtype in kinds.items()}
        for i in range(100):
            time_ns = START_NS + i * 20_000_000
            stamp = time_ns if stamped else 0
            position = swing(time_ns)
            bag.write(to["/arm/joint_states"], time_ns, joint_state(stamp, position[:5], NAMES[:5]))
            bag.write(to["/hand/joint_states"], time_ns + 1000, joint_state(stamp, position[5:], NAMES[5:]))
            if i % 2 == 0:
                bag.write(to[TOPICS["action"]], time_ns, command(kind, time_ns)[1])
            if i % 3 == 0:
                jpeg = np.frombuffer(cv2.imencode(".jpg", picture(i)[..., ::-1])[1].tobytes(), np.uint8)
                data = cdr("sensor_msgs/msg/CompressedImage", header(stamp), "jpeg", jpeg)
                bag.write(to[TOPICS["camera.front"]], time_ns + 3_000_000, data)
    return path


def plan(path: Path, options: ExportOptions = OPTIONS) -> Plan:
    with Source(path) as source:
        return plan_of(source, topics_of(source, options), ("front",), options)


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
@pytest.mark.parametrize("kind", ["state", "trajectory", "array"])
def test_another_systems_bag(tmp_path: Path, storage: StoragePlugin, kind: str) -> None:
    path = write(tmp_path / "bag", storage, kind)
    found = plan(path)
    (frames,) = found.episodes
    assert len(frames) > 50 and frames[0].task == "wave"
    for frame in frames:
        np.testing.assert_array_equal(frame.joints[:5], swing(frame.joints_stamp_ns)[:5])
        np.testing.assert_allclose(frame.action, swing(frame.time_ns - found.age_ns + round(1e9 / 30)), atol=2e-3)
    with Source(path) as source:
        for frame, images in with_images(source, topics_of(source, OPTIONS), frames):
            seen = images["front"].astype(int)
            assert np.abs(seen - picture(3 * frame.images["front"])).max() <= 4, "RGB, the image of that time"
    assert plan(path / next(f.name for f in path.iterdir() if f.suffix in (".db3", ".mcap"))).episodes, "a bare file"


def test_times_of_the_recording_where_nothing_is_stamped(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", StoragePlugin.MCAP, stamped=False)
    with pytest.raises(ExportError, match="joint states cannot be used: they bear stamp 0"):
        plan(path)
    found = plan(path, replace(OPTIONS, stamps="receive"))
    for frame in found.episodes[0]:
        np.testing.assert_allclose(frame.action, swing(frame.time_ns - found.age_ns + round(1e9 / 30)), atol=2e-3)


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        ({**TOPICS, "joints": "/nowhere"}, r"has nothing on /nowhere \(joints\), only /arm/joint_states"),
        ({**TOPICS, "camera.front": "/arm/joint_states"}, "expected sensor_msgs/msg/Image or"),
        ({**TOPICS, "pictures": "/x"}, r"expected one of joints, action, camera\.<name>"),
        ({"joints": TOPICS["joints"], "action": TOPICS["action"]}, "no images of front"),
    ],
)
def test_a_topic_map_that_does_not_fit_is_refused(tmp_path: Path, topics: dict[str, str], said: str) -> None:
    path = write(tmp_path / "bag", StoragePlugin.MCAP)
    with pytest.raises(ExportError, match=said):
        plan(path, replace(OPTIONS, topics=topics))


def test_without_a_map_it_is_told_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", StoragePlugin.SQLITE3)
    with pytest.raises(ExportError, match=r"only /arm/joint_states, .*--map KEY=TOPIC"):
        plan(path, replace(OPTIONS, topics={}))
    with pytest.raises(ExportError, match="joint states cannot be used: they name"):
        plan(path, replace(OPTIONS, joint_map=()))
