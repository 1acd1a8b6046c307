"""Drives episodes on the simulated cell, and counts what came of them. Pure logic: the clock is passed in, the requests
go out as values, and what the cell said comes in as values.

An episode: disarm the executor, reset the cell, say the task, wait for a chunk that has seen the new scene, arm, watch
until the cell reports success or failure or the time is up, disarm. An e-stop ends the episode; the next one begins
when a person has reset it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

SECOND = 1_000_000_000
E_STOPPED = "ESTOPPED"
RESET_S = 20.0
ARM_S = 10.0
REST_S = 0.3
"""Pause after disarming, for the arm to come to rest before it is moved to its start pose."""


class Request(Enum):
    """What the node should do next. Every request but TASK is answered with `EpisodeDriver.answered`."""

    DISARM = "disarm"
    RESET = "reset"
    TASK = "task"
    ARM = "arm"


class Phase(Enum):
    """Where the run is; the values are for the user."""

    CONNECTING = "waiting for the nodes"
    STOPPED = "stopped by the e-stop, until executor/reset_e_stop"
    DISARMING = "disarming"
    RESETTING = "resetting the cell"
    THINKING = "waiting for the first chunk"
    ARMING = "arming"
    RUNNING = "running"
    DONE = "done"


_AWAITED = {Phase.DISARMING: Request.DISARM, Phase.RESETTING: Request.RESET, Phase.ARMING: Request.ARM}


class RunError(RuntimeError):
    """The run cannot go on; the message says what is missing and where to look."""


@dataclass(frozen=True)
class CellReport:
    """What the cell says about its episode (`sim/episode`). Lengths in m, times in s."""

    state: str
    episode: int
    elapsed_s: float
    cube_height_m: float
    min_gripper_distance_m: float
    reached: bool
    success: bool

    @classmethod
    def parse(cls, state: str, values: Mapping[str, str]) -> CellReport:
        """Build a report from the key-values of the message.

        Raises:
            ValueError: a key is missing or no number.
        """
        try:
            return cls(
                state=state,
                episode=int(values["episode"]),
                elapsed_s=float(values["elapsed_s"]),
                cube_height_m=float(values["cube_height_m"]),
                min_gripper_distance_m=float(values["min_gripper_distance_m"]),
                reached=values["reached"].lower() == "true",
                success=values["success"].lower() == "true",
            )
        except KeyError as error:
            raise ValueError(f"sim/episode carries no value {error}; it has {', '.join(values) or 'none'}") from None


@dataclass(frozen=True)
class Result:
    """How one episode ended.

    `outcome` is `success`, `failure`, `timeout` or `fault`; only the cell's physics can make it `success`.
    """

    episode: int
    outcome: str
    reason: str
    elapsed_s: float
    reached: bool
    cube_height_m: float
    min_gripper_distance_m: float | None


@dataclass
class Figures:
    """Times gathered during the run, ms."""

    policy_latency: list[float] = field(default_factory=list)
    """From the oldest observation's capture to the chunk's arrival."""
    chunk_age: list[float] = field(default_factory=list)
    """Age of the chunk in use, sampled while the arm is under its control."""
    stages: dict[str, list[float]] = field(default_factory=dict)
    """What the policy says about its last call, by name."""

    @staticmethod
    def percentiles(values: list[float]) -> dict[str, float] | None:
        """p50, p90 and p99, or None when there are no values."""
        if not values:
            return None
        return {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 90, 99)}


class EpisodeDriver:
    """State machine of a run. Feed it messages, call `step` regularly, and do what it asks.

    Args:
        episodes: how many to run.
        episode_timeout_s: limit of one episode, s of ROS time.
        start_timeout_s: limit for the nodes to come up, and for the first chunk, s.
        chunk_timeout_s: limit for the first chunk of each later episode, s.
    """

    def __init__(
        self, episodes: int, episode_timeout_s: float, start_timeout_s: float = 180.0, chunk_timeout_s: float = 30.0
    ) -> None:
        self._episodes = episodes
        self._episode_timeout_s = episode_timeout_s
        self._start_timeout_s = start_timeout_s
        self._chunk_timeout_s = chunk_timeout_s
        self._since_ns = 0
        self._asked = False
        self._not_before_ns = 0
        self._task_ns = 0
        self._cell_episode = -1
        self.phase = Phase.CONNECTING
        self.results: list[Result] = []
        self.figures = Figures()
        self.report: CellReport | None = None
        self.executor = ("", "")
        self.chunk_stamp_ns = 0
        self.chunk_latency_ms: float | None = None
        self.chunk_age_ms: float | None = None

    # -- what comes in ------------------------------------------------------------------------------------------

    def heard_cell(self, report: CellReport) -> None:
        """Take what the cell says."""
        self.report = report

    def heard_executor(self, state: str, reason: str, chunk_age_ms: float | None = None) -> None:
        """Take the executor's state, its reason, and the age of the chunk that it follows, ms."""
        self.executor = (state, reason)
        self.chunk_age_ms = chunk_age_ms
        if self.phase is Phase.RUNNING and state == "TRACKING" and chunk_age_ms is not None:
            self.figures.chunk_age.append(chunk_age_ms)

    def heard_chunk(self, stamp_ns: int, now_ns: int) -> None:
        """Take note of a chunk from observations captured at `stamp_ns` that arrived at `now_ns`."""
        self.chunk_stamp_ns = stamp_ns
        self.chunk_latency_ms = (now_ns - stamp_ns) * 1e-6
        if self.phase is Phase.RUNNING:
            self.figures.policy_latency.append(self.chunk_latency_ms)

    def heard_stages(self, stages: Mapping[str, float]) -> None:
        """Take what the policy says about the times of its last call, ms."""
        if self.phase is Phase.RUNNING:
            for name, value in stages.items():
                self.figures.stages.setdefault(name, []).append(value)

    def answered(self, request: Request, ok: bool, message: str, now_ns: int) -> None:
        """Take the answer to a request.

        Raises:
            RunError: the cell could not be reset.
            ValueError: the cell's answer to a reset is not an episode number.
        """
        if _AWAITED.get(self.phase) is not request:
            return  # the answer came after its deadline
        self._asked = False
        if request is Request.RESET:
            if not ok:
                raise RunError(f"the simulated cell could not be reset: {message}")
            self._cell_episode = int(message)
            self._enter(Phase.THINKING, now_ns)
        elif request is Request.DISARM:
            if not ok and E_STOPPED in (self.executor[0], *message.replace(":", " ").split()):
                self._enter(Phase.STOPPED, now_ns)
                return
            if not ok:
                raise RunError(f"the executor refused to disarm: {message}")
            if len(self.results) >= self._episodes:
                self._enter(Phase.DONE, now_ns)
            else:
                self._not_before_ns = now_ns + int(REST_S * SECOND)
                self._enter(Phase.RESETTING, now_ns)
        elif ok:
            self._enter(Phase.RUNNING, now_ns)
        else:  # it may want a fresher chunk or a fresh joint state: asked again until the deadline
            self._not_before_ns = now_ns + SECOND // 5

    # -- what goes out ------------------------------------------------------------------------------------------

    def step(self, now_ns: int, missing: str = "") -> Request | None:
        """Return what to do now, or None.

        Args:
            now_ns: ROS time.
            missing: what is not there yet, in words; empty when every node was heard of.

        Raises:
            RunError: a deadline has passed.
        """
        if not self._since_ns:
            self._since_ns = now_ns
        waited_s = (now_ns - self._since_ns) / SECOND
        if self.phase is Phase.CONNECTING:
            if not missing:
                self._enter(Phase.DISARMING, now_ns)
            elif waited_s > self._start_timeout_s:
                raise RunError(f"after {waited_s:.0f} s there is no {missing}; look at its log")
            return None
        if self.phase is Phase.DISARMING and self.executor[0] == E_STOPPED:
            self._enter(Phase.STOPPED, now_ns)
        if self.phase is Phase.STOPPED:  # without a deadline: a person looks first
            if len(self.results) >= self._episodes:
                self._enter(Phase.DONE, now_ns)
            elif self.executor[0] != E_STOPPED:
                self._enter(Phase.DISARMING, now_ns)
            return None
        if self.phase is Phase.DISARMING:
            return self._ask(Request.DISARM, waited_s, ARM_S, "the executor does not answer on executor/arm")
        if self.phase is Phase.RESETTING:
            if now_ns < self._not_before_ns:
                return None
            return self._ask(Request.RESET, waited_s, RESET_S, "the simulated cell does not answer on sim/reset")
        if self.phase is Phase.THINKING:
            return self._think(now_ns, waited_s)
        if self.phase is Phase.ARMING:
            return self._arm(now_ns, waited_s)
        if self.phase is Phase.RUNNING:
            self._watch(now_ns, waited_s)
        return None

    def _ask(self, request: Request, waited_s: float, limit_s: float, silence: str) -> Request | None:
        if waited_s > limit_s:
            raise RunError(f"{silence} (waited {waited_s:.0f} s); is its node alive? look at its log")
        if self._asked:
            return None
        self._asked = True
        return request

    def _think(self, now_ns: int, waited_s: float) -> Request | None:
        if not self._task_ns:
            self._task_ns = now_ns
            return Request.TASK
        if self.chunk_stamp_ns > self._task_ns:
            self._enter(Phase.ARMING, now_ns)
            return None
        limit_s = self._chunk_timeout_s if self.results else self._start_timeout_s
        if waited_s > limit_s:
            raise RunError(
                f"no action chunk on policy/action_chunk for {waited_s:.0f} s after the task was given; "
                "look at the log of the policy"
            )
        return None

    def _arm(self, now_ns: int, waited_s: float) -> Request | None:
        if waited_s > ARM_S:
            self._finish("fault", f"the executor refused to arm: {self._executor_words()}", now_ns)
            return None
        if self._asked or now_ns < self._not_before_ns:
            return None
        self._asked = True
        return Request.ARM

    def _watch(self, now_ns: int, waited_s: float) -> None:
        current = self.current
        if current is not None and current.state in ("success", "failure"):
            self._finish(current.state, "", now_ns)
        elif self.executor[0] in ("FAULT", E_STOPPED):
            self._finish("fault", self._executor_words(), now_ns)
        elif waited_s > self._episode_timeout_s:
            self._finish("timeout", f"no success within {self._episode_timeout_s:.0f} s", now_ns)

    @property
    def current(self) -> CellReport | None:
        """The cell's last word on the episode that is running; None before it said anything about it."""
        return self.report if self.report is not None and self.report.episode == self._cell_episode else None

    def _finish(self, outcome: str, reason: str, now_ns: int) -> None:
        current = self.current
        nearest = current.min_gripper_distance_m if current else None
        self.results.append(
            Result(
                episode=len(self.results),
                outcome=outcome,
                reason=reason,
                elapsed_s=round((now_ns - self._since_ns) / SECOND if self.phase is Phase.RUNNING else 0.0, 3),
                reached=current is not None and current.reached,
                cube_height_m=current.cube_height_m if current else 0.0,
                min_gripper_distance_m=nearest if nearest is not None and math.isfinite(nearest) else None,
            )
        )
        self._task_ns = 0
        self._enter(Phase.DISARMING, now_ns)

    def _executor_words(self) -> str:
        state, reason = self.executor
        return f"{state or 'no state'} ({reason or 'no reason given'})"

    def _enter(self, phase: Phase, now_ns: int) -> None:
        self.phase, self._since_ns, self._asked = phase, now_ns, False

    @property
    def elapsed_s(self) -> float:
        """Time of the running episode by the cell's clock, s."""
        return self.current.elapsed_s if self.phase is Phase.RUNNING and self.current else 0.0

    @property
    def successes(self) -> int:
        """Episodes won so far."""
        return sum(result.outcome == "success" for result in self.results)

    @property
    def reached(self) -> int:
        """Episodes in which the gripper came within 2 cm above the cube."""
        return sum(result.reached for result in self.results)
