"""Runs episodes on the simulated cell and prints what happens as JSON, one object a line.

Lines have a `type`: `status` (5 Hz), `result` (one an episode), `summary` (the last line of a complete run) or `error`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.client import Client
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE
from molmoact2_ros.simulation.episode_driver import CellReport, EpisodeDriver, Figures, Phase, Request, RunError


class EpisodeNode(MolmoNode):
    """Invariant: the executor is armed only between a `RUNNING` phase's start and end, or while arming is asked for."""

    PARAMETERS = (
        Parameter("task", "pick up the red cube", "What the robot is told at the start of every episode."),
        Parameter("episodes", 10, "How many episodes to run.", 1, 100_000),
        Parameter("seed", 1000, "Seed of the placements; the cell has the same, this one is for the report."),
        Parameter("episode_timeout_s", 30.0, "Limit of one episode, s.", 0.1, 3600.0),
        Parameter("start_timeout_s", 180.0, "Limit for the nodes to come up and for the first chunk, s.", 0.1, 3600.0),
        Parameter("chunk_timeout_s", 30.0, "Limit for the first chunk of each later episode, s.", 0.1, 3600.0),
        Parameter("status_hz", 5.0, "Rate of the status lines.", 0.1, 50.0),
    )

    def __init__(self) -> None:
        super().__init__("episode")
        self._printed = 0

    def setup(self) -> None:
        self._driver = EpisodeDriver(
            episodes=self.param("episodes"),
            episode_timeout_s=self.param("episode_timeout_s"),
            start_timeout_s=self.param("start_timeout_s"),
            chunk_timeout_s=self.param("chunk_timeout_s"),
        )
        self._task = self.output(String, "task", LATCHED)
        self._reset: Client = self.create_client(Trigger, "sim/reset")
        self._arm: Client = self.create_client(SetBool, "executor/arm")
        self.listen(DiagnosticStatus, "sim/episode", self._on_cell, LATCHED)
        self.listen(DiagnosticStatus, "executor/state", self._on_executor, LATCHED)
        self.listen(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)

    def start(self) -> None:
        self.every(0.05, self._step)
        self.every(1.0 / self.param("status_hz"), self._print_status)

    # -- messages in --------------------------------------------------------------------------------------------------

    def _on_cell(self, message: DiagnosticStatus) -> None:
        values = {pair.key: pair.value for pair in message.values}
        try:
            self._driver.heard_cell(CellReport.parse(message.message, values))
        except ValueError as error:
            self._end(f"{self.resolve_topic_name('sim/episode')}: {error}")

    def _on_executor(self, message: DiagnosticStatus) -> None:
        values = {pair.key: pair.value for pair in message.values}
        age = values.get("chunk_age_ms", "")
        self._driver.heard_executor(message.message, values.get("reason", ""), float(age) if age else None)

    def _on_chunk(self, message: JointTrajectory) -> None:
        stamp = message.header.stamp
        self._driver.heard_chunk(nanoseconds(stamp), self.now_ns())

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        policies = {f"{self.get_namespace().rstrip('/')}/{name}" for name in ("policy", "expert")}
        for status in message.status:
            if status.name in policies:
                numbers = {}
                for pair in status.values:
                    if pair.key.endswith("_ms") and not pair.key.startswith("latency_p"):
                        try:
                            numbers[pair.key.removesuffix("_ms")] = float(pair.value)
                        except ValueError:
                            continue
                self._driver.heard_stages(numbers)

    # -- requests out -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        driver = self._driver
        try:
            request = driver.step(self.now_ns(), self._missing() if driver.phase is Phase.CONNECTING else "")
        except RunError as error:
            self._end(str(error))
            return
        for result in driver.results[self._printed :]:
            self._print("result", **asdict(result), successes=driver.successes, episodes=self.param("episodes"))
            self._printed += 1
        if request is Request.TASK:
            self._task.publish(String(data=self.param("task")))
        elif request is Request.RESET:
            self._call(self._reset, Trigger.Request(), request)
        elif request is not None:
            self._call(self._arm, SetBool.Request(data=request is Request.ARM), request)
        if driver.phase is Phase.DONE:
            self._print("summary", **self._summary())
            self._end()

    def _missing(self) -> str:
        """Name what was not heard of yet."""
        missing = []
        if self._driver.report is None or not self._reset.service_is_ready():
            missing.append(f"simulated cell ({self.resolve_topic_name('sim/episode')}; node sim)")
        if not self._driver.executor[0] or not self._arm.service_is_ready():
            missing.append(f"executor ({self.resolve_topic_name('executor/state')}; node executor)")
        if not self.count_publishers("policy/action_chunk"):
            missing.append(f"policy ({self.resolve_topic_name('policy/action_chunk')}; node policy or expert)")
        return ", no ".join(missing)

    def _call(self, client: Client, request: Any, asked: Request) -> None:
        def done(future: Future) -> None:
            answer = future.result()
            try:
                self._driver.answered(asked, answer.success, answer.message, self.now_ns())
            except (RunError, ValueError) as error:
                self._end(str(error))

        client.call_async(request).add_done_callback(done)

    # -- lines out ----------------------------------------------------------------------------------------------------

    def _print_status(self) -> None:
        driver = self._driver
        state, reason = driver.executor
        self._print(
            "status",
            phase=driver.phase.value,
            missing=self._missing() if driver.phase is Phase.CONNECTING else "",
            episode=len(driver.results),
            episodes=self.param("episodes"),
            successes=driver.successes,
            reached=driver.reached,
            elapsed_s=round(driver.elapsed_s, 2),
            executor=state,
            reason=reason,
            chunk_age_ms=driver.chunk_age_ms,
            policy_latency_ms=None if driver.chunk_latency_ms is None else round(driver.chunk_latency_ms, 1),
        )

    def _summary(self) -> dict[str, object]:
        driver = self._driver
        figures = driver.figures
        return {
            "episodes": len(driver.results),
            "successes": driver.successes,
            "reached": driver.reached,
            "seed": self.param("seed"),
            "task": self.param("task"),
            "outcomes": [result.outcome for result in driver.results],
            "policy_latency_ms": Figures.percentiles(figures.policy_latency),
            "chunk_age_ms": Figures.percentiles(figures.chunk_age),
            "policy_stages_ms": {name: Figures.percentiles(values) for name, values in sorted(figures.stages.items())},
            "chunks": len(figures.policy_latency),
        }

    def _print(self, kind: str, **values: object) -> None:
        try:
            print(json.dumps({"type": kind, **values}), flush=True)
        except BrokenPipeError:  # the reader has gone
            sys.stdout = None  # type: ignore[assignment]
            self.finished = 1

    def _end(self, error: str = "") -> None:
        """End this node, after an `error` line when the run could not be completed."""
        if error:
            self.get_logger().error(error)
            self._print("error", error=error)
        self.finished = 1 if error else 0

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        driver = self._driver
        return DiagnosticStatus.OK, driver.phase.value, {"episode": len(driver.results), "successes": driver.successes}


main = main_of(lambda: EpisodeNode())

if __name__ == "__main__":
    main()
