"""`molmoact2 calibrate`: a board to print, the cameras of a cell, and whether they are still where they were."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molmoact2_ros.cli.arguments import FAILED, OK, Commands, UsageError

if TYPE_CHECKING:
    from molmoact2_ros.cameras.calibrating.board import Board
    from molmoact2_ros.embodiments import Embodiment

DEFAULT_COUNT = 20


def add(commands: Commands) -> None:
    """Add the command's parser."""
    root = commands.add_parser("calibrate", help="where the cameras are: print a board, take pictures, solve, check")
    parts = root.add_subparsers(dest="part", metavar="PART", required=True)
    board = parts.add_parser("board", help="write a ChArUco board to print, as PDF at true scale")
    board.add_argument("--out", type=Path, default=Path("board.pdf"), metavar="FILE", help="(%(default)s)")
    board.add_argument("--paper", default="a4", help="a4, a3 or letter (%(default)s)")
    _add_board(board, "7x5", 30.0, 22.0)
    board.set_defaults(run=_board)
    for name, text, default, run in (
        ("cameras", "take pictures of the board and calibrate the cameras of a robot", "calibration", _cameras),
        ("check", "compare where the board is seen with where the calibration has it", "calibration_check", _check),
    ):
        part = parts.add_parser(name, help=text)
        add_option = part.add_argument
        add_option("--robot", default="so101", help="which robot (%(default)s)")
        add_option("--cameras", default="", metavar="A,B", help="only these; with <name>=<source> they are opened, too")
        add_option("--mounts", default="", metavar="A=LINK,B=LINK", help="what cameras of unusual names are fixed to")
        add_option("--board", default="cell", metavar="WHERE", help="cell, hand, gripper, left or right (%(default)s)")
        add_option("--images", type=Path, metavar="DIR", help="take none: use those in DIR; needs no ROS")
        add_option("--out", type=Path, default=Path(default), metavar="DIR", help="pictures and logs (%(default)s)")
        add_option("--count", type=int, default=DEFAULT_COUNT, metavar="N", help="pictures to take (%(default)s)")
        add_option("--port", default="", metavar="DEV", help="SO-100/101: read its joints; it gets no torque")
        add_option("--calibration-id", default="so101", metavar="ID", help="of an SO-100/101's joints (%(default)s)")
        add_option("--config", default="", metavar="FILE", help="parameter file of the cell: sizes of its cameras")
        add_option("--namespace", default="", metavar="NAME", help="of a running robot (the robot's name)")
        own = "calibration/cameras.yaml" if name == "check" else "cameras.yaml beside the pictures"
        file_help = f"the calibration file ({own})"
        add_option("--file", type=Path, metavar="FILE", help=file_help)
        add_option("--verbose", action="store_true", help="every picture's error")
        if name == "cameras":
            add_option("--stays", action="store_true", help="the board stays in the cell, for checks while it runs")
        _add_board(part, None, None, None)
        part.set_defaults(run=run)


def _add_board(part: argparse.ArgumentParser, squares: str | None, square: float | None, marker: float | None) -> None:
    told = " (%(default)s)" if squares else " (7x5, 30, 22; with --images as told when they were taken)"
    part.add_argument("--squares", default=squares, metavar="CxR", help=f"columns and rows{told}")
    part.add_argument("--square-mm", type=float, default=square, metavar="MM", help="side of a square, as measured")
    part.add_argument("--marker-mm", type=float, default=marker, metavar="MM", help="side of a marker, as measured")


def _board(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.cameras.calibrating.board import Board
    from molmoact2_ros.cameras.calibrating.sheet import write_sheet

    board = Board.of(arguments.squares, arguments.square_mm, arguments.marker_mm)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(board, arguments.out, arguments.paper)
    wide, high = board.size_mm
    print(f"{arguments.out}: {board.said()}, {wide:g} x {high:g} mm. Print it at 100 %, measure the ruler (100 mm).")
    return OK


def _told_board(arguments: argparse.Namespace, before: Board | None) -> Board:
    """The board that the options tell, on top of the one that was told before."""
    from molmoact2_ros.cameras.calibrating.board import Board

    base = before or Board()
    square = base.square_mm if arguments.square_mm is None else arguments.square_mm
    # Who measures a square measures the printer: the markers have grown with it.
    scaled = base.marker_mm * square / base.square_mm
    marker = scaled if arguments.marker_mm is None else arguments.marker_mm
    return Board.of(arguments.squares or base.squares, square, marker)


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _pairs(text: str, what: str) -> dict[str, str]:
    out = {}
    for entry in _entries(text):
        name, equals, value = entry.partition("=")
        if not name or not equals or not value:
            raise UsageError(f"{what} must be <camera>=<link>,...; got {entry!r}")
        out[name] = value
    return out


def _collected(arguments: argparse.Namespace, robot: Embodiment) -> Path:
    """Take pictures where that is asked for, and return their folder."""
    from molmoact2_ros.bringup.calibrating import collect, collecting_nodes
    from molmoact2_ros.bringup.options import Options
    from molmoact2_ros.cameras.calibrating.collection import places
    from molmoact2_ros.cameras.calibrating.solving import usual_mounts

    if arguments.images is not None:
        if not arguments.images.is_dir():
            raise UsageError(f"--images {arguments.images}: no such folder")
        return Path(arguments.images)
    if arguments.board not in places(robot):
        raise UsageError(f"--board of {robot.name} must be one of {', '.join(places(robot))}, got {arguments.board!r}")
    given = _entries(arguments.cameras)
    sources = tuple(entry for entry in given if "=" in entry)
    if sources and len(sources) != len(given):
        raise UsageError("--cameras: either names of running cameras, or <name>=<source> for every one")
    names = [entry.partition("=")[0] for entry in given] or list(robot.camera_names)
    mounts = usual_mounts(robot, names, _pairs(arguments.mounts, "--mounts"))
    options = Options(
        robot=robot.name,
        sim=False,
        namespace=arguments.namespace,
        config=arguments.config,
        cameras=sources,
        ports=(arguments.port,) if arguments.port else (),
        calibration_id=arguments.calibration_id,
    )
    board = _told_board(arguments, None)
    specs = collecting_nodes(options, mounts, board, arguments.board, arguments.out, arguments.count)
    print(_guide(robot, arguments.board, arguments.count))
    try:
        collect(specs, arguments.out / "log", _show)
    except KeyboardInterrupt:
        print("ended; going on with the pictures there are")
    return Path(arguments.out)


def _guide(robot: Embodiment, place: str, count: int) -> str:
    if place == "hand":
        what = "Hold the board in front of each fixed camera: tilted to all sides, near and far, into every corner."
    elif place == "cell":
        what = "The board lies still. Move the arm by hand so that its camera sees it from all sides; turn the gripper."
    else:
        what = "The gripper holds the board. Move the arm by hand so that the cameras see it; turn it to all sides."
    return f"{what}\nA picture is taken whenever all stands still. {count} of them; Ctrl-C ends before."


def _show(line: Mapping[str, Any]) -> None:
    if line.get("type") == "taken":
        covered = line.get("covered", {})
        each = ", ".join(
            f"{name} {corners} corners, {100 * covered.get(name, 0.0):.0f} % of its picture covered"
            for name, corners in line.get("corners", {}).items()
        )
        print(f"  {line['message']}: {each}", flush=True)
    else:
        print(f"  ... {line.get('message', '')}", flush=True)


def _read(arguments: argparse.Namespace, robot: Embodiment, folder: Path) -> Any:
    from molmoact2_ros.cameras.calibrating.collection import board_told, read_collection

    cameras = [entry.partition("=")[0].strip() for entry in _entries(arguments.cameras)]
    asked = arguments.squares or arguments.square_mm is not None or arguments.marker_mm is not None
    board = _told_board(arguments, board_told(folder)) if asked else None
    return read_collection(folder, robot, board, cameras)


def _cameras(arguments: argparse.Namespace) -> int:
    from datetime import date

    from molmoact2_ros.cameras.calibrating.result import report, write_calibration
    from molmoact2_ros.cameras.calibrating.solving import solve, usual_mounts
    from molmoact2_ros.embodiments import embodiment

    robot = embodiment(arguments.robot)
    folder = _collected(arguments, robot)
    collection = _read(arguments, robot, folder)
    mounts = usual_mounts(robot, collection.cameras, _pairs(arguments.mounts, "--mounts"))
    solution = solve(robot, collection, mounts)
    print(report(solution, arguments.verbose))
    path = arguments.file or folder / "cameras.yaml"
    if solution.cameras:
        write_calibration(path, solution, robot, date.today(), arguments.stays)
        print(f"{path}: {', '.join(solution.cameras)}. Name it as calibration_file of the visualizer in your config.")
    return FAILED if solution.refused or not solution.cameras else OK


def _check(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.cameras.calibrating.checking import check, told
    from molmoact2_ros.cameras.calibrating.result import standing_board
    from molmoact2_ros.cameras.calibration import load_calibrations
    from molmoact2_ros.embodiments import embodiment

    robot = embodiment(arguments.robot)
    file = arguments.file or Path("calibration") / "cameras.yaml"
    if not file.is_file():
        raise UsageError(f"no calibration file {file}; name it with --file, or make one: molmoact2 calibrate cameras")
    calibrations = load_calibrations(file)
    if arguments.count == DEFAULT_COUNT:
        arguments.count = 4
    folder = _collected(arguments, robot)
    result = check(robot, _read(arguments, robot, folder), calibrations, standing_board(file))
    print(told(result, arguments.verbose))
    return FAILED if result.off else OK
