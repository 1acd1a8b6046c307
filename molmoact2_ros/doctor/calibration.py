"""Check of the calibration file of the cameras."""

from __future__ import annotations

import re
from collections.abc import Iterable

from molmoact2_ros.cameras.calibration import load_calibrations, read_calibration_file
from molmoact2_ros.cameras.cell_cameras import CELL
from molmoact2_ros.diagnostics import Level
from molmoact2_ros.doctor.finding import Cell, Finding, sound
from molmoact2_ros.doctor.probe import Machine
from molmoact2_ros.embodiments import embodiment


def calibration(machine: Machine, cell: Cell) -> Iterable[Finding]:
    """Whether the file can be read, has every camera at its size, and how well it was measured. Whether the cameras are
    still there, only pictures of a board show."""
    file = str(cell.parameter("visualizer", "calibration_file", ""))
    if not cell.robot or file == CELL:
        return
    anew = f"molmoact2 calibrate cameras --robot {cell.robot}  # docs/camera-calibration.md"
    if not file:
        yield sound("calibration", "the config names no calibration_file: pictures have no paths, cameras no frames")
        return
    try:
        known, content = load_calibrations(file), read_calibration_file(file)
    except ValueError as error:
        yield Finding("calibration", Level.ERROR, str(error), anew)
        return
    robot = embodiment(cell.robot)
    names = list(cell.parameter("camera", "names", robot.camera_names))
    formats = list(cell.parameter("camera", "formats", []))
    for i, name in enumerate(names):
        if name not in known:
            yield Finding("calibration", Level.WARN, f"{file} has no camera {name!r}; it has {', '.join(known)}", anew)
            continue
        one = known[name]
        size = re.match(r"(\d+)x(\d+)", str(formats[i if len(formats) > 1 else 0])) if formats else None
        if one.mount not in (robot.base_link, *robot.wrist_links):
            links = ", ".join((robot.base_link, *robot.wrist_links))
            yield Finding("calibration", Level.ERROR, f"{name} is on {one.mount!r}, which is none of {links}", anew)
        elif size and (int(size[1]), int(size[2])) != (one.width, one.height):
            yield Finding(
                "calibration",
                Level.WARN,
                f"{name} was calibrated at {one.width}x{one.height} and runs at {size[1]}x{size[2]}",
                anew,
            )
        else:
            measured = content[name].get("measured") or {}
            known_to = (
                f", measured {measured.get('day', 'some day')}, +-{measured['place_mm']} mm"
                if "place_mm" in measured
                else ""
            )
            yield sound("calibration", f"{name} on {one.mount}{known_to}")
