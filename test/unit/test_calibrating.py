"""Cameras are found from views of a board, and views that cannot say where they are refused with what to do."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pytest
from board_cell import BENT, BOARD, BoardCell, Rendered, cameras_of, in_gripper, on_table, texture
from scipy.spatial.transform import Rotation

from molmoact2_ros.cameras.calibrating.board import Board, Detector
from molmoact2_ros.cameras.calibrating.bundle import inverse
from molmoact2_ros.cameras.calibrating.checking import check
from molmoact2_ros.cameras.calibrating.collection import (
    CalibrationError,
    CollectionWriter,
    Optics,
    View,
    read_collection,
)
from molmoact2_ros.cameras.calibrating.layout import wrong_board
from molmoact2_ros.cameras.calibrating.result import report, standing_board, write_calibration
from molmoact2_ros.cameras.calibrating.sheet import PAPERS_MM, sheet, write_sheet
from molmoact2_ros.cameras.calibrating.solving import Solution, solve
from molmoact2_ros.cameras.calibrating.suspicion import swapped_arms
from molmoact2_ros.cameras.calibration import distorted, load_calibrations, undistorted
from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.rendering.projection import project

SO101 = embodiment("so101")
PLACES = ((0.23, 0.0, 0.1), (0.20, 0.09, 0.9), (0.26, -0.07, -0.6))
"""Of the board's middle on the table, m, and how it is turned, rad."""


def so101_cell(seed: int = 0) -> BoardCell:
    return BoardCell(cameras=cameras_of(SO101, 2.0, BENT), seed=seed)


def gripper_cell(seed: int = 0) -> BoardCell:
    cameras = cameras_of(SO101, 2.0, BENT)
    return BoardCell(place="gripper", pose=in_gripper(), cameras=cameras, seed=seed)


@pytest.fixture(scope="module")
def cell() -> BoardCell:
    return so101_cell()


@pytest.fixture(scope="module")
def wrist_views(cell: BoardCell) -> list[View]:
    return cell.views(cell.poses(14, "wrist"), ["wrist"])


def solved(cell: BoardCell, views: list[View]) -> Solution:
    return solve(cell.robot, cell.collection(views), cell.mounts())


def errors(cell: BoardCell, found: Solution, name: str) -> tuple[float, float, float]:
    """Of a camera: mm, degrees, share of the focal length."""
    truth, there = cell.cameras[name], found.cameras[name].calibration
    off = inverse(truth.pose) @ there.pose
    turn = np.degrees(np.linalg.norm(Rotation.from_matrix(off[:3, :3]).as_rotvec()))
    focal = np.abs(there.k[[0, 1], [0, 1]] / truth.k[[0, 1], [0, 1]] - 1.0)
    return 1e3 * float(np.linalg.norm(off[:3, 3])), float(turn), float(focal.max())


# -- the sheet --------------------------------------------------------------------------------------------------------


def test_a_detector_finds_what_is_on_the_sheet_at_true_scale(tmp_path: Path) -> None:
    picture = tmp_path / "sheet.png"
    sheet(BOARD).savefig(picture, dpi=127)  # 5 pixels a mm
    grey = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
    assert grey.shape == (1050, 1485)
    seen = Detector(BOARD).find(grey)
    assert list(seen.ids) == list(range(24)) and len(seen.markers) == 17
    assert seen.pixels[5] - seen.pixels[0] == pytest.approx([5 * 150, 0], abs=0.2)


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_the_pdf_has_the_size_of_the_paper_and_a_ruler_of_100_mm(paper: str, tmp_path: Path) -> None:
    out = tmp_path / "board.pdf"
    write_sheet(BOARD, out, paper)
    data = out.read_bytes()
    box = [float(v) for v in re.search(rb"/MediaBox \[\s*([^\]]*)\]", data)[1].split()]
    assert box[2:] == pytest.approx([side / 25.4 * 72 for side in PAPERS_MM[paper]], abs=0.05)
    # The ruler's line, in points, in the page's own drawing commands.
    streams = [zlib.decompress(s) for s in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S) if s[:1] == b"x"]
    lines = [
        [float(value) for value in found]
        for stream in streams
        for found in re.findall(rb"([\d.]+) ([\d.]+) m\s+([\d.]+) ([\d.]+) l", stream)
    ]
    assert any(abs(x1 - x0 - 100 / 25.4 * 72) < 0.05 and abs(y1 - y0) < 0.01 for x0, y0, x1, y1 in lines)


def test_a_board_that_cannot_be_or_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "b.pdf"
    assert run(["calibrate", "board", "--out", str(out), "--squares", "12x9"]) == 2
    assert "squares of at most" in capsys.readouterr().err and not out.exists()
    assert run(["calibrate", "board", "--out", str(out), "--marker-mm", "29"]) == 2
    assert run(["calibrate", "board", "--out", str(out), "--squares", "seven"]) == 2
    assert run(["calibrate", "board", "--out", str(out)]) == 0 and out.exists()


# -- the lens ---------------------------------------------------------------------------------------------------------


def test_a_lens_bends_as_opencv_says_and_back(cell: BoardCell) -> None:
    camera = cell.cameras["wrist"]
    points = np.random.default_rng(0).uniform([-0.3, -0.2, 0.5], [0.3, 0.2, 0.9], (50, 3))
    pixels, in_front = project(points, camera, np.eye(4))
    wanted, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.k, camera.d)
    assert in_front.all() and pixels == pytest.approx(wanted[:, 0], abs=1e-6)
    flat = points[:, :2] / points[:, 2:]
    assert undistorted(distorted(flat, camera.d), camera.d) == pytest.approx(flat, abs=1e-9)


def test_a_point_far_outside_the_image_is_not_bent_back_into_it(cell: BoardCell) -> None:
    camera = replace(cell.cameras["wrist"], d=np.array([-0.35, 0.0, 0.0, 0.0, 0.0]))
    pixels, _ = project(np.array([[3.0, 0.0, 1.0], [0.0, -4.0, 1.0]]), camera, np.eye(4))
    assert pixels[0, 0] > camera.width and pixels[1, 1] < 0


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_a_wrist_camera_over_a_board_in_the_cell(cell: BoardCell, wrist_views: list[View]) -> None:
    found = solved(cell, wrist_views)
    mm, degrees, focal = errors(cell, found, "wrist")
    assert mm < 2.0 and degrees < 0.3 and focal < 0.01
    one = found.cameras["wrist"]
    assert one.calibration.mount == "gripper_link" and not found.refused and not found.notes
    assert one.calibration.d[:2] == pytest.approx(BENT[:2], abs=0.02)
    assert mm < 4.0 * one.place_mm < 20.0  # it knows how well it knows


def test_a_fixed_camera_through_a_board_that_the_gripper_holds() -> None:
    cell = gripper_cell()
    found = solved(cell, cell.views(cell.poses(24, "front"), ["front"]) + cell.in_hand(24, "front"))
    mm, degrees, focal = errors(cell, found, "front")
    assert mm < 2.0 and degrees < 0.3 and focal < 0.01
    assert found.cameras["front"].calibration.mount == "base_link"


def test_a_fixed_camera_through_a_board_that_it_sees_together_with_the_wrist_camera(cell: BoardCell) -> None:
    views = cell.views(cell.poses(16, "wrist"), ["wrist", "front"]) + cell.in_hand(20, "front")
    found = solved(cell, views)
    for name in ("front", "wrist"):
        mm, degrees, focal = errors(cell, found, name)
        assert mm < 2.0 and degrees < 0.3 and focal < 0.01, name


def test_what_does_not_fit_the_others_is_left_out_and_named(cell: BoardCell, wrist_views: list[View]) -> None:
    odd = wrist_views[3]
    moved = replace(odd, seen=replace(odd.seen, pixels=odd.seen.pixels + np.array([25.0, -10.0])))
    found = solved(cell, [*wrist_views[:3], moved, *wrist_views[4:]])
    mm, degrees, _ = errors(cell, found, "wrist")
    assert mm < 2.0 and degrees < 0.3
    assert any(moved.file in note for note in found.notes) and moved.file in found.cameras["wrist"].left_out


# -- what is refused --------------------------------------------------------------------------------------------------


def test_too_few_views(cell: BoardCell, wrist_views: list[View]) -> None:
    assert "tilt it to all sides" in solved(cell, wrist_views[:4]).refused["wrist"]
    known = replace(cell.collection(wrist_views[:5]), optics={"wrist": Optics(cell.cameras["wrist"].k, BENT)})
    assert "5 poses of the arm" in solve(SO101, known, cell.mounts()).refused["wrist"]


def test_views_that_are_all_alike(cell: BoardCell, wrist_views: list[View]) -> None:
    same = [replace(wrist_views[0], moment=f"{i}", file=f"{i}_wrist.png") for i in range(12)]
    assert "1 of them differ" in solved(cell, same).refused["wrist"]
    known = replace(cell.collection(same), optics={"wrist": Optics(cell.cameras["wrist"].k, BENT)})
    assert "all alike" in solve(SO101, known, cell.mounts()).refused["wrist"]


def test_an_arm_that_is_turned_about_one_axis_only(cell: BoardCell) -> None:
    start = cell.poses(1, "wrist")[0]
    poses = [start + turn * np.eye(6)[0] for turn in np.linspace(-0.3, 0.3, 12)]
    views = [cell.view("wrist", f"{i}", joints) for i, joints in enumerate(poses)]
    known = replace(cell.collection(views), optics={"wrist": Optics(cell.cameras["wrist"].k, BENT)})
    assert "about one axis only" in solve(SO101, known, cell.mounts()).refused["wrist"]


def test_a_camera_that_never_saw_the_board_move(cell: BoardCell) -> None:
    joints = cell.poses(1, "wrist")[0]
    views = [cell.view("front", f"{i}", joints) for i in range(9)] + cell.in_hand(10, "front")
    assert "let a gripper hold the board" in solved(cell, views).refused["front"]
    assert "its place is not" in solved(cell, cell.in_hand(10, "front")).refused["front"]


def test_a_board_of_another_size_than_was_said(cell: BoardCell, wrist_views: list[View]) -> None:
    wrong = replace(cell.collection(wrist_views), board=Board(7, 5, 33.0, 24.2))
    with pytest.raises(CalibrationError, match=r"a square of the board has (29|30)\.\d mm, and 33 was said"):
        solve(SO101, wrong, cell.mounts())


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Board(5, 7, 30.0, 22.0), "--squares 7x5 fits"),
        (Board(4, 3, 30.0, 22.0), "--squares 7x5 fits"),
        (Board(9, 6, 30.0, 22.0), "--squares 7x5 fits"),
        (Board(7, 5, 30.0, 25.0), "the markers of the pictures are 2[12]"),
        (BOARD, "^$"),
    ],
)
def test_a_board_with_other_squares_or_markers_than_was_said(told: Board, words: str) -> None:
    flat = cv2.imdecode(np.frombuffer(texture(BOARD, 3.0), np.uint8), cv2.IMREAD_GRAYSCALE)
    flat = cv2.copyMakeBorder(flat, 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=255)
    corners = np.float32([[0, 0], [flat.shape[1], 0], [flat.shape[1], flat.shape[0]], [0, flat.shape[0]]])
    seen = []
    for lean in (40.0, 90.0):
        there = np.float32([[lean, 20], [620 - lean, 40], [630, 460], [10, 450]])
        picture = cv2.warpPerspective(flat, cv2.getPerspectiveTransform(corners, there), (640, 480), borderValue=200)
        seen.append(Detector(told).find(picture))
    assert re.search(words, wrong_board(told, seen)), wrong_board(told, seen)


def test_joint_readings_that_do_not_match(cell: BoardCell, wrist_views: list[View]) -> None:
    bent = np.array([0.0, 0.0, np.radians(5.0), np.radians(-4.0), 0.0, 0.0])
    off = [replace(view, joints=view.joints + bent) for view in wrist_views]
    with pytest.raises(CalibrationError, match=r"zeros of the joints.*calibrate the arm anew"):
        solved(cell, off)
    rng = np.random.default_rng(1)
    noise = [replace(view, joints=view.joints + rng.normal(0.0, 0.08, 6)) for view in wrist_views]
    with pytest.raises(CalibrationError, match="arm and pictures do not fit together"):
        solved(cell, noise)


def test_swapped_cameras(cell: BoardCell) -> None:
    views = cell.views(cell.poses(12, "wrist"), ["wrist", "front"])
    other = {"wrist": "front", "front": "wrist"}
    swapped = [replace(view, camera=other[view.camera]) for view in views]
    own = {other[name]: Optics(camera.k, camera.d) for name, camera in cell.cameras.items()}
    with pytest.raises(CalibrationError, match="cameras front and wrist are exchanged"):
        solve(SO101, replace(cell.collection(swapped), optics=own), cell.mounts())


def test_swapped_arms() -> None:
    yam = embodiment("yam")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("x", np.pi).as_matrix()
    pose[:3, 3] = [0.25, -0.2, 0.0]
    cell = BoardCell(robot=yam, board=Board(7, 5, 40.0, 30.0), pose=pose, cameras=cameras_of(yam, 3.0), seed=2)
    views = cell.views(cell.poses(12, "left", spread=0.7), ["left", "top"])
    own = {name: Optics(camera.k, camera.d) for name, camera in cell.cameras.items()}
    good = solve(yam, replace(cell.collection(views), optics=own), cell.mounts())
    mm, degrees, _ = errors(cell, good, "left")
    assert mm < 3.0 and degrees < 0.5
    swapped = [replace(view, joints=swapped_arms(yam, view.joints)) for view in views]
    with pytest.raises(CalibrationError, match="the arms are swapped"):
        solve(yam, replace(cell.collection(swapped), optics=own), cell.mounts())


# -- files and check --------------------------------------------------------------------------------------------------


def test_the_calibration_file_is_what_the_package_reads(
    cell: BoardCell, wrist_views: list[View], tmp_path: Path
) -> None:
    found, path = solved(cell, wrist_views), tmp_path / "cameras.yaml"
    path.write_text("top: {width: 4, height: 3, k: [1, 0, 2, 0, 1, 1.5, 0, 0, 1], mount: base_link, "
                    "xyz: [0, 0, 1], wxyz: [0, 1, 0, 0]}\n")  # fmt: skip
    write_calibration(path, found, SO101, date(2026, 1, 2), stays=True)
    read = load_calibrations(path)
    assert set(read) == {"top", "wrist"}
    wanted = found.cameras["wrist"].calibration
    assert read["wrist"].pose == pytest.approx(wanted.pose, abs=1e-5)
    assert read["wrist"].k == pytest.approx(wanted.k, abs=1e-3) and read["wrist"].d == pytest.approx(wanted.d, abs=1e-6)
    board, mount, pose = standing_board(path)
    assert (board, mount) == (BOARD, "base_link")
    assert pose[:3, 3] == pytest.approx(cell.pose[:3, 3], abs=0.003)
    assert "known to" in report(found, verbose=True)


def test_a_check_tells_a_good_calibration_from_one_that_is_off(cell: BoardCell) -> None:
    views = cell.views(cell.poses(4, "wrist"), ["wrist", "front"])
    good = check(SO101, cell.collection(views), cell.cameras)
    assert not good.off and all(one.millimetres < 2.0 for one in good.cameras.values())
    pose = cell.cameras["front"].pose @ np.block([[np.eye(3), np.array([[0.02], [0.0], [0.0]])], [0.0, 0.0, 0.0, 1.0]])
    moved = {**cell.cameras, "front": replace(cell.cameras["front"], pose=pose)}
    bad = check(SO101, cell.collection(views), moved)
    assert bad.cameras["front"].off and not bad.cameras["wrist"].off
    assert bad.cameras["front"].millimetres == pytest.approx(20.0, abs=4.0)
    assert any("without front the others agree" in note for note in bad.notes)


def test_a_check_that_could_show_nothing_is_refused(cell: BoardCell, wrist_views: list[View]) -> None:
    with pytest.raises(CalibrationError, match="cannot show an error"):
        check(SO101, cell.collection(wrist_views[:1]), cell.cameras)
    small = {"wrist": replace(cell.cameras["wrist"], width=320, height=240)}
    with pytest.raises(CalibrationError, match="calibrated at 320x240, and its pictures are 640x480"):
        check(SO101, cell.collection(wrist_views), small)
    # With the board's place in the file one view of one camera is enough.
    standing = BOARD, "base_link", cell.pose
    assert not check(SO101, cell.collection(wrist_views[:1]), cell.cameras, standing).off
    away = cell.pose @ np.block([[np.eye(3), np.array([[0.03], [0.0], [0.0]])], [0.0, 0.0, 0.0, 1.0]])
    moved = check(SO101, cell.collection(wrist_views), cell.cameras, (BOARD, "base_link", away))
    assert moved.off and any("30 mm from its place" in note for note in moved.notes)


def test_a_folder_that_is_empty_damaged_or_of_another_robot(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="take some first"):
        read_collection(tmp_path, SO101)
    writer = CollectionWriter(tmp_path, SO101, BOARD, "cell")
    grey = np.full((48, 64, 3), 90, np.uint8)
    file = writer.add({"wrist": grey}, {"wrist": 1}, SO101.rest_position)
    with pytest.raises(CalibrationError, match="none of 1 pictures shows the board"):
        read_collection(tmp_path, SO101)
    with pytest.raises(CalibrationError, match="taken with a so101"):
        read_collection(tmp_path, embodiment("yam"))
    text = file.read_text()
    file.write_text(text.replace('"wrist_flex"', '"wrist_bend"'))
    with pytest.raises(CalibrationError, match=r"wrist_flex.*missing"):
        read_collection(tmp_path, SO101)
    file.write_text(text[:40])
    with pytest.raises(CalibrationError, match="is damaged"):
        read_collection(tmp_path, SO101)
    assert CollectionWriter(tmp_path, SO101, BOARD, "hand").placement == "02_hand"
    with pytest.raises(ValueError, match="can be at cell, hand, gripper"):
        CollectionWriter(tmp_path, SO101, BOARD, "left")


# -- rendered pictures ------------------------------------------------------------------------------------------------


def told_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = run(["calibrate", *arguments])
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.slow
def test_rendered_pictures_are_solved_and_checked_from_their_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = so101_cell(seed=3)
    rendered = Rendered(cell)
    try:
        rendered.write(tmp_path / "pictures", cell.poses(18, "wrist"), ["wrist"])
        rendered.write(tmp_path / "later", cell.poses(3, "wrist"), ["wrist"])
    finally:
        rendered.close()
    status, said = told_by(["cameras", "--images", str(tmp_path / "pictures"), "--verbose"], capsys)
    assert status == 0, said
    path = tmp_path / "pictures" / "cameras.yaml"
    truth, found = cell.cameras["wrist"], load_calibrations(path)["wrist"]
    off = inverse(truth.pose) @ found.pose
    assert np.linalg.norm(off[:3, 3]) < 0.002
    assert np.degrees(np.linalg.norm(Rotation.from_matrix(off[:3, :3]).as_rotvec())) < 0.3
    assert found.k[0, 0] == pytest.approx(truth.k[0, 0], rel=0.01)
    later = ["check", "--images", str(tmp_path / "later"), "--file", str(path)]
    status, said = told_by(later, capsys)
    assert status == 0 and "OFF" not in said
    path.write_text(re.sub(r"\n  xyz: .*", "\n  xyz: [0.03, 0.0, 0.0]", path.read_text()))
    status, said = told_by(later, capsys)
    assert status == 1 and "OFF" in said
    status, said = told_by(["cameras", "--images", str(tmp_path / "pictures"), "--squares", "5x7"], capsys)
    assert status == 2 and "--squares 7x5 fits" in said


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["cell", "gripper"])
def test_rendered_pictures_of_every_way_to_hold_the_board(way: str, seed: int, tmp_path: Path) -> None:
    """As the docs have it: the board at three places of the table under two cameras, or in the gripper under one."""
    if way == "cell":
        cells = [replace(so101_cell(seed), pose=on_table(x, y, yaw)) for x, y, yaw in PLACES]
        cameras, count = ["wrist", "front"], 10
    else:
        cells, cameras, count = [gripper_cell(seed)], ["front"], 26
    for cell in cells:
        rendered = Rendered(cell)
        try:
            rendered.write(tmp_path, cell.poses(count, cameras[0]), cameras)
        finally:
            rendered.close()
    # A board in a hand stands for itself: its views are of corners alone.
    views = [*read_collection(tmp_path, SO101).views, *cell.in_hand(25, "front")]
    found = solved(cell, views)
    for camera in cameras:
        mm, degrees, focal = errors(cell, found, camera)
        assert mm < 2.0 and degrees < 0.3 and focal < 0.01, (camera, mm, degrees, focal)
