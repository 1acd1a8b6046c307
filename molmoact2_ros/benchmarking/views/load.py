"""What the visualizer costs, over ROS 2 in real time: its processor time, its latency, what the command loop feels."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil

from molmoact2_ros.bringup.ending import OnEnd
from molmoact2_ros.bringup.processes import ProcessGroup, node_environment
from molmoact2_ros.bringup.specs import NodeSpec, Value
from molmoact2_ros.cameras.cell_cameras import CELL
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.parameter_files import robot_files
from molmoact2_ros.share import bundled_checkpoint

ROBOT = "yam"
"""It has three cameras and two arms: there is no more to draw."""
WATCHES = ("no visualizer", "nothing", "overlays", "everything")
START_S = 300.0


@dataclass(frozen=True)
class Cost:
    """Of the visualizer, with `what` subscribed to.

    Attributes:
        core: its share of one core. p50_ms, p99_ms: from an image's stamp to its overlay's arrival; NaN without.
        overlay_hz: overlays a second, of all cameras together. loop_p99_ms: of the executor's command loop, lateness.
    """

    what: str
    core: float
    p50_ms: float
    p99_ms: float
    overlay_hz: float
    loop_p99_ms: float


def measure_costs(seconds: float) -> list[Cost]:
    """One run of `seconds` for each of `WATCHES`.

    Raises:
        RuntimeError: a node ended early, or the executor did not follow.
    """
    return [_measure(watch, seconds) for watch in WATCHES]


def _measure(watch: str, seconds: float) -> Cost:
    robot = embodiment(ROBOT)
    with tempfile.TemporaryDirectory() as folder:
        replayed, looked = Path(folder) / "replay.json", Path(folder) / "onlooker.json"
        seen = watch if watch in WATCHES[1:] else "nothing"
        parts: dict[str, dict[str, Value]] = {
            "executor_node": {"command_rate_hz": 100.0, "max_tick_gap_s": 2.0, "joint_state_timeout_s": 1.0},
            "replay_node": {
                **{"allow_motion": True, "measure_s": seconds, "report": str(replayed)},
                **{"chunk_rate_hz": 30.0, "speed": 0.1},
            },
            "onlooker_node": {"cameras": list(robot.camera_names), "watch": seen, "report": str(looked)},
        }
        if watch != WATCHES[0]:
            parts["visualizer_node"] = {
                **{"cameras": list(robot.camera_names), "calibration_file": CELL, "base_frame": robot.base_link},
                **{"max_rate_hz": 30.0, "overlay_scale": 1, "depth_decoder": str(bundled_checkpoint("so101"))},
            }
        specs = [
            NodeSpec(
                name,
                name.removesuffix("_node"),
                "/bench_views",
                robot_files(ROBOT)[:1],
                parameters=MappingProxyType({"robot": ROBOT, **parameters}),
                on_end=OnEnd.REPORTED,
            )
            for name, parameters in parts.items()
        ]
        with ProcessGroup(specs, Path(folder) / "log", node_environment()) as bringup:
            core = _share(bringup, replayed, seconds)
        found = json.loads(replayed.read_text())
        if not found.get("following"):
            raise RuntimeError(f"{watch}: the executor ended as {found.get('state')}: {found.get('reason')}")
        views: dict[str, Any] = json.loads(looked.read_text())
        latencies: list[float] = views["latencies_ms"]
        waits = np.array(latencies[len(latencies) // 5 :] or [np.nan])  # the first ones come while nodes still start
        return Cost(
            what=watch,
            core=core,
            p50_ms=float(np.percentile(waits, 50)),
            p99_ms=float(np.percentile(waits, 99)),
            overlay_hz=views["overlays"] / views["seconds"] if views["seconds"] else 0.0,
            loop_p99_ms=float(found.get("period_p99_ms", "nan")),
        )


def _share(bringup: ProcessGroup, report: Path, seconds: float) -> float:
    """Share of a core of the visualizer until `report` is there, its start left out."""
    one = bringup.processes.get("visualizer")
    process = None if one is None else psutil.Process(one.popen.pid)
    end = time.monotonic() + START_S + seconds
    marks: list[tuple[float, float]] = []
    while not report.is_file():
        time.sleep(0.5)
        if time.monotonic() > end:
            raise RuntimeError(f"no figures after {seconds + START_S:.0f} s")
        bringup.check()
        if process is not None:
            spent = process.cpu_times()
            marks.append((time.monotonic(), spent.user + spent.system))
    later = [mark for mark in marks if mark[0] > marks[-1][0] - 0.8 * seconds] if marks else []
    if len(later) < 2:
        return 0.0
    return (later[-1][1] - later[0][1]) / (later[-1][0] - later[0][0])
