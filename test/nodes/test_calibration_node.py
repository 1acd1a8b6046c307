"""The collector takes whole moments when arm and board stand still at a new view, and says what it waits for."""

from __future__ import annotations

import array
import json
from pathlib import Path

import numpy as np
import pytest
from board_cell import BOARD, BoardCell, Rendered, cameras_of
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header

from molmoact2_ros.cameras.calibrating.collection import read_collection
from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.camera_info import pinhole_info
from molmoact2_ros.nodes.ros.messages import image_message, stamp_of
from molmoact2_ros.nodes.ros.qos import SENSOR

SO101 = embodiment("so101")


def lines(node: NodeProcess) -> list[dict]:
    return [json.loads(text) for text in node.output.splitlines() if text.startswith("{")]


def test_it_takes_still_and_new_views_only_and_ends_with_the_last(tmp_path: Path) -> None:
    cell = BoardCell(cameras=cameras_of(SO101, 2.0))
    rendered = Rendered(cell)
    first, second = cell.poses(2, "wrist")
    pictures = {pose: rendered.picture("wrist", joints) for pose, joints in enumerate((first, second))}
    rendered.close()
    parameters = {
        "cameras": ["wrist"],
        "mounts": ["gripper_link"],
        "folder": str(tmp_path / "pictures"),
        "squares": BOARD.squares,
        "count": 2,
    }
    with (
        Companion() as robot,
        NodeProcess("molmoact2_ros.nodes.calibration_node", ros_arguments(parameters), tmp_path / "log") as node,
    ):
        joints = robot.node.create_publisher(JointState, "joint_states", SENSOR)
        images = robot.node.create_publisher(Image, "cameras/wrist/image_raw", SENSOR)
        infos = robot.node.create_publisher(CameraInfo, "cameras/wrist/camera_info", SENSOR)
        wobble = iter(np.tile([0.0, 0.05], 10_000))

        def publish(pose: int, still: bool = True) -> None:
            header = Header(stamp=stamp_of(robot.node.get_clock().now().nanoseconds), frame_id="wrist")
            values = (first, second)[pose] + (0.0 if still else next(wobble))
            joints.publish(JointState(header=header, name=list(SO101.joint_names), position=array.array("d", values)))
            images.publish(image_message(pictures[pose], "rgb8", header))
            info = pinhole_info(cell.cameras["wrist"])
            info.header = header
            infos.publish(info)

        def told(words: str) -> bool:
            return any(words in line["message"] for line in lines(node))

        wait_until(lambda: told("the arm moves"), "the arm moves", 20.0, lambda: publish(0, still=False))
        assert not list((tmp_path / "pictures").glob("*/*"))
        wait_until(lambda: told("picture 1"), "the first picture", 10.0, lambda: publish(0))
        wait_until(lambda: told("as before"), "the same view again", 10.0, lambda: publish(0))
        wait_until(lambda: told("picture 2"), lambda: f"the second picture; {lines(node)}", 10.0, lambda: publish(1))
        wait_until(lambda: node.popen.poll() is not None, "its end", 10.0)
        assert node.popen.returncode == 0
    read = read_collection(tmp_path / "pictures", SO101)
    assert [view.camera for view in read.views] == ["wrist", "wrist"]
    for view, wanted in zip(read.views, (first, second), strict=True):
        assert view.joints == pytest.approx(wanted, abs=1e-6)
        assert view.mount == "base_link" and view.placement == "01_cell"
    assert read.optics["wrist"].k == pytest.approx(cell.cameras["wrist"].k)


def test_it_refuses_a_board_that_no_camera_moves_against(tmp_path: Path) -> None:
    parameters = {"cameras": ["front"], "mounts": ["base_link"], "folder": str(tmp_path)}
    with NodeProcess("molmoact2_ros.nodes.calibration_node", ros_arguments(parameters), tmp_path / "log") as node:
        wait_until(lambda: node.popen.poll() is not None, "its end", 20.0)
        assert node.popen.returncode == 1 and "let a gripper hold it" in node.output


def test_the_command_takes_pictures_beside_a_running_robot_and_says_what_they_lack(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cell = BoardCell(cameras=cameras_of(SO101, 2.0))
    rendered = Rendered(cell)
    values = cell.poses(1, "wrist")[0]
    picture = rendered.picture("wrist", values)
    rendered.close()
    with Companion() as robot:
        joints = robot.node.create_publisher(JointState, "joint_states", SENSOR)
        images = robot.node.create_publisher(Image, "cameras/wrist/image_raw", SENSOR)

        def publish() -> None:
            header = Header(stamp=stamp_of(robot.node.get_clock().now().nanoseconds), frame_id="wrist")
            joints.publish(JointState(header=header, name=list(SO101.joint_names), position=array.array("d", values)))
            images.publish(image_message(picture, "rgb8", header))

        robot.node.create_timer(0.05, publish)
        status = run(["calibrate", "cameras", "--cameras", "wrist", "--count", "1", "--out", str(tmp_path)])
    said = capfd.readouterr().out
    assert status == 1, said
    assert "picture 1: wrist" in said and "NOT calibrated: camera wrist: 1 views of the board" in said
    assert len(read_collection(tmp_path, SO101).views) == 1 and not (tmp_path / "cameras.yaml").exists()
