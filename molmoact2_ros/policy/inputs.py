"""The newest of every input of the policy, and what is wrong with them. Times are handed in; not thread-safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.policy.interface import Observation

FUTURE_NS = 100_000_000
"""A stamp further ahead than this comes from a clock that is not in step."""


@dataclass(frozen=True)
class Problem:
    """Why no chunk is made. `kind` stays the same as long as the cause does; `waiting` is no fault."""

    kind: str
    message: str
    waiting: bool = False


@dataclass(frozen=True)
class _Sample:
    value: NDArray
    stamp_ns: int
    arrival_ns: int


def task_problem(text: str) -> str:
    """Why `text` tells a robot nothing; empty when it does."""
    if any(character.isalnum() for character in text):
        return ""
    return f"the task {text!r} is empty: publish on 'task' what to do, for example 'pick up the red cube'"


class Inputs:
    """Collects frames, joint states and the task.

    Invariant: `observation` gives only inputs that are all fresh and of this epoch, with every frame newer than the one
    given before.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        camera_timeout_s: float,
        joints_timeout_s: float,
        where_to_begin: Callable[[NDArray[np.float64]], str] = lambda joints: "",
        max_skew_s: float = 0.0,
    ) -> None:
        """`where_to_begin` says why an epoch must not begin at joint positions (dof,), or nothing.

        Once it has begun, the policy may go where it likes. Frames whose stamps are further apart than `max_skew_s`
        make no observation; 0 takes any.
        """
        self._max_skew_ns = round(max_skew_s * 1e9)
        self._reasons: dict[str, str] = {}
        self._cameras = tuple(cameras)
        self._where_to_begin, self._begun = where_to_begin, False
        self._limits = {name: camera_timeout_s for name in cameras} | {"": joints_timeout_s}
        self._samples: dict[str, _Sample] = {}
        self._used: dict[str, int] = {}
        self._task = ""
        self._task_problem = Problem("task", "no task yet: publish one on the topic 'task'", waiting=True)
        self._not_before_ns = 0
        self.epoch = 0
        """Counts the task messages: what was observed under another epoch no longer counts."""

    @property
    def task(self) -> str:
        """What to do; empty while there is none."""
        return self._task

    def on_image(self, camera: str, image: NDArray[np.uint8], stamp_ns: int, now_ns: int) -> None:
        """Take a frame (height, width, 3), captured at `stamp_ns`."""
        self._take(camera, image, stamp_ns, now_ns)

    def on_camera_state(self, camera: str, reason: str) -> None:
        """Take what the camera's own node says is wrong with it, named when no frame comes; empty for nothing."""
        self._reasons[camera] = reason.removeprefix(f"camera {camera!r}: ")

    def on_joints(self, joints: NDArray[np.float64], stamp_ns: int, now_ns: int) -> None:
        """Take measured positions (dof,), rad, ROS order."""
        self._take("", joints, stamp_ns, now_ns)

    def on_no_joints(self, reason: str) -> None:
        """Take why joint states are not used, named when none comes; empty for nothing."""
        self._reasons[""] = reason

    def on_task(self, text: str, now_ns: int) -> bool:
        """Begin a new epoch with this task. Returns False, and leaves no task, when the text says nothing.

        What was seen before belongs to the last epoch and is not used again.
        """
        self.epoch += 1
        self._begun = False
        self._not_before_ns = now_ns
        problem = task_problem(text)
        self._task = "" if problem else text
        self._task_problem = Problem("task", problem)
        return not problem

    def problem(self, now_ns: int) -> Problem | None:
        """The first reason for which nothing can be predicted now, None when every input is fresh."""
        for name in (*self._cameras, ""):
            found = self._stale(name, now_ns)
            if found is not None:
                return found
        skew = self._skew()
        if skew is not None:
            return skew
        if not self._task:
            return self._task_problem
        far = "" if self._begun else self._where_to_begin(self._samples[""].value)
        return Problem("begin", far) if far else None

    def present(self, now_ns: int) -> Observation | None:
        """The newest of every input, all fresh and of this epoch; None while something is missing."""
        if self.problem(now_ns) is not None:
            return None
        if any(sample.stamp_ns < self._not_before_ns for sample in self._samples.values()):
            return None
        frames = {name: self._samples[name] for name in self._cameras}
        state = self._samples[""]
        return Observation(
            images={name: frame.value for name, frame in frames.items()},
            image_stamps_ns={name: frame.stamp_ns for name, frame in frames.items()},
            joints=state.value,
            joints_stamp_ns=state.stamp_ns,
            task=self._task,
        )

    def observation(self, now_ns: int) -> Observation | None:
        """As `present`, with each of its frames new; None also when nothing has changed."""
        found = self.present(now_ns)
        if found is None or any(stamp <= self._used.get(name, 0) for name, stamp in found.image_stamps_ns.items()):
            return None
        self._used = dict(found.image_stamps_ns)
        self._begun = True
        return found

    def _take(self, name: str, value: NDArray, stamp_ns: int, now_ns: int) -> None:
        last = self._samples.get(name)
        if last is not None and now_ns < last.arrival_ns:
            # The clock was set back: what it said before means nothing any more.
            self._samples.clear()
            self._used.clear()
            self._not_before_ns = min(self._not_before_ns, now_ns)
            last = None
        # Best-effort transport may deliver out of order; a camera that comes back may count its time anew.
        if last is None or stamp_ns > last.stamp_ns or now_ns - last.arrival_ns > self._limits[name] * 1e9:
            self._samples[name] = _Sample(value, stamp_ns, now_ns)
            if stamp_ns < self._used.get(name, 0):
                self._used.pop(name)

    def _skew(self) -> Problem | None:
        """What is wrong with the next frames when they lie too far apart.

        Judged only when every frame is new: before, the one that lags may be the one that is still to come.
        """
        frames = {name: self._samples[name].stamp_ns for name in self._cameras}
        if not frames or any(stamp <= self._used.get(name, 0) for name, stamp in frames.items()):
            return None
        late, early = min(frames, key=frames.__getitem__), max(frames, key=frames.__getitem__)
        skew_ns = frames[early] - frames[late]
        if not 0 < self._max_skew_ns < skew_ns:
            return None
        return Problem(
            "camera skew",
            f"camera {late!r} is {skew_ns / 1e9:.2f} s behind camera {early!r} (limit max_skew_s "
            f"{self._max_skew_ns / 1e9:.2f} s); is its rate or its transport too slow, or its clock apart?",
        )

    def _stale(self, name: str, now_ns: int) -> Problem | None:
        what, unit = (f"camera {name!r}", "frame") if name else ("joint states", "message")
        kind, limit = name or "joint_states", self._limits[name]
        sample = self._samples.get(name)
        reason = self._reasons.get(name, "")
        if sample is None:
            ask = reason or "is its node running?"
            return Problem(kind + " absent", f"{what}: no {unit} yet; {ask}", waiting=True)
        silence, age = (now_ns - sample.arrival_ns) / 1e9, (now_ns - sample.stamp_ns) / 1e9
        if silence > limit:
            ask = reason or ("is the cable in?" if name else "is the driver running?")
            return Problem(kind + " silent", f"{what}: no {unit} for {silence:.2f} s (limit {limit:.2f} s); {ask}")
        if age > limit:
            return Problem(
                kind + " old",
                f"{what}: the newest {unit} is {age:.2f} s old on arrival (limit {limit:.2f} s); are the hosts' clocks "
                "in step, and is the network fast enough?",
            )
        if age * 1e9 < -FUTURE_NS:
            return Problem(kind + " ahead", f"{what}: stamps lie {-age:.2f} s in the future; are the clocks in step?")
        return None
