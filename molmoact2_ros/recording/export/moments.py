"""Which moments of a bag become frames: an even row of times, at each what the policy would have seen then.

The messages go through the same `Inputs` and the same merging of joint states as in the policy node, in the order and
at the times in which they were recorded. In a first pass over the bag an image is a number, its place in its stream;
`export.images` decodes those that are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.execution.merged_readings import MergedReadings
from molmoact2_ros.policy.inputs import Inputs, task_problem
from molmoact2_ros.policy.interface import Observation
from molmoact2_ros.recording.audit import header_stamp
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions
from molmoact2_ros.recording.export.source import Source, Topics
from molmoact2_ros.recording.export.tracks import Track, commanded

Array = NDArray[np.float64]
PERSON = "teleop"
"""What `executor/driving` says while a person drives."""


@dataclass(frozen=True)
class Frame:
    """One frame of an episode.

    Attributes:
        time_ns: when the policy would have looked, on the recorder's clock.
        images: camera -> number of its image in its stream. image_stamps_ns: when they were captured.
        joints: measured (dof,), action: commanded or measured later (dof,); rad or m, ROS order.
        joints_stamp_ns: when they were measured. task: what to do. intervention: a person drove.
    """

    time_ns: int
    images: dict[str, int]
    image_stamps_ns: dict[str, int]
    joints: Array
    joints_stamp_ns: int
    action: Array
    task: str
    intervention: bool


@dataclass(frozen=True)
class Plan:
    """The frames of a bag: one list an episode; each is evenly spaced in time.

    Attributes:
        age_ns: the median age of an observation, by which the actions are behind the frames' times.
        gaps: what was missing in between, one line each.
    """

    episodes: tuple[tuple[Frame, ...], ...]
    age_ns: int
    gaps: tuple[str, ...]


@dataclass(frozen=True)
class _Tick:
    time_ns: int
    seen: Observation | None
    problem: str


class _Replay:
    """Feeds a bag's messages to what the policy node has, and looks at an even rate."""

    def __init__(self, source: Source, topics: Topics, cameras: tuple[str, ...], options: ExportOptions) -> None:
        robot = options.embodiment
        self._source, self._topics, self._options = source, topics, options
        self._camera_of = {topics.cameras[name]: name for name in cameras}
        self._inputs = Inputs(cameras, options.max_gap_s, options.max_gap_s)
        unstamped = "receive" if options.stamps == "receive" else "refuse"
        self._readings = MergedReadings(robot, options.max_gap_s, unstamped)
        self._names = JointNames(robot, options.joint_map)
        self._numbers = dict.fromkeys(cameras, 0)
        self._driven: list[tuple[int, bool]] = []
        self._refused = ""
        self.measured, self.commands = Track(robot.dof), Track(robot.dof)
        self._task = options.task or (source.about.get("task", "") if "recorded_task" in source.about else "")
        if not self._task and not topics.task:
            self._task = source.about.get("task", "")
        if self._task:
            self._inputs.on_task(self._task, 0)
        self._said = ""

    def ticks(self) -> Iterator[_Tick]:
        topics = self._topics
        named = (*topics.joints, *self._camera_of, topics.commands, topics.task, topics.driving)
        first_ns: int | None = None
        count, due_ns, received_ns = 0, 0, 0
        for topic, received_ns, data in self._source.messages(name for name in named if name):
            while first_ns is not None and due_ns <= received_ns:
                yield self._look(due_ns)
                count += 1
                due_ns = first_ns + round(count * 1e9 / self._options.rate)
            self._take(topic, received_ns, data)
            if first_ns is None and self._inputs.present(received_ns) is not None:
                # Half a period after an image came: what comes a little early or late changes nothing.
                due_ns = first_ns = received_ns + round(0.5e9 / self._options.rate)
        if first_ns is None:
            problem = self._inputs.problem(received_ns)
            why = problem.message if problem is not None else "every input is older than the task"
            raise ExportError(f"{self._source.path}: there is no moment with all inputs: {self._refused or why}")

    def _take(self, topic: str, received_ns: int, data: bytes) -> None:
        topics, by_header = self._topics, self._options.stamps == "header"
        if topic in self._camera_of:
            name = self._camera_of[topic]
            stamp_ns = header_stamp(data) if by_header else received_ns
            self._inputs.on_image(name, np.array([self._numbers[name]]), stamp_ns, received_ns)
            self._numbers[name] += 1
            return
        message = self._source.decoded(topic, data)
        if topic in topics.joints:
            stamp = int(message.header.stamp.sec) * 10**9 + int(message.header.stamp.nanosec)
            stamp_ns = stamp if by_header else received_ns
            found = self._readings.take(self._names.ours(message.name), message.position, stamp_ns, received_ns)
            self._inputs.on_no_joints(found.problem)
            if found.refusal is not None:
                self._refused = f"joint states cannot be used: {found.refusal.reason}"
            if found.position is not None:
                self._inputs.on_joints(found.position, found.stamp_ns, received_ns)
                self.measured.add(found.stamp_ns, found.position)
        if topic == topics.commands:
            command = commanded(message, self._options.embodiment, self._names, received_ns, by_header)
            if command is not None:
                self.commands.add(*command)
        elif topic == topics.driving:
            stamp_ns = int(message.stamp.sec) * 10**9 + int(message.stamp.nanosec)
            self._driven.append((stamp_ns, message.frame_id == PERSON))
        elif topic == topics.task and not self._task and message.data != self._said:
            self._said = message.data
            self._inputs.on_task(message.data, received_ns)

    def _look(self, now_ns: int) -> _Tick:
        problem = self._inputs.problem(now_ns)
        seen = self._inputs.present(now_ns)
        return _Tick(now_ns, seen, "" if problem is None else problem.message)

    def driven(self, times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a person drove at `times` (n,)."""
        if not self._driven:
            return np.zeros(len(times), bool)
        known, person = (np.array(values) for values in zip(*sorted(self._driven), strict=True))
        last = np.searchsorted(known, times, side="right") - 1
        return (last >= 0) & person[np.maximum(last, 0)]


def plan_of(source: Source, topics: Topics, cameras: tuple[str, ...], options: ExportOptions) -> Plan:
    """Choose the frames of a bag.

    Raises:
        ExportError: something is missing, or a gap is too long and `split` is not set.
    """
    _check(source, topics, cameras, options)
    replay = _Replay(source, topics, cameras, options)
    ticks = list(replay.ticks())
    ages = [tick.time_ns - tick.seen.stamp_ns for tick in ticks if tick.seen is not None]
    if not ages:
        raise ExportError(f"{source.path}: there is no moment with all inputs, it is too short")
    age_ns, period_ns = int(np.median(ages)), round(1e9 / options.rate)
    # A chunk's row i is due (i + 1) periods after its observation: so is the action of the frame that is i later.
    due = np.array([tick.time_ns for tick in ticks], np.int64) - age_ns + period_ns
    track = replay.commands if options.action == "commanded" else replay.measured
    actions, known = track.at(due, round(options.max_gap_s * 1e9))
    runs, gaps = _runs(ticks, known, options)
    start_ns = ticks[0].time_ns
    told = tuple(
        f"{(ticks[a].time_ns - start_ns) * 1e-9:.2f} s to {(ticks[b].time_ns - start_ns) * 1e-9:.2f} s: "
        + (ticks[a].problem or f"no {options.action} action")
        for a, b in gaps
    )
    if told and not options.split:
        raise ExportError(f"{source.path} has a gap at {told[0]}; split it there (--split), or leave it out")
    person = replay.driven(due)
    episodes = tuple(
        tuple(_frame(tick, actions[i], bool(person[i])) for i, tick in enumerate(ticks[a:b], a)) for a, b in runs
    )
    if not episodes:
        raise ExportError(
            f"{source.path} has no {options.min_length_s:g} s in one piece with images, joint states and "
            f"{options.action} actions ({len(track)} came)"
        )
    return Plan(episodes, age_ns, told)


def _check(source: Source, topics: Topics, cameras: tuple[str, ...], options: ExportOptions) -> None:
    absent = [name for name in cameras if name not in topics.cameras]
    if absent:
        there = ", ".join(topics.cameras) or "none"
        raise ExportError(f"{source.path} has no images of {', '.join(absent)}; its cameras: {there}")
    if not cameras:
        raise ExportError(f"{source.path} has no camera")
    if not topics.joints:
        raise ExportError(f"{source.path} has no joint states")
    if options.action == "commanded" and not topics.commands:
        raise ExportError(
            f"{source.path} has nothing that was commanded; take what was measured (--action measured), or name the "
            "commands' topic (--map action=TOPIC)"
        )
    task = options.task or topics.task or source.about.get("task", "")
    if not task:
        raise ExportError(f"{source.path} says no task; say it with --task 'pick up the red cube'")
    if options.task and task_problem(options.task):
        raise ExportError(task_problem(options.task))


def _frame(tick: _Tick, action: Array, person: bool) -> Frame:
    seen = tick.seen
    assert seen is not None
    images: dict[str, Any] = {name: int(number[0]) for name, number in seen.images.items()}
    stamps = dict(seen.image_stamps_ns)
    return Frame(tick.time_ns, images, stamps, seen.joints, seen.joints_stamp_ns, action, seen.task, person)


def _runs(
    ticks: list[_Tick], known: NDArray[np.bool_], options: ExportOptions
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs [first, end) of complete ticks that are long enough, and what lies between complete ticks."""
    whole = np.array([tick.seen is not None for tick in ticks]) & known
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(int)))
    every = [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    gaps = [(every[i][1], every[i + 1][0]) for i in range(len(every) - 1)]
    least = max(2, round(options.min_length_s * options.rate))
    return [(a, b) for a, b in every if b - a >= least], gaps
