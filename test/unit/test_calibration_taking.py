"""When a picture of the board is taken, decided without ROS; and the nodes that the command starts for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from board_cell import BOARD, BoardCell, Rendered, cameras_of

from molmoact2_ros.bringup.calibrating import collecting_nodes
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.cameras.calibrating.taking import Glance, Taker
from molmoact2_ros.cameras.calibrating.watch import BoardWatch
from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import embodiment

SO101 = embodiment("so101")
TICK = 250_000_000


class Person:
    """Shows a taker what a camera sees, four times a second."""

    def __init__(self, by_hand: bool = False) -> None:
        self.cell = BoardCell(cameras=cameras_of(SO101, 2.0))
        self.taker = Taker(SO101, frozenset() if by_hand else frozenset({"wrist"}), by_hand)
        self.now = 10 * TICK

    def shows(self, joints: np.ndarray, shift: float = 0.0, camera: str = "wrist", late: int = 0, pose=None) -> str:
        self.now += TICK
        for i in range(8):
            self.taker.heard(self.now - TICK + (i + 1) * TICK // 8 - late, joints)
        seen = self.cell.view(camera, "0", joints, pose=pose).seen
        glance = Glance(self.now, 640, replace(seen, pixels=seen.pixels + shift))
        taken, read, reason = self.taker.look({camera: glance})
        if taken:
            self.taker.took(taken, read)
        return reason or "taken"


def test_arm_and_board_must_stand_and_the_view_be_new() -> None:
    person = Person()
    first, second = person.cell.poses(2, "wrist")
    assert person.shows(first) == "board or camera moves"  # nothing to compare it with yet
    assert person.shows(first + 0.02) in ("the arm moves", "board or camera moves")
    assert person.shows(first, shift=4.0) == "board or camera moves"
    said = [person.shows(first) for _ in range(6)]
    assert said.count("taken") == 1 and said[-1].startswith("as before")
    said = [person.shows(second) for _ in range(4)]
    assert said.count("taken") == 1


def test_joints_that_are_silent_or_late_are_not_taken_for_the_picture() -> None:
    person = Person()
    joints = person.cell.poses(1, "wrist")[0]
    said = [person.shows(joints, late=8 * TICK) for _ in range(4)]
    assert "taken" not in said and "older than the picture" in said[-1]
    silent = Taker(SO101, frozenset({"wrist"}), False)
    seen = person.cell.view("wrist", "0", joints).seen
    silent.look({"wrist": Glance(1, 640, seen)})
    assert "nothing on joint_states" in silent.look({"wrist": Glance(TICK, 640, seen)})[2]


def test_a_camera_that_stands_does_not_make_a_view_of_a_board_that_stands() -> None:
    person = Person()
    joints = person.cell.poses(1, "wrist")[0]
    assert [person.shows(joints, camera="front") for _ in range(3)][-1] == "wrist must see the board, and does not"


def test_a_board_in_a_hand_needs_no_arm() -> None:
    person = Person(by_hand=True)
    one, other = person.cell.hand_poses(2, "front")
    joints = SO101.rest_position
    said = [person.shows(joints, camera="front", pose=one) for _ in range(4)]
    assert said[0] == "hold still" and said.count("taken") == 1 and said[-1].startswith("as before")
    assert [person.shows(joints, camera="front", pose=other) for _ in range(3)].count("taken") == 1


def test_the_command_starts_what_is_asked_for_and_nothing_that_moves(tmp_path: Path) -> None:
    mounts = {"front": "base_link", "wrist": "gripper_link"}
    running = collecting_nodes(Options(sim=False), mounts, BOARD, "cell", tmp_path, 5)
    assert [spec.executable for spec in running] == ["calibration_node"]
    sources = ("front=v4l2:/dev/video0", "wrist=v4l2:/dev/video2")
    alone = collecting_nodes(Options(sim=False, cameras=sources, ports=("/dev/x",)), mounts, BOARD, "cell", tmp_path, 5)
    assert [spec.executable for spec in alone] == ["camera_node", "so101_reader_node", "calibration_node"]
    assert alone[1].parameters["port"] == "/dev/x"
    with pytest.raises(ValueError, match="guided by hand"):
        collecting_nodes(Options(robot="yam", sim=False, ports=("can0",)), {"top": "x"}, BOARD, "cell", tmp_path, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cameras", "--board", "left"], "must be one of cell, hand, gripper"),
        (["cameras", "--cameras", "hand"], "--mounts hand=LINK, one of base_link, gripper_link"),
        (["cameras", "--cameras", "front=v4l2:/dev/video0,wrist"], "<name>=<source> for every one"),
        (["cameras", "--images", "nowhere"], "no such folder"),
        (["cameras", "--mounts", "wrist"], "must be <camera>=<link>"),
        (["check", "--file", "nowhere.yaml"], "no calibration file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["calibrate", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_watch_warns_when_the_board_is_not_where_it_should_be() -> None:
    cell = BoardCell(cameras=cameras_of(SO101, 2.0))
    rendered = Rendered(cell)
    still = np.tile(cell.poses(1, "wrist")[0], (5, 1))
    pictures = {camera: rendered.picture(camera, still[0]) for camera in ("front", "wrist")}
    rendered.close()
    watch = BoardWatch(SO101, cell.cameras, (BOARD, "base_link", cell.pose))
    for camera, picture in pictures.items():
        assert watch.look(camera, picture, still) == ""
    moving = still + np.linspace(0.0, 0.1, 5)[:, None]
    assert watch.look("wrist", pictures["wrist"], moving) is None
    assert watch.look("front", pictures["front"], moving) == ""
    away = cell.pose.copy()
    away[0, 3] += 0.02
    moved = BoardWatch(SO101, cell.cameras, (BOARD, "base_link", away))
    for camera, picture in pictures.items():
        said = moved.look(camera, picture, still)
        assert f"camera {camera} sees the board" in said and "px" in said
    assert moved.look("front", np.full((480, 640, 3), 80, np.uint8), still) is None
    assert moved.look("front", pictures["front"][::2, ::2], still) is None, "another size is another camera's"
