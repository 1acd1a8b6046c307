"""The recorder writes what was published, byte for byte, one bag an episode, and never loses a bag to a signal."""

from __future__ import annotations

import array
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from ros_process import DEADLINE_S, Companion, NodeProcess, ros_arguments, wait_until
from rosbags.rosbag2 import Reader
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from molmoact2_ros.nodes.recorder_node import RecorderNode
from molmoact2_ros.nodes.ros.qos import LATCHED, RELIABLE, SENSOR
from molmoact2_ros.recording.recover import recover


def running(log: Path, parameters: dict[str, object]) -> NodeProcess:
    return NodeProcess("molmoact2_ros.nodes.recorder_node", ros_arguments(parameters), log)


@pytest.fixture
def robot() -> Iterator[Companion]:
    with Companion() as one:
        yield one


def episode_status(number: int, message: str) -> DiagnosticStatus:
    """What the cell says of its episode."""
    return DiagnosticStatus(name="episode", message=message, values=[KeyValue(key="episode", value=str(number))])


class Publishers:
    """What the rest of the robot would publish."""

    def __init__(self, robot: Companion) -> None:
        self.robot = robot
        node = robot.node
        self.image = node.create_publisher(Image, "cameras/front/image_raw", SENSOR)
        self.joints = node.create_publisher(JointState, "joint_states", SENSOR)
        self.task = node.create_publisher(String, "task", LATCHED)
        self.episode = node.create_publisher(DiagnosticStatus, "sim/episode", LATCHED)
        # What is on the wire: padding between CDR fields is not the same each time that a message is serialized.
        every = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.images: list[bytes] = robot.listen(Image, "cameras/front/image_raw", every, raw=True)
        self.states: list[bytes] = robot.listen(JointState, "joint_states", every, raw=True)
        self.count = 0

    def matched(self) -> bool:
        """Whether the recorder listens to every publisher, besides this peer's own subscriptions."""
        wanted = ((self.image, 2), (self.joints, 2), (self.task, 2), (self.episode, 2))
        return all(publisher.get_subscription_count() >= count for publisher, count in wanted)

    def tick(self) -> None:
        self.count += 1
        image = Image(height=24, width=32, encoding="rgb8", step=96)
        image.header.stamp.sec = self.count
        pixels = array.array("B")
        pixels.frombytes(np.random.default_rng(self.count).integers(0, 256, 24 * 32 * 3, dtype=np.uint8).tobytes())
        image.data = pixels
        joints = JointState(name=["a", "b"], position=[float(self.count), 0.5])
        self.image.publish(image)
        self.joints.publish(joints)

    def say_episode(self, number: int, message: str) -> None:
        """Only the last message of a latched topic is kept: a reader that does not know this publisher yet, though it
        is counted here already, would never hear the one before."""
        self.episode.publish(episode_status(number, message))
        assert self.episode.wait_for_all_acked(Duration(seconds=DEADLINE_S)), f"{message!r} is not acknowledged"


def bag_of(path: Path) -> dict[str, list[bytes]]:
    """Messages of a bag by topic."""
    found: dict[str, list[bytes]] = {}
    with Reader(path) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(bytes(data))
    return found


def custom_data(path: Path) -> dict[str, str]:
    information = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    return dict(information["custom_data"])


def test_recorded_by_service_byte_for_byte(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {
        "directory": str(tmp_path / "bags"),
        "cameras": ["front"],
        "checkpoint": "a/checkpoint",
    }
    with running(tmp_path / "log", parameters) as node:
        out = Publishers(robot)
        wait_until(out.matched, "the recorder subscribes")
        out.task.publish(String(data="pick up the red cube"))
        # As a bare `ros2 topic pub` does it: not latched. No stop may be missing from a recording.
        stops = robot.node.create_publisher(Bool, "e_stop", RELIABLE)
        wait_until(stops.get_subscription_count, "the recorder hears plain e-stops")
        assert "start one first" in robot.call(Trigger, "recorder/stop", Trigger.Request()).message
        started = robot.call(Trigger, "recorder/start", Trigger.Request())
        assert started.success, started.message
        before = out.count
        wait_until(lambda: out.count >= before + 40, "forty ticks", meanwhile=out.tick)
        stops.publish(Bool(data=True))
        assert stops.wait_for_all_acked(Duration(seconds=DEADLINE_S))
        out.say_episode(7, "waiting")
        wait_until(lambda: out.count >= before + 50, "ten more ticks", meanwhile=out.tick)
        assert not robot.call(Trigger, "recorder/start", Trigger.Request()).success
        stopped = robot.call(Trigger, "recorder/stop", Trigger.Request())
        assert stopped.success, stopped.message
        bag = Path(stopped.message)
        assert bag == tmp_path / "bags" / "episode_0001"
        found = bag_of(bag)
        assert len(found["/so101/cameras/front/image_raw"]) >= 38
        assert set(found["/so101/cameras/front/image_raw"]) <= set(out.images)
        assert set(found["/so101/joint_states"]) <= set(out.states)
        assert [deserialize_message(data, String).data for data in found["/so101/task"]] == ["pick up the red cube"]
        assert len(found["/so101/e_stop"]) == 1
        assert len(found["/so101/sim/episode"]) == 1, "latched streams are heard twice and recorded once"
        custom = custom_data(bag)
        assert (custom["robot"], custom["task"], custom["checkpoint"]) == (
            "so101",
            "pick up the red cube",
            "a/checkpoint",
        )
        audit = json.loads(custom["audit"])["/so101/joint_states"]
        assert audit["messages"] == len(found["/so101/joint_states"])

        robot.call(Trigger, "recorder/start", Trigger.Request())
        assert robot.call(Trigger, "recorder/discard", Trigger.Request()).success
        assert sorted(path.name for path in bag.parent.iterdir()) == ["episode_0001"]
        assert node.interrupt() == 0, node.output
        assert "episode_0001 is on disk" in node.output


def test_follows_episodes_and_survives_sigterm(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        out = Publishers(robot)
        wait_until(out.matched, "the recorder subscribes")
        metadata = [tmp_path / f"episode_{i:04d}" / "metadata.yaml" for i in (1, 2, 3)]
        for number, ending in ((1, "success"), (2, "failure")):
            out.say_episode(number, "running")
            begun = out.count
            wait_until(lambda begun=begun: out.count >= begun + 10, "ten ticks", meanwhile=out.tick)
            out.say_episode(number, ending)
            wait_until(metadata[number - 1].exists, lambda number=number: f"bag {number}, finished: {node.output}")
            assert custom_data(metadata[number - 1].parent)["outcome"] == ending
        out.say_episode(3, "running")
        wait_until((metadata[2].parent / "episode_0003.mcap").exists, "the third bag is open")
        mcap = metadata[2].parent / "episode_0003.mcap"
        wait_until(lambda: mcap.stat().st_size > 5_000, "a chunk is on disk", meanwhile=out.tick)
        assert node.interrupt(signal.SIGTERM) == 0, node.output
        assert custom_data(metadata[2].parent)["outcome"] == "interrupted"
        assert bag_of(metadata[2].parent)["/so101/joint_states"]


def test_a_killed_recorder_leaves_a_bag_that_can_be_recovered(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        out = Publishers(robot)
        wait_until(out.matched, "the recorder subscribes")
        robot.call(Trigger, "recorder/start", Trigger.Request())
        mcap = tmp_path / "episode_0001" / "episode_0001.mcap"
        wait_until(lambda: mcap.stat().st_size > 20_000, "the first chunks are on disk", meanwhile=out.tick)
        node.interrupt(signal.SIGKILL)
    found = bag_of(recover(tmp_path / "episode_0001"))
    assert len(found["/so101/joint_states"]) > 10
    assert set(found["/so101/joint_states"]) <= set(out.states)
    with running(tmp_path / "log2", parameters) as node:
        wait_until(lambda: "was left unfinished" in node.output, "the next recorder says so")


def test_an_episode_in_which_nothing_arrived_is_no_success(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path / "bags"), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        started = robot.call(Trigger, "recorder/start", Trigger.Request(), 30.0)
        assert started.success, started.message
        stopped = robot.call(Trigger, "recorder/stop", Trigger.Request())
        assert not stopped.success and "no message arrived" in stopped.message
        said = robot.call(SetBool, "recorder/label", SetBool.Request(data=True))
        assert not said.success and "no episode has been recorded yet" in said.message
        assert list((tmp_path / "bags").iterdir()) == []
        assert node.interrupt() == 0, node.output


def test_a_removed_folder_is_told_at_once_and_by_the_stop(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path / "bags"), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        heard = robot.listen(DiagnosticArray, "/diagnostics", RELIABLE)
        out = Publishers(robot)
        wait_until(out.matched, "the recorder subscribes", 30.0)
        robot.call(Trigger, "recorder/start", Trigger.Request())
        wait_until(lambda: out.count >= 5, "ticks", meanwhile=out.tick)
        shutil.rmtree(tmp_path / "bags")

        def status() -> str:
            mine = [s for array in heard for s in array.status if s.name.endswith("recorder")]
            return mine[-1].message if mine and mine[-1].level == DiagnosticStatus.ERROR else ""

        wait_until(lambda: "was removed" in status(), lambda: f"an error in diagnostics; {node.output}", 20.0, out.tick)
        stopped = robot.call(Trigger, "recorder/stop", Trigger.Request())
        assert not stopped.success and "was removed" in stopped.message
        robot.call(Trigger, "recorder/start", Trigger.Request())
        before = out.count
        wait_until(lambda: out.count >= before + 5, "ticks", meanwhile=out.tick)
        again = robot.call(Trigger, "recorder/stop", Trigger.Request())
        assert again.success and bag_of(Path(again.message))["/so101/joint_states"]


def test_a_recorder_that_is_configured_anew_knows_task_and_stop_again(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        out = Publishers(robot)
        stops = robot.node.create_publisher(Bool, "e_stop", LATCHED)
        wait_until(out.matched, "the recorder subscribes", 30.0)
        out.task.publish(String(data="pick up the red cube"))
        stops.publish(Bool(data=False))
        for transition in (
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
        ):
            request = ChangeState.Request(transition=Transition(id=transition))
            assert robot.call(ChangeState, "recorder/change_state", request, 30.0).success, node.output
        wait_until(out.matched, "the recorder subscribes anew")
        wait_until(lambda: stops.get_subscription_count() >= 2, "to stops, too")
        assert out.task.wait_for_all_acked(Duration(seconds=DEADLINE_S))
        robot.call(Trigger, "recorder/start", Trigger.Request())
        before = out.count
        wait_until(lambda: out.count >= before + 5, "ticks", meanwhile=out.tick)
        bag = Path(robot.call(Trigger, "recorder/stop", Trigger.Request()).message)
        found = bag_of(bag)
        assert [deserialize_message(data, String).data for data in found["/so101/task"]] == ["pick up the red cube"]
        assert len(found["/so101/e_stop"]) == 1 and custom_data(bag)["task"] == "pick up the red cube"


def test_what_waits_when_an_episode_ends_belongs_to_it(tmp_path: Path) -> None:
    """A recorder that had no time for a while hears the end before what waits in its other queues."""
    rclpy.init(args=ros_arguments({"directory": str(tmp_path), "cameras": ["front"]}))
    recorder, other = RecorderNode(), rclpy.create_node("other", namespace="/so101")
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    try:
        assert recorder.autostart()
        episode = other.create_publisher(DiagnosticStatus, "sim/episode", LATCHED)
        joints = other.create_publisher(JointState, "joint_states", SENSOR)

        def spin() -> None:
            executor.spin_once(timeout_sec=0.0)

        wait_until(lambda: episode.get_subscription_count() >= 3 and joints.get_subscription_count(), "it subscribes")
        episode.publish(episode_status(1, "running"))
        metadata = tmp_path / "episode_0001" / "metadata.yaml"

        def until(condition: Callable[[], object], what: str) -> None:
            deadline = time.monotonic() + 20.0
            while not condition():
                assert time.monotonic() < deadline, what
                spin()

        until(metadata.parent.exists, "the bag is open")
        # Nothing spins here; in one process a message is in its queue when `publish` returns.
        episode.publish(episode_status(1, "success"))
        for number in range(80):
            joints.publish(JointState(name=["waits"], position=[float(number)]))
        until(metadata.exists, "the bag is finished")
        states = [deserialize_message(data, JointState) for data in bag_of(metadata.parent)["/so101/joint_states"]]
        assert [state.position[0] for state in states] == [float(number) for number in range(80)]
        assert custom_data(metadata.parent)["outcome"] == "success"
    finally:
        recorder.release()
        executor.shutdown()
        recorder.destroy_node()
        other.destroy_node()
        rclpy.shutdown()


def test_with_a_simulators_clock_a_bag_has_that_clock_alone(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path), "cameras": ["front"], "use_sim_time": True}
    with running(tmp_path / "log", parameters):
        out = Publishers(robot)
        clock = robot.node.create_publisher(Clock, "/clock", RELIABLE)
        wait_until(out.matched, "the recorder subscribes", 30.0)
        out.task.publish(String(data="pick up the red cube"))
        refused = robot.call(Trigger, "recorder/start", Trigger.Request())
        assert not refused.success and "nothing has come on /clock" in refused.message

        def tick() -> None:
            clock.publish(Clock(clock=Time(sec=100 + out.count // 20, nanosec=0)))
            out.tick()

        wait_until(lambda: robot.call(Trigger, "recorder/start", Trigger.Request()).success, "the start", 30.0, tick)
        before = out.count
        wait_until(lambda: out.count >= before + 40, "ticks", meanwhile=tick)
        bag = Path(robot.call(Trigger, "recorder/stop", Trigger.Request()).message)
        with Reader(bag) as reader:
            assert reader.start_time >= 100 * 10**9 and reader.duration < 20 * 10**9
            assert reader.message_count > 40


def test_images_that_were_lost_on_their_way_mark_the_episode(robot: Companion, tmp_path: Path) -> None:
    parameters: dict[str, object] = {"directory": str(tmp_path), "cameras": ["front"]}
    with running(tmp_path / "log", parameters) as node:
        out = Publishers(robot)
        infos = robot.node.create_publisher(CameraInfo, "cameras/front/camera_info", SENSOR)
        words = robot.node.create_publisher(String, "policy/task", LATCHED)
        wait_until(out.matched, "the recorder subscribes", 30.0)
        wait_until(infos.get_subscription_count, "to camera_info, too")
        words.publish(String(data="from the policy"))
        robot.call(Trigger, "recorder/start", Trigger.Request())
        before = out.count

        def tick() -> None:
            info = CameraInfo()
            info.header.stamp.sec = out.count + 1
            infos.publish(info)
            if out.count % 5:
                out.tick()
            else:
                out.count += 1

        wait_until(lambda: out.count >= before + 40, "ticks", meanwhile=tick)
        stopped = robot.call(Trigger, "recorder/stop", Trigger.Request())
        assert stopped.success, stopped.message
        bag = Path(stopped.message)
        told = json.loads(custom_data(bag)["problems"])
        assert any("images lost on their way" in line for line in told), told
        assert custom_data(bag)["task"] == "from the policy"
        said = robot.call(SetBool, "recorder/label", SetBool.Request(data=False))
        assert said.success and said.message == "episode_0001: failure"
        assert (custom_data(bag)["outcome"], custom_data(bag)["recorded_outcome"]) == ("failure", "stopped")
        assert "images lost on their way" in node.output
