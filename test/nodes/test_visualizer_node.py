"""The visualizer publishes what the chunk and the codes say, in the right frames, and outlives garbage."""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Path as PathMessage
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, JointState, PointCloud2
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from molmoact2_ros.cameras.cell_cameras import CELL
from molmoact2_ros.embodiments.so101 import SO101
from molmoact2_ros.nodes.ros.messages import image_message, stamp_of
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.rendering.depth import CODEBOOK_FILE
from molmoact2_ros.share import bundled_checkpoint
from molmoact2_ros.simulation.cells import make_cell, scene_of

START = np.array([0.1, -0.6, 0.6, 1.0, 0.0, 0.6])
ROWS = START + np.linspace(0.0, 1.0, 30)[:, None] * np.array([0.3, 0.4, 0.0, -0.1, 0.2, -0.6])


def running(log: Path, parameters: dict[str, object]) -> NodeProcess:
    arguments = ros_arguments({"calibration_file": CELL, **parameters})
    return NodeProcess("molmoact2_ros.nodes.visualizer_node", arguments, log)


@pytest.fixture
def robot() -> Iterator[Companion]:
    with Companion() as one:
        yield one


class Robot:
    """What the rest of the robot would publish, and what the visualizer answers."""

    def __init__(self, robot: Companion) -> None:
        self.robot, node = robot, robot.node
        self.joints = node.create_publisher(JointState, "joint_states", SENSOR)
        self.images = {c: node.create_publisher(Image, f"cameras/{c}/image_raw", SENSOR) for c in ("front", "wrist")}
        self.chunks = node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)
        self.codes = node.create_publisher(Image, "policy/depth_codes", NEWEST)
        self.updated = node.create_publisher(Image, "policy/depth_updated", NEWEST)
        node.create_publisher(DiagnosticStatus, "executor/state", LATCHED).publish(
            DiagnosticStatus(name="executor", message="TRACKING")
        )
        node.create_publisher(String, "task", LATCHED).publish(String(data="pick up the red cube"))
        self.paths = robot.listen(PathMessage, "visualization/path", NEWEST)
        self.markers = robot.listen(MarkerArray, "visualization/markers", NEWEST)
        # As a display that a user adds by hand: reliable and volatile.
        self.overlays = {c: robot.listen(Image, f"visualization/overlay/{c}", NEWEST) for c in ("front", "wrist")}
        self.depth = robot.listen(Image, "policy/depth/image", NEWEST)
        self.depth_info = robot.listen(CameraInfo, "policy/depth/camera_info", NEWEST)
        self.colour = robot.listen(Image, "visualization/depth_colour", NEWEST)
        self.points = robot.listen(PointCloud2, "visualization/depth_points", NEWEST)

    def now(self) -> int:
        return int(self.robot.node.get_clock().now().nanoseconds)

    def header(self, frame: str = "") -> Header:
        return Header(stamp=stamp_of(self.now()), frame_id=frame)

    def send_chunk(self, rows: np.ndarray, names: tuple[str, ...] = SO101.joint_names) -> None:
        message = JointTrajectory(header=self.header(), joint_names=list(names))
        for i, row in enumerate(rows):
            point = JointTrajectoryPoint(positions=[float(v) for v in row])
            point.time_from_start.sec, point.time_from_start.nanosec = divmod(round((i + 1) * 1e9 / 30), 10**9)
            message.points.append(point)
        self.chunks.publish(message)

    def send_codes(self, codes: np.ndarray) -> None:
        self.codes.publish(image_message(codes.astype(np.uint8), "mono8", self.header()))

    def tick(self) -> None:
        self.joints.publish(
            JointState(header=self.header(), name=list(SO101.joint_names), position=array.array("d", START))
        )
        for camera, output in self.images.items():
            picture = np.full((240, 320, 3), 60, np.uint8)
            output.publish(image_message(picture, "rgb8", self.header(f"{camera}_optical_frame")))

    def tick_with_chunk(self) -> None:
        self.tick()
        self.send_chunk(ROWS)


def image_of(message: Image) -> np.ndarray:
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)


def colourful(message: Image) -> int:
    """Pixels of a grey image that were drawn in colour, above the legend."""
    return int((np.ptp(image_of(message)[:-44].astype(int), axis=2) > 60).sum())


def test_chunk_becomes_path_markers_and_overlays(robot: Companion, tmp_path: Path) -> None:
    with running(tmp_path / "log", {}) as node:
        rest = Robot(robot)
        done = [rest.paths, rest.markers, *rest.overlays.values()]
        wait_until(
            lambda: all(done), f"path, markers and overlays arrive: {node.output}", meanwhile=rest.tick_with_chunk
        )
        path = rest.paths[-1]
        assert path.header.frame_id == "base_link"
        expected = SO101.chains[0][0].tip(ROWS[:, :5])
        got = np.array([[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in path.poses])
        np.testing.assert_allclose(got, expected[:, :3, 3], atol=1e-9)
        q = path.poses[7].pose.orientation
        np.testing.assert_allclose(Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix(), expected[7, :3, :3], atol=1e-9)
        drawn = {(m.ns, m.id): m for m in rest.markers[-1].markers if m.action == Marker.ADD}
        line = drawn["path", 0]
        assert line.type == Marker.LINE_STRIP and len(line.points) == len(line.colors) == 30
        balls = [m for (namespace, _), m in sorted(drawn.items()) if namespace == "gripper"]
        assert balls[0].scale.x < balls[-1].scale.x, "the gripper closes over this chunk; the last row comes first"
        assert balls[0].color == line.colors[-1], "the colours of the overlay"
        for overlays in rest.overlays.values():
            wait_until(
                lambda o=overlays: colourful(o[-1]) > 50, "the path is in the overlay", meanwhile=rest.tick_with_chunk
            )
            assert image_of(overlays[-1]).shape == (480, 640, 3)
        assert rest.overlays["front"][-1].header.frame_id == "front_optical_frame"


def test_codes_of_any_grid_become_depth(robot: Companion, tmp_path: Path) -> None:
    save_file({"codebook": np.linspace(0.2, 1.0, 16 * 9, dtype=np.float32).reshape(16, 3, 3)}, tmp_path / CODEBOOK_FILE)
    with running(tmp_path / "log", {"checkpoint": str(tmp_path)}) as node:
        rest = Robot(robot)
        for side in (5, 10):
            codes = np.random.default_rng(side).integers(0, 16, (side, side))

            def arrived(side: int = side) -> bool:
                outputs = (rest.depth, rest.depth_info, rest.colour, rest.points)
                if not all(outputs):
                    return False
                sizes = (rest.depth[-1].width, rest.depth_info[-1].width)
                return sizes == (3 * side, 3 * side)

            def send(codes: np.ndarray = codes) -> None:
                rest.tick()
                rest.send_codes(codes)

            wait_until(arrived, f"depth of {side} x {side} codes arrives: {node.output}", meanwhile=send)
            message = rest.depth[-1]
            assert message.encoding == "32FC1"
            depth = np.frombuffer(message.data, np.float32).reshape(3 * side, 3 * side)
            assert depth[0, 0] == pytest.approx(np.linspace(0.2, 1.0, 144)[9 * codes[0, 0]], rel=1e-6)
            assert (rest.colour[-1].height, rest.colour[-1].width) == (240, 320)
        info = rest.depth_info[-1]
        assert (info.width, info.height) == (30, 30)
        assert info.k[2] == pytest.approx(15.0)
        cloud = rest.points[-1]
        assert cloud.header.frame_id == "base_link"
        assert cloud.width >= 900, "no coarser than what the decoder says"
        xyz = np.frombuffer(cloud.data, np.float32).reshape(-1, 4)[:, :3]
        eye = np.array([0.60, 0.0, 0.42])
        distances = np.linalg.norm(xyz - eye, axis=1)
        assert distances.min() > 0.19 and distances.max() < 1.3


def test_garbage_is_reported_and_survived(robot: Companion, tmp_path: Path) -> None:
    with running(tmp_path / "log", {"checkpoint": str(tmp_path)}) as node:
        rest = Robot(robot)
        wait_until(lambda: "no depth decoder" in node.output, "the missing decoder is named")
        wait_until(lambda: rest.paths, "a good chunk is shown", meanwhile=rest.tick_with_chunk)
        bad = ROWS.copy()
        bad[3, 2] = np.nan
        for rows, names in (
            (bad, SO101.joint_names),
            (ROWS[:, :4], SO101.joint_names[:4]),
            (ROWS[:0], SO101.joint_names),
        ):
            shown = len(rest.paths)
            rest.send_chunk(rows, names)
            wait_until(lambda: "action chunk not shown" in node.output, "the refusal", meanwhile=rest.tick)
            rest.overlays["front"].clear()
            wait_until(lambda: len(rest.overlays["front"]) > 1, "overlays go on", meanwhile=rest.tick)
            assert len(rest.paths) == shown
        rest.updated.publish(image_message(np.zeros((2, 3), np.uint8), "mono8", rest.header()))
        wait_until(lambda: "updated cells not shown" in node.output, "the refusal", meanwhile=rest.tick)
        wait_until(lambda: len(rest.paths) > shown, "a good chunk is shown again", meanwhile=rest.tick_with_chunk)
        assert node.interrupt() == 0, node.output


def test_a_real_camera_without_a_calibration_shows_no_path(robot: Companion, tmp_path: Path) -> None:
    """The poses of the simulated cell's cameras would draw it where it is not."""
    with running(tmp_path / "log", {"calibration_file": ""}) as node:
        rest = Robot(robot)
        done = [rest.paths, *rest.overlays.values()]
        wait_until(lambda: all(done), f"path and overlays arrive: {node.output}", meanwhile=rest.tick_with_chunk)
        for overlays in rest.overlays.values():
            overlays.clear()
        wait_until(lambda: all(done), "overlays after the path", meanwhile=rest.tick_with_chunk)
        assert all(colourful(overlays[-1]) <= 50 for overlays in rest.overlays.values())
        assert node.output.count("has no calibration; its overlay has no path") == 2


def test_the_scene_shows_the_way_come_the_command_the_workspace_and_who_drives(
    robot: Companion, tmp_path: Path
) -> None:
    with running(tmp_path / "log", {}) as node:
        rest = Robot(robot)
        scenes = robot.listen(MarkerArray, "visualization/state_markers", NEWEST)
        commands = robot.node.create_publisher(JointState, "executor/command", NEWEST)

        def tick() -> None:
            rest.tick()
            position = START + np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
            commands.publish(
                JointState(header=rest.header(), name=list(SO101.joint_names), position=array.array("d", position))
            )

        def names() -> set[str]:
            return {marker.ns for marker in scenes[-1].markers if marker.action == Marker.ADD} if scenes else set()

        wait_until(
            lambda: names() >= {"executed", "commanded", "workspace", "who"},
            f"the scene is whole: {node.output}",
            meanwhile=tick,
        )
        (who,) = (marker.text for marker in scenes[-1].markers if marker.ns == "who")
        assert who == "tracking: policy drives"


def notice(message: Image) -> np.ndarray:
    picture = image_of(message)
    assert picture.shape == (480, 640, 3)
    return picture


@pytest.mark.parametrize("chunks", [False, True])
def test_where_there_is_no_depth_a_picture_says_so_to_whoever_comes(
    robot: Companion, tmp_path: Path, chunks: bool
) -> None:
    """Without a decoder, and with one and a policy that sends chunks but no codes."""
    parameters: dict[str, object] = {"checkpoint": str(bundled_checkpoint("so101"))} if chunks else {}
    with running(tmp_path / "log", parameters) as node:
        rest = Robot(robot)
        said = "this policy predicts none" if chunks else "hf download allenai/MolmoAct-7B-D-0812 vae-final.pt"
        wait_until(lambda: said in node.output, "the word in the log", meanwhile=rest.tick_with_chunk)
        assert node.output.count(said) == 1
        wait_until(lambda: rest.colour, "the picture arrives", meanwhile=rest.tick)
        late = robot.listen(Image, "visualization/depth_colour", NEWEST)
        wait_until(
            lambda: late and (notice(late[-1]) == notice(rest.colour[-1])).all(),
            "a display that is added by hand gets it too",
            meanwhile=rest.tick,
        )


@pytest.mark.parametrize("anchors", [["arm", "table"], pytest.param(["depth_camera"], marks=pytest.mark.slow)])
def test_relative_depth_becomes_a_cloud_that_says_how_well_it_fits(
    robot: Companion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anchors: list[str]
) -> None:
    """Relative depth of the simulator's view of the arm at `START` and the table, without a unit."""
    cell = make_cell("so101", randomisation=replace(scene_of("so101").randomisation, camera_m=0.0, camera_rad=0.0))
    try:
        cell.place_arm(START)
        mujoco.mj_forward(cell.model, cell.data)
        rendered = cell.render_depth("front")
    finally:
        cell.close()
    np.save(tmp_path / "relative.npy", 0.4 / rendered - 0.2)
    monkeypatch.setenv("RELATIVE_PICTURE", str(tmp_path / "relative.npy"))
    arguments = ros_arguments({"calibration_file": CELL, "depth_decoder": "here", "depth_anchors": anchors})
    with NodeProcess("relative_visualizer", arguments, tmp_path / "log", [Path(__file__).parents[1]]) as node:
        rest = Robot(robot)
        scenes = robot.listen(MarkerArray, "visualization/state_markers", NEWEST)
        depth_camera = robot.node.create_publisher(Image, "cameras/front/depth/image_raw", SENSOR)

        def send() -> None:
            rest.tick()
            if anchors == ["depth_camera"]:
                depth_camera.publish(image_message(rendered, "32FC1", rest.header()))
            rest.send_codes(np.zeros((10, 10)))

        def said() -> list[str]:
            return [marker.text for marker in scenes[-1].markers if marker.ns == "depth"] if scenes else []

        wait_until(lambda: rest.points and said(), f"the cloud and its error arrive: {node.output}", meanwhile=send)
        words = "arm and table" if len(anchors) > 1 else "depth camera"
        assert said()[0].startswith(f"depth fitted to {words}: median error 0.")
        cloud = np.frombuffer(rest.points[-1].data, np.float32).reshape(-1, 4)[:, :3]
        assert np.median(np.abs(cloud[:, 2])) < 0.01, "most of what is seen is the table, at height 0"


def test_relative_depth_without_anything_known_is_an_image_only_and_says_so(
    robot: Companion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "relative.npy", np.random.default_rng(0).uniform(0.0, 1.0, (240, 320)))
    monkeypatch.setenv("RELATIVE_PICTURE", str(tmp_path / "relative.npy"))
    arguments = ros_arguments({"calibration_file": "", "depth_decoder": "here"})
    with NodeProcess("relative_visualizer", arguments, tmp_path / "log", [Path(__file__).parents[1]]) as node:
        rest = Robot(robot)

        def send() -> None:
            rest.tick()
            rest.send_codes(np.zeros((10, 10)))

        wait_until(
            lambda: rest.colour and (rest.colour[-1].height, rest.colour[-1].width) == (240, 320),
            f"the image arrives: {node.output}",
            meanwhile=send,
        )
        wait_until(lambda: "no cloud: camera front has no calibration" in node.output, "the word", meanwhile=send)
        assert not rest.points
