"""What an export makes of a bag is what the policy node saw when the bag was recorded: images byte for byte, and the
vector of the state."""

from __future__ import annotations

import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rclpy
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.nodes import policy_node
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR
from molmoact2_ros.policy import Observation, Prediction
from molmoact2_ros.recording.export.dataset import vectors
from molmoact2_ros.recording.export.images import with_images
from molmoact2_ros.recording.export.moments import plan_of
from molmoact2_ros.recording.export.settings import ExportOptions
from molmoact2_ros.recording.export.source import Source, topics_of

ROBOT = embodiment("so101")
SIZES = {"front": (24, 32, "rgb8"), "wrist": (18, 24, "bgr8")}
OPTIONS = ExportOptions("so101", action="measured", videos=False, max_gap_s=1.0, min_length_s=0.1, split=True)


class Spy:
    """A policy that keeps what it is shown."""

    def __init__(self) -> None:
        everything = {name: [sign * 1e4] * ROBOT.dof for name, sign in (("q01", -1), ("q50", 0), ("q99", 1))}
        stats = {**everything, "min": everything["q01"], "max": everything["q99"], "mask": [True] * ROBOT.dof}
        about = {"name": "spy", "layout": "none", "norm_tag": "none", "depth_side": None}
        about |= {"horizon": ROBOT.horizon, "rate_hz": ROBOT.rate_hz}
        self.checkpoint: Any = SimpleNamespace(
            cameras=ROBOT.camera_names, metadata={"state_stats": stats}, frame=ModelFrame.ARM, **about
        )
        self.seen: list[Observation] = []

    def infer(self, observation: Observation) -> Prediction:
        self.seen.append(observation)
        rows = np.tile(observation.joints, (ROBOT.horizon, 1))
        return Prediction(
            observation.stamp_ns, rows.astype(np.float32), rows, ROBOT.rate_hz, None, None, {"total": 1.0}, None
        )

    def reset(self) -> None:
        self.seen.clear()

    def close(self) -> None:
        pass


class Robot:
    """Cameras of different sizes and encodings, arm and gripper as two messages, in an order of their own."""

    def __init__(self, companion: Companion) -> None:
        node = companion.node
        self.clock, self.ticks = node.get_clock(), 0
        self.images = {name: node.create_publisher(Image, f"cameras/{name}/image_raw", SENSOR) for name in SIZES}
        self.joints = node.create_publisher(JointState, "joint_states", SENSOR)
        self.task = node.create_publisher(String, "task", LATCHED)

    def tick(self) -> None:
        self.ticks += 1
        random = np.random.default_rng(self.ticks)
        stamp = self.clock.now().to_msg()
        for name, (height, width, encoding) in SIZES.items():
            image = Image(height=height, width=width, encoding=encoding, step=3 * width + 4)
            image.header.stamp = stamp
            image.data = array.array("B", random.integers(0, 256, height * image.step, np.uint8).tobytes())
            self.images[name].publish(image)
        position = ROBOT.rest_position + random.normal(0.0, 0.01, ROBOT.dof)
        for part in (range(4, -1, -1), [5]):
            message = JointState(name=[ROBOT.joint_names[j] for j in part], position=[float(position[j]) for j in part])
            message.header.stamp = stamp
            self.joints.publish(message)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Spy, Robot, Companion]]:
    spy = Spy()
    monkeypatch.setattr(policy_node, "opened", lambda *_: spy)
    rclpy.init(args=["--ros-args", "-r", "__ns:=/so101"])
    node = policy_node.PolicyNode()
    assert node.autostart()
    with Companion() as companion:
        companion._executor.add_node(node)
        yield spy, Robot(companion), companion
    node.release()  # nothing spins it any more
    node.destroy_node()
    rclpy.try_shutdown()


def test_the_export_of_a_bag_is_what_the_policy_saw(live: tuple[Spy, Robot, Companion], tmp_path: Path) -> None:
    spy, robot, companion = live
    parameters = {"directory": str(tmp_path / "bags"), "autostart_recording": False}
    with NodeProcess("molmoact2_ros.nodes.recorder_node", ros_arguments(parameters), tmp_path / "log"):
        heard = (*robot.images.values(), robot.joints)
        wait_until(lambda: all(p.get_subscription_count() >= 2 for p in heard), "both nodes listen", 60.0)
        robot.task.publish(String(data="pick up the red cube"))
        assert companion.call(Trigger, "recorder/start", Trigger.Request()).success
        wait_until(lambda: len(spy.seen) >= 30, lambda: f"observations, {len(spy.seen)} came", 60.0, robot.tick)
        stopped = companion.call(Trigger, "recorder/stop", Trigger.Request())
        assert stopped.success, stopped.message
    with Source(Path(stopped.message)) as source:
        topics = topics_of(source, OPTIONS)
        frames = [
            frame for episode in plan_of(source, topics, ROBOT.camera_names, OPTIONS).episodes for frame in episode
        ]
        exported = list(with_images(source, topics, frames))
    seen = {tuple(observation.image_stamps_ns.items()): observation for observation in spy.seen}
    same = states = 0
    for frame, images in exported:
        observation = seen.get(tuple(frame.image_stamps_ns.items()))
        if observation is None:
            continue
        same += 1
        assert frame.task == observation.task
        for name, image in images.items():
            assert (
                image.tobytes() == observation.images[name].tobytes() and image.shape == observation.images[name].shape
            )
        if frame.joints_stamp_ns == observation.joints_stamp_ns:
            states += 1
            np.testing.assert_array_equal(frame.joints, observation.joints)
            expected = ROBOT.model_from_joints(observation.joints, spy.checkpoint.frame)
            np.testing.assert_array_equal(vectors(frame, OPTIONS)[0], expected.astype(np.float32))
    assert same >= 10 and states >= 10, f"{same} of {len(exported)} frames are of a moment that the policy saw"
