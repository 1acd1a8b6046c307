"""The executor node's command loop in real time, over ROS 2, beside a process that runs a policy without a pause."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from molmoact2_ros.benchmarking.machine import StolenTime
from molmoact2_ros.bringup.ending import OnEnd
from molmoact2_ros.bringup.processes import ProcessGroup, node_environment
from molmoact2_ros.bringup.specs import NodeSpec
from molmoact2_ros.parameter_files import robot_files

RATES = {"so101": (50.0, 100.0), "franka": (250.0,), "yam": (250.0,)}
"""Set-points a second of each robot: what its drivers take."""
START_S = 120.0


def measure_loops(robots: Iterable[str], seconds: float) -> list[dict[str, Any]]:
    """One run a robot and rate, each `seconds` long; the load is the same process throughout.

    Raises:
        RuntimeError: a node or the load ended early, or the executor did not follow.
    """
    environment = node_environment()
    with subprocess.Popen(
        [sys.executable, "-m", "molmoact2_ros.benchmarking.execution.load"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as load:
        try:
            assert load.stdout is not None
            if load.stdout.readline().strip() != "ready":
                raise RuntimeError("the load ended before its first call; does the policy of the simulated cell run?")
            return [
                _measure(robot, rate, seconds, environment, load)
                for robot in robots
                for rate in RATES.get(robot, (100.0,))
            ]
        finally:
            load.terminate()


def _measure(
    robot: str, rate_hz: float, seconds: float, environment: dict[str, str], load: subprocess.Popen[str]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "replay.json"
        namespace, configs = f"/bench_{robot}", robot_files("so101")
        specs = [
            NodeSpec(
                "executor_node",
                "executor",
                namespace,
                configs,
                parameters=MappingProxyType(
                    # Wide enough for a loaded machine: a halt would end the measurement.
                    {"robot": robot, "command_rate_hz": rate_hz, "max_tick_gap_s": 2.0, "joint_state_timeout_s": 1.0}
                ),
            ),
            NodeSpec(
                "replay_node",
                "replay",
                namespace,
                configs,
                parameters=MappingProxyType(
                    {"robot": robot, "allow_motion": True, "measure_s": seconds, "report": str(report)}
                ),
                on_end=OnEnd.REPORTED,
            ),
        ]
        stolen = StolenTime()
        with ProcessGroup(specs, Path(folder) / "log", environment) as bringup:
            end = time.monotonic() + START_S + seconds
            while not report.is_file():
                time.sleep(0.5)
                if load.poll() is not None:
                    raise RuntimeError("the process that runs the policy has ended")
                if time.monotonic() > end:
                    raise RuntimeError(f"{robot} at {rate_hz:g} Hz: no figures after {seconds + START_S:.0f} s")
                bringup.check()
            time.sleep(0.1)
            found = json.loads(report.read_text())
    if not found.get("following"):
        raise RuntimeError(
            f"{robot} at {rate_hz:g} Hz: the executor ended as {found.get('state')}: {found.get('reason')}"
        )
    figures = {key: float(value) for key, value in found.items() if key.startswith(("period_", "tick_"))}
    return {
        "robot": robot,
        "rate_hz": rate_hz,
        "missed": int(found["missed_deadlines"]),
        "scheduling": found["scheduling"],
        "stolen": stolen.share(),
        **figures,
    }
