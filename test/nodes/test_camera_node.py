"""The camera node as a process: images and calibration over real ROS, bit for bit, and a silent camera named."""

import os
import time
import uuid
from dataclasses import replace

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import ProcessGroup
from molmoact2_ros.bringup.specs import nodes
from molmoact2_ros.cameras.cell_cameras import camera_calibration
from molmoact2_ros.cameras.frame_link import FrameWriter
from molmoact2_ros.nodes.ros.messages import image_message, stamp_of
from molmoact2_ros.nodes.ros.qos import LATCHED, RELIABLE, SENSOR


def test_pictures_keep_their_pixels_and_stamps_and_a_silent_camera_is_named(tmp_path):
    prefix = f"test_{uuid.uuid4().hex[:8]}"
    camera = next(spec for spec in nodes(Options(link_prefix=prefix)) if spec.executable == "camera_node")
    camera = replace(camera, parameters={**camera.parameters, "jpeg_quality": 90})
    context = rclpy.Context()
    rclpy.init(context=context)
    listener = rclpy.create_node("listener", namespace="/so101", context=context)
    heard: dict[str, list] = {"image": [], "info": [], "jpeg": [], "diagnostics": []}
    listener.create_subscription(Image, "cameras/front/image_raw", heard["image"].append, SENSOR)
    listener.create_subscription(CameraInfo, "cameras/front/camera_info", heard["info"].append, SENSOR)
    listener.create_subscription(CompressedImage, "cameras/front/image_raw/compressed", heard["jpeg"].append, SENSOR)
    listener.create_subscription(DiagnosticArray, "/diagnostics", heard["diagnostics"].append, RELIABLE)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    writer = FrameWriter(f"{prefix}_front", 240, 320)
    picture = np.random.default_rng(3).integers(0, 255, (240, 320, 3), np.uint8)

    def until(condition, feed: bool) -> list[int]:
        stamps = []
        deadline = time.monotonic() + 30.0
        while not condition() and time.monotonic() < deadline:
            if feed:
                stamps.append(time.time_ns())
                writer.write(picture, stamps[-1])
            executor.spin_once(timeout_sec=0.05)
        assert condition()
        return stamps

    def words() -> str:
        statuses = [status for array in heard["diagnostics"] for status in array.status]
        return statuses[-1].message if statuses else ""

    try:
        with ProcessGroup([camera], tmp_path, os.environ):
            stamps = until(lambda: all(heard[key] for key in ("image", "info", "jpeg")), feed=True)
            until(lambda: "'front': no frame for" in words(), feed=False)
            assert "'wrist': no simulated camera" in words()
    finally:
        writer.close()
        executor.shutdown()
        listener.destroy_node()
        rclpy.try_shutdown(context=context)
    image, info = heard["image"][0], heard["info"][0]
    assert image.header.stamp.sec * 1_000_000_000 + image.header.stamp.nanosec in stamps
    assert (image.encoding, image.header.frame_id) == ("rgb8", "front_optical_frame")
    assert np.array_equal(np.frombuffer(image.data, np.uint8).reshape(240, 320, 3), picture)
    assert np.allclose(info.k, camera_calibration("so101", "front").k.ravel())
    assert bytes(heard["jpeg"][0].data[:2]) == b"\xff\xd8"


class Driver:
    """Another driver's camera: publishes what it is told to."""

    def __init__(self, robot: Companion, name: str) -> None:
        self.publisher = robot.node.create_publisher(Image, f"{name}/image_raw", SENSOR)
        self.random = np.random.default_rng(len(name))
        self.image: np.ndarray | None = None

    def publish(self) -> None:
        image = self.random.integers(0, 255, (48, 64, 3), np.uint8) if self.image is None else self.image
        self.publisher.publish(image_message(image, "rgb8", Header(stamp=stamp_of(time.time_ns()))))


def test_frozen_black_and_doubled_images_are_not_published_and_the_reason_is_latched(tmp_path):
    names = ["front", "wrist"]
    parameters = {
        "names": names,
        "sources": [f"topic:drivers/{name}/image_raw" for name in names],
        "formats": ["64x48@20"],
        "frozen_s": 0.4,
        "black_s": 0.4,
        "doubled_s": 0.4,
    }
    with (
        Companion() as robot,
        NodeProcess("molmoact2_ros.nodes.camera_node", ros_arguments(parameters), tmp_path / "log") as node,
    ):
        drivers = [Driver(robot, f"drivers/{name}") for name in names]
        images = {name: robot.listen(Image, f"cameras/{name}/image_raw", SENSOR) for name in names}
        states = {name: robot.listen(DiagnosticStatus, f"cameras/{name}/state", LATCHED) for name in names}

        def feed() -> None:
            for driver in drivers:
                driver.publish()

        def until(condition, what: str) -> None:
            wait_until(condition, lambda: f"{what}: {states} {node.output}", 30.0, feed)

        def state(name: str) -> str:
            return states[name][-1].message if states[name] else ""

        def flows(name: str) -> None:
            before = len(images[name])
            until(lambda: len(images[name]) > before + 3, f"images of {name}")

        def stands(name: str) -> None:
            before, told = len(images["wrist"]), len(images[name])
            until(lambda: len(images["wrist"]) > before + 6, "images of the other camera")
            assert len(images[name]) <= told + 1, f"images of {name} were published after its fault was told"

        flows("front"), flows("wrist")
        assert "shared memory" not in node.output
        noise = drivers[0].random.integers(0, 255, (48, 64, 3), np.uint8)
        drivers[0].image = noise
        until(lambda: "frozen, the image has not changed for" in state("front"), "frozen")
        stands("front")
        drivers[0].image = None
        flows("front")
        until(lambda: "frozen" not in state("front"), "the camera is well again")

        bright, drivers[0].random = drivers[0].random, Dark(drivers[0].random)
        until(lambda: "black for" in state("front"), "black")
        stands("front")
        drivers[0].random = bright
        flows("front")

        seen = np.random.default_rng(1).integers(0, 255, (48, 64, 3), np.uint8)
        for driver in drivers:
            driver.random = Noisy(seen)
        until(lambda: "shows the same image as 'wrist'" in state("front"), "doubled")
        until(lambda: "shows the same image as 'front'" in state("wrist"), "doubled")
        counts = {name: len(images[name]) for name in names}
        late = robot.listen(DiagnosticStatus, "cameras/front/state", LATCHED)
        until(lambda: late, "the reason, for who comes late")
        assert "is one source named twice?" in late[-1].message and late[-1].level == DiagnosticStatus.ERROR
        assert all(len(images[name]) <= counts[name] + 1 for name in names)
        assert node.interrupt() == 0, node.output


class Dark:
    """Noise of a sensor that sees nothing."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def integers(self, low: int, high: int, *given) -> np.ndarray:
        return self.random.integers(0, 3, *given)


class Noisy:
    """One scene with the noise of a sensor."""

    def __init__(self, scene: np.ndarray) -> None:
        self.scene, self.random = scene, np.random.default_rng(2)

    def integers(self, low: int, high: int, *given) -> np.ndarray:
        noise = self.random.integers(-1, 2, self.scene.shape)
        return np.clip(self.scene.astype(int) + noise, 0, 255).astype(np.uint8)


def test_images_that_do_not_fit_into_the_shared_memory_are_said_at_the_start(tmp_path, monkeypatch):
    parameters = {"names": ["front"], "sources": ["topic:drivers/front/image_raw"], "formats": ["3840x2160@15"]}
    with NodeProcess("molmoact2_ros.nodes.camera_node", ros_arguments(parameters), tmp_path / "log") as node:
        wait_until(lambda: "MB of shared memory" in node.output, lambda: node.output, 30.0)
        assert "set <segment_size> to" in node.output
        wait_until(lambda: "start this node with FASTRTPS_DEFAULT_PROFILES_FILE=" in node.output, lambda: node.output)
        written = node.output.partition("FASTRTPS_DEFAULT_PROFILES_FILE=")[2].split(",")[0]
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", written)
    with NodeProcess("molmoact2_ros.nodes.camera_node", ros_arguments(parameters), tmp_path / "log2") as node:
        wait_until(lambda: "no frame yet" in node.output, lambda: node.output, 30.0)
        assert "shared memory" not in node.output


def test_a_node_that_waits_for_a_clock_says_so(tmp_path):
    parameters = {"use_sim_time": True, "names": ["front"], "sources": ["topic:drivers/front/image_raw"]}
    with (
        Companion() as robot,
        NodeProcess("molmoact2_ros.nodes.camera_node", ros_arguments(parameters), tmp_path / "log") as node,
    ):
        heard = robot.listen(DiagnosticArray, "/diagnostics", RELIABLE)
        wait_until(lambda: "nothing came on /clock for" in node.output, lambda: node.output, 30.0)
        wait_until(lambda: heard and "use_sim_time is set" in heard[-1].status[0].message, "a status that says so")
        clock = robot.node.create_publisher(Clock, "/clock", RELIABLE)
        wait_until(
            lambda: "/clock has come" in node.output,
            lambda: node.output,
            meanwhile=lambda: clock.publish(Clock(clock=stamp_of(time.time_ns()))),
        )
