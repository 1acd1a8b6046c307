"""What a calibration comes to: the file that the package reads, and the words for the one who made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from molmoact2_ros.cameras.calibrating.board import Board, board_from
from molmoact2_ros.cameras.calibrating.solving import CameraFound, Solution
from molmoact2_ros.cameras.calibration import BOARD, pose_in, read_calibration_file
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]


def write_calibration(path: Path, solution: Solution, robot: Embodiment, day: date, stays: bool = False) -> None:
    """Write the cameras of `solution` into a calibration file; cameras that it has already and `solution` has not stay.

    Args:
        day: of the measurement, for whoever reads the file.
        stays: the board lies in the cell for good: its place goes into the file, and the visualizer looks whether it is
            still seen there.

    Raises:
        ValueError: `path` holds something else; or the board is to stay, and was never in the cell.
    """
    content: dict[str, Any] = dict(read_calibration_file(path)) if path.exists() else {}
    for name, found in solution.cameras.items():
        content[name] = _section(found, day)
    if stays:
        lying = [(mount, pose) for mount, pose in solution.boards.values() if mount == robot.base_link]
        if not lying:
            raise ValueError(
                "the board is to stay in the cell, and no picture shows it there: take some with --board cell"
            )
        content[BOARD] = {**solution.board.as_dict(), "mount": lying[-1][0], **_place(lying[-1][1])}
    elif solution.cameras:
        content.pop(BOARD, None)  # measured by other cameras, or moved since
    head = f"# Cameras of a {robot.name}: molmoact2 calibrate cameras. For calibration_file of the visualizer.\n"
    draft = path.with_name(path.name + ".part")
    draft.write_text(head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
    os.replace(draft, path)


def _section(found: CameraFound, day: date) -> dict[str, Any]:
    calibration = found.calibration
    return {
        "width": calibration.width,
        "height": calibration.height,
        "k": _rounded(calibration.k, 4),
        "d": _rounded(calibration.d, 7),
        "mount": calibration.mount,
        **_place(calibration.pose),
        "measured": {
            "day": day.isoformat(),
            "views": len(found.by_view),
            "rms_px": round(found.rms, 2),
            "place_mm": round(found.place_mm, 2),
            "turn_deg": round(found.turn_deg, 3),
        },
    }


def _place(pose: Array) -> dict[str, Any]:
    from scipy.spatial.transform import Rotation

    x, y, z, w = (float(value) for value in Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True))
    return {"xyz": _rounded(pose[:3, 3], 6), "wxyz": _rounded(np.array([w, x, y, z]), 8)}


def _rounded(values: Array, digits: int) -> list[float]:
    return [round(float(value), digits) for value in np.ravel(values)]


def standing_board(path: str | Path) -> tuple[Board, str, Array] | None:
    """The board that a calibration file says is in the cell: what it is, its link, its pose (4, 4); None without one.

    Raises:
        ValueError: the section is there, and says something that cannot be.
    """
    values = read_calibration_file(path).get(BOARD)
    if values is None:
        return None
    try:
        return board_from(values), str(values["mount"]), pose_in(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: section {BOARD} needs squares, square_mm, marker_mm, mount, xyz, wxyz: {error!r}"
        ) from None


def report(solution: Solution, verbose: bool = False) -> str:
    """The solution in words; with `verbose` every picture's error."""
    lines = []
    for name, found in solution.cameras.items():
        k = found.calibration.k
        optics = "its own" if found.optics.own else f"{found.optics.rms:.2f} px RMS over {found.optics.views} views"
        x, y, z = 1e3 * found.calibration.pose[:3, 3]
        lines += [
            f"{name} on {found.calibration.mount}, {found.calibration.width}x{found.calibration.height}",
            f"  place    ({x:.1f}, {y:.1f}, {z:.1f}) mm, known to +-{found.place_mm:.1f} mm and {found.turn_deg:.2f} "
            "degrees",
            f"  optics   f {k[0, 0]:.1f} {k[1, 1]:.1f} px, centre {k[0, 2]:.1f} {k[1, 2]:.1f}; {optics}",
            f"  pictures {len(found.by_view)}, the board in {100 * found.optics.covered:.0f} % of the picture",
            f"  error    {found.rms:.2f} px RMS with the joints as read, {_worst(found.by_view)}",
        ]
        if verbose:
            lines += [
                f"    {px:6.2f} px  {file}" for file, px in sorted(found.by_view.items(), key=lambda item: -item[1])
            ]
    lines += [f"note: {note}" for note in solution.notes]
    lines += [f"NOT calibrated: {reason}" for reason in solution.refused.values()]
    return "\n".join(lines)


def _worst(by_view: Mapping[str, float]) -> str:
    file, px = max(by_view.items(), key=lambda item: item[1])
    return f"worst {px:.2f} px ({file})"
