"""The nodes that take the pictures of a calibration, beside a running robot or with what they need of one."""

from __future__ import annotations

import json
import os
import selectors
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from molmoact2_ros.bringup.ending import OnEnd
from molmoact2_ros.bringup.options import Options, camera_sources
from molmoact2_ros.bringup.processes import ProcessGroup, node_environment
from molmoact2_ros.bringup.specs import Cell, NodeSpec, Value
from molmoact2_ros.cameras.calibrating.board import Board

COLLECTOR = "calibration"
_POLL_S = 0.2


def collecting_nodes(
    options: Options, mounts: Mapping[str, str], board: Board, place: str, folder: Path, count: int
) -> tuple[NodeSpec, ...]:
    """The collector, and the nodes that are asked for beside it: cameras where `options` has sources of them, and a
    reader of an SO-101's joints, which never gives it torque, where it has a port.

    Args:
        mounts: the cameras to take pictures of, and the link of each.

    Raises:
        ValueError: a port of a robot that is not read so.
    """
    cell = Cell(options)
    found = []
    sources = camera_sources(options)
    if sources:
        given: dict[str, Value] = {"names": list(sources), "sources": list(sources.values())}
        found.append(cell.node("camera_node", given, on_end=OnEnd.ENDS_RUN))
    if options.ports:
        if cell.robot.family != "so101":
            raise ValueError(
                f"a port is read of an SO-100/101 only; start the driver of {options.robot} and let it be guided by "
                "hand"
            )
        reader: dict[str, Value] = {"port": options.ports[0], "calibration_id": options.calibration_id or "so101"}
        found.append(cell.node("so101_reader_node", reader, on_end=OnEnd.ENDS_RUN))
    collector: dict[str, Value] = {
        "cameras": list(mounts),
        "mounts": list(mounts.values()),
        "place": place,
        "folder": str(folder.resolve()),
        "squares": board.squares,
        "square_mm": float(board.square_mm),
        "marker_mm": float(board.marker_mm),
        "count": count,
    }
    found.append(cell.node("calibration_node", collector, on_end=OnEnd.ENDS_RUN))
    return tuple(found)


def collect(specs: tuple[NodeSpec, ...], log_dir: Path, hear: Callable[[Mapping[str, Any]], None]) -> None:
    """Run the nodes until the collector has ended, handing each of its lines to `hear`.

    Raises:
        NodeEndedError: another node has ended, or the collector with an error.
    """
    environment = node_environment()
    # In the domain of a robot that runs, which is ROS's own unless the shell says otherwise.
    environment["ROS_DOMAIN_ID"] = os.environ.get("ROS_DOMAIN_ID", "0")
    with ProcessGroup(specs, log_dir, environment, piped=[COLLECTOR]) as group, selectors.DefaultSelector() as selector:
        process = group.processes[COLLECTOR]
        stream = process.popen.stdout
        assert stream is not None
        os.set_blocking(stream.fileno(), False)
        selector.register(stream.fileno(), selectors.EVENT_READ)
        rest = b""
        while True:
            if selector.select(_POLL_S):
                data = os.read(stream.fileno(), 65536)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    try:
                        hear(json.loads(line))
                    except ValueError:  # something else that a library has printed
                        continue
            group.check(expected=(COLLECTOR,))
        if process.popen.wait() != 0:
            group.check()
