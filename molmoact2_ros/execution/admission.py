"""From a chunk that comes in to the motion that is followed, and when that motion ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import Chunk, ChunkMessage, Refusal, check_start, check_time, chunk_from_message
from molmoact2_ros.execution.config import Counters, ExecutorConfig
from molmoact2_ros.execution.curve import ChunkCurve
from molmoact2_ros.execution.ensemble import Ensemble
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.gripper import BinaryGrippers
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.safe_set import SafeSet
from molmoact2_ros.execution.timeline import Order, Timeline
from molmoact2_ros.execution.workspace import WorkspaceGuard

Array = NDArray[np.float64]

WAY_SAMPLES = 40
"""Points of a chunk's way that are held against the workspace when it is adopted."""


class Admission:
    """Checks, merges and smooths chunks, and puts them on the timeline. Not thread-safe but for `check_message` and
    `curve_of`, which touch nothing that changes."""

    def __init__(
        self,
        robot: Embodiment,
        config: ExecutorConfig,
        safe: SafeSet,
        timeline: Timeline,
        feedback: Feedback,
        counters: Counters,
    ) -> None:
        self._robot, self._config, self._safe = robot, config, safe
        self._timeline, self._feedback, self._counters = timeline, feedback, counters
        self._ensemble = Ensemble(config.ensemble, config.ensemble_decay, robot.gripper_indices)
        limits = self._limits = robot.scaled_limits(config.speed_scale)
        self._decided = BinaryGrippers(robot.gripper_indices, limits.lower, limits.upper)
        self.heard_ns: int | None = None
        """When the last chunk came that could be followed."""
        self.refused = ""
        """Why the newest chunk was not one; empty when it was."""

    def drop(self, epoch_ns: int) -> None:
        """Forget all chunks; only observations of `epoch_ns` or later count from now on."""
        self._timeline.drop(epoch_ns)
        self._ensemble.forget()

    # -- checks -------------------------------------------------------------------------------------------------------

    def check_message(self, message: ChunkMessage) -> Chunk | Refusal:
        """Everything that does not depend on the present moment."""
        return chunk_from_message(self._robot, message, self._config.position_margin)

    def consider(
        self, checked: Chunk | Refusal, now_ns: int, begin_ns: int, rest_ns: int | None, ramping: bool
    ) -> Chunk | Refusal | None:
        """The chunk to follow, why it is refused, or None for one that is ignored.

        An arm that has rested since it was observed begins at the chunk's beginning, at `begin_ns`, however slow the
        policy is. `rest_ns`: since when it rests; None while it moves.
        """
        if isinstance(checked, Refusal):
            return self.refuse(checked)
        ignored = self.reason_to_ignore(checked, ramping)
        if ignored:
            self._counters.chunks_ignored += 1
            self._counters.last_ignored = ignored
            return None
        rested = rest_ns is not None and rest_ns <= checked.stamp_ns
        if rested and checked.late_rows(begin_ns) > 0 and now_ns < checked.end_ns:
            checked = checked.begun_at(begin_ns)
        refusal = self.check_now(checked, now_ns)
        if refusal is not None:
            return self.refuse(refusal)
        self.refused = ""
        return checked

    def refuse(self, refusal: Refusal) -> Refusal:
        """Take note of a refusal, and return it."""
        self.refused = self._counters.last_refusal = refusal.reason
        self._counters.chunks_refused += 1
        return refusal

    def reason_to_ignore(self, chunk: Chunk, ramping: bool) -> str:
        """Why a good chunk does not count; empty when it does."""
        if ramping:
            return "going to the start pose"
        order = self._timeline.order(chunk.stamp_ns)
        return "" if order is Order.NEWER else order.value

    def check_now(self, chunk: Chunk, now_ns: int) -> Refusal | None:
        """Hold a chunk against the clock and against where the arm is."""
        refusal = check_time(chunk, now_ns, self._config.max_future_s)
        if refusal is not None:
            return refusal
        stale = self._feedback.stale(now_ns)
        if stale is not None:
            return Refusal("joint state", f"an action chunk needs a measured position to start from: {stale}")
        assert self._feedback.position is not None
        refusal = check_start(self._robot, chunk, now_ns, self._feedback.position)
        if refusal is None:
            self.heard_ns = now_ns
        return refusal

    # -- on to the timeline -------------------------------------------------------------------------------------------

    def prepare(self, chunk: Chunk, present: Array) -> Chunk:
        """The rows that are followed: averaged, with decided grippers, inside the limits.

        `present` (dof,): what the grippers are told at the moment.
        """
        chunk = self._ensemble.merge(chunk)
        rows = self._decided.decide(chunk.rows, present) if self._config.binary_grippers else chunk.rows
        return replace(chunk, rows=np.clip(rows, self._safe.lower, self._safe.upper))

    def curve_of(self, chunk: Chunk, at_ns: int) -> ChunkCurve:
        """The curve through the rows, passed no faster than the limits allow from `at_ns` on."""
        robot = self._robot
        bounds = self._safe.velocity_bounds if self._safe.varies else None
        from_s = (at_ns - chunk.origin_ns) * 1e-9
        return ChunkCurve.of(chunk, self._limits, robot.gripper_indices, robot.arms, bounds, from_s)

    def splice(self, curve: ChunkCurve, at_ns: int, motion: Motion, guard: WorkspaceGuard) -> Refusal | None:
        """Follow `curve` from the commanded `motion` at `at_ns` on, up to where its way leaves a workspace.

        Refused, and nothing is changed, when that is so soon that the arm could not slow down before it.
        """
        spliced = self._timeline.spliced(curve, at_ns, motion)
        times: Array = np.linspace(0.0, spliced.left_s, WAY_SAMPLES, dtype=np.float64)
        positions = spliced.sample(at_ns, times).position
        positions[0] = motion.position
        outside = guard.first_outside(positions)
        if outside is not None:
            i, reason = outside
            room_s = float(times[max(i - 1, 0)])
            if room_s < self._config.slow_down_s:
                return Refusal("workspace", reason)
            spliced = self._timeline.spliced(curve, at_ns, motion, at_ns + round(room_s * 1e9), reason)
        self._timeline.follow(spliced)
        return None

    # -- and off it ---------------------------------------------------------------------------------------------------

    def ending(self, now_ns: int, due_ns: int, refused: str, slowing: bool) -> Refusal | None:
        """How the chunk on the timeline ends, if it does: `slowing`, `over`, or `old` where it must not go on.

        `due_ns`: what moment the next command is for. `refused`: why the chunks after it are not followed. `slowing`:
        it was said already that it slows down.
        """
        chunk = self._timeline.chunk
        if chunk is None:
            return None
        silence = (now_ns - chunk.origin_ns) * 1e-9
        because = self._timeline.ends_because or refused
        if self._timeline.finished(due_ns):
            horizon = len(chunk.rows) / chunk.rate_hz
            said = f"policy silent for {silence:.2f} s; the chunk's {horizon:.2f} s are used up"
            return Refusal("over", because or said)
        if silence > self._config.chunk_timeout_s:
            limit = self._config.chunk_timeout_s
            return Refusal("old", because or f"policy silent for {silence:.2f} s (limit {limit:.2f} s)")
        if not slowing and self._timeline.slowing(due_ns):
            said = f"policy silent for {silence:.2f} s; slowing down, the chunk is nearly used up"
            return Refusal("slowing", because or said)
        return None
