"""Measures the closed loop from outside: ages on arrival and periods, as a subscriber sees them. For `molmoact2 bench`.

Writes what it found as JSON to the file `report` when it ends. Counts only while the executor follows the policy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR


def age_ms(message: Any, now_ns: int) -> float:
    """Age of a stamped message at `now_ns`, ms."""
    return (now_ns - nanoseconds(message.header.stamp)) * 1e-6


class ProbeNode(MolmoNode):
    """Invariant: a sample is taken only between two executor states that are both TRACKING."""

    PARAMETERS = (
        Parameter("report", "probe.json", "File for the figures."),
        Parameter("cameras", ["front", "wrist"], "Cameras to listen to."),
        Parameter("command_topic", "executor/command", "Where the executor's set-points go."),
    )

    def __init__(self) -> None:
        super().__init__("probe")
        self._samples: dict[str, list[float]] = {}
        self._last_ns: dict[str, int] = {}
        self._tracking = False
        self._executor: dict[str, float] = {}
        self._report: Path | None = None

    def setup(self) -> None:
        self._report = Path(self.param("report"))
        for name in self.param("cameras"):
            self.listen(Image, f"cameras/{name}/image_raw", partial(self._on_stamped, f"image {name}"), SENSOR)
        self.listen(JointState, "joint_states", partial(self._on_stamped, "joint state"), SENSOR)
        self.listen(JointTrajectory, "policy/action_chunk", partial(self._on_stamped, "action chunk"), NEWEST)
        self.listen(JointState, self.param("command_topic"), self._on_command, NEWEST)
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)

    def teardown(self) -> None:
        if self._report is not None:
            self._report.write_text(json.dumps({"loop": self._figures(), "executor": self._executor}))
            self._report = None

    def _figures(self) -> dict[str, dict[str, float]]:
        found = {}
        for name, values in self._samples.items():
            p50, p99, worst = np.percentile(values, (50, 99, 100))
            found[name] = {"count": len(values), "p50": float(p50), "p99": float(p99), "max": float(worst)}
        return found

    def _take(self, name: str, value: float) -> None:
        self._samples.setdefault(name, []).append(value)

    def _on_stamped(self, name: str, message: Any) -> None:
        now = self.now_ns()
        if self._tracking:
            self._take(f"{name}, age", age_ms(message, now))
            self._period(name, now)

    def _on_command(self, message: JointState) -> None:
        if self._tracking:
            self._period("command", self.now_ns())

    def _period(self, name: str, now: int) -> None:
        if name in self._last_ns:
            self._take(f"{name}, period", (now - self._last_ns[name]) * 1e-6)
        self._last_ns[name] = now

    def _on_executor(self, message: DiagnosticStatus) -> None:
        tracking = message.message == "TRACKING"
        if not (tracking and self._tracking):
            self._last_ns.clear()  # a pause between two episodes is no period
        self._tracking = tracking
        values = {pair.key: pair.value for pair in message.values}
        if tracking:
            if values.get("chunk_age_ms"):
                self._take("chunk in use, age", float(values["chunk_age_ms"]))
            own = {key: value for key, value in values.items() if key.startswith(("period_", "tick_"))}
            self._executor = {key: float(value) for key, value in own.items()}

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        return DiagnosticStatus.OK, "measuring" if self._tracking else "waiting", {}


main = main_of(lambda: ProbeNode())

if __name__ == "__main__":
    main()
