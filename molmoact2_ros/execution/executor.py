"""Ties timeline, limits and supervisor together: inputs at any time, one set-point a tick.

Invariants: nothing is commanded unless armed; the first command after arming is the measured position; a refused or
ignored chunk changes nothing; every stop is a jerk-limited deceleration. Grippers keep their last target through a
halt or a fault (an object held stays held); an e-stop stops them too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import Chunk, ChunkMessage, Refusal, check_start, check_time, chunk_from_message
from molmoact2_ros.execution.curve import ChunkCurve
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.supervisor import Change, Event, State, Supervisor
from molmoact2_ros.execution.timeline import Order, Timeline

Array = NDArray[np.float64]

FOLLOWING = (State.TRACKING, State.STOPPING)
"""States in which the chunk, as long as there is one, moves the arm."""


@dataclass(frozen=True)
class ExecutorConfig:
    """Figures of the executor; seconds, rad, Hz.

    Attributes:
        rate_hz: set-points a second.
        blend_s: shortest time in which the difference to a new chunk is faded out.
        slow_down_s: last part of a chunk's horizon, in which the arm slows down to rest.
        joint_state_timeout_s: oldest encoder reading to move on.
        max_future_s: how far a stamp may lie in the future.
        position_margin: how far a target or a reading may lie outside the position limits before it is refused.
        max_tracking_error: largest distance of a measured arm joint from the commands of the last `tracking_window_s`.
        tracking_window_s: covers the lag of the servos.
        tracking_error_s: how long the error must last to be a fault.
        max_tick_gap_s: a longer gap between ticks, or a step back in time, halts the motion.
    """

    rate_hz: float = 100.0
    blend_s: float = 0.2
    slow_down_s: float = 0.3
    joint_state_timeout_s: float = 0.25
    max_future_s: float = 0.1
    position_margin: float = 0.05
    max_tracking_error: float = 0.25
    tracking_window_s: float = 0.3
    tracking_error_s: float = 0.2
    max_tick_gap_s: float = 0.25


@dataclass
class Counters:
    """What became of the chunks, and what the limits and clocks did."""

    chunks_accepted: int = 0
    chunks_previewed: int = 0
    chunks_refused: int = 0
    chunks_ignored: int = 0
    joint_states_refused: int = 0
    slow_downs: int = 0
    clock_jumps: int = 0
    late_rows: int = 0
    """Rows of the present chunk that had passed when it was adopted."""
    last_refusal: str = ""
    last_ignored: str = ""


class Executor:
    """All methods may be called from any thread; `tick` belongs to the command loop. Times are ROS time in ns."""

    def __init__(self, robot: Embodiment, config: ExecutorConfig) -> None:
        self.robot, self.config = robot, config
        self.counters = Counters()
        groups = [list(range(robot.dof))[arm] for arm in robot.arms] + [[j] for j in robot.gripper_indices]
        self._period_s = 1.0 / config.rate_hz
        self._limiter = Limiter(robot.limits, groups, self._period_s)
        self._is_gripper = [False] * len(robot.arms) + [True] * len(robot.gripper_indices)
        self._all_braked, self._none_braked = [True] * len(groups), [False] * len(groups)
        self._arms_braked = [not gripper for gripper in self._is_gripper]
        self._timeline = Timeline(robot.limits, robot.gripper_indices, config.blend_s, config.slow_down_s)
        self._supervisor = Supervisor()
        self._lock = threading.Lock()
        window = round(config.tracking_window_s * config.rate_hz)
        self._feedback = Feedback(robot, config.joint_state_timeout_s, config.max_future_s, window)
        self._engaged = False
        self._fresh = False
        self._blind = False
        self._last_tick_ns: int | None = None
        self._error_since_ns: int | None = None
        self._tracking_error = 0.0
        self._e_stop_pressed = False
        self._hardware_fault = ""
        self._rest = Motion.at_rest(robot.rest_position)

    # -- what the outside sees ------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Present state."""
        return self._supervisor.state

    @property
    def reason(self) -> str:
        """Why it is in that state."""
        return self._supervisor.reason

    @property
    def motion(self) -> Motion:
        """The last commanded position, velocity and acceleration."""
        return self._limiter.motion

    @property
    def pending(self) -> bool:
        """True while there are changes of state to collect."""
        return self._supervisor.pending

    @property
    def settled(self) -> bool:
        """True when nothing is commanded, or the commanded state rests."""
        with self._lock:
            return not self._engaged or self._limiter.motion.still

    def changes(self) -> list[Change]:
        """Take the changes of state since the last call."""
        return self._supervisor.changes()

    def values(self, now_ns: int) -> dict[str, object]:
        """Figures for `executor/state`, ready to print."""
        with self._lock:
            chunk = self._timeline.chunk
            c = self.counters
            age = "" if chunk is None else f"{(now_ns - chunk.stamp_ns) * 1e-6:.1f}"
            seen = "" if self._feedback.position is None else f"{(now_ns - self._feedback.stamp_ns) * 1e-6:.1f}"
            return {
                "chunk_age_ms": age,
                "late_rows": c.late_rows,
                "chunks_accepted": c.chunks_accepted,
                "chunks_previewed": c.chunks_previewed,
                "chunks_refused": c.chunks_refused,
                "chunks_ignored": c.chunks_ignored,
                "last_refusal": c.last_refusal,
                "last_ignored": c.last_ignored,
                "joint_state_age_ms": seen,
                "joint_states_refused": c.joint_states_refused,
                "tracking_error_rad": f"{self._tracking_error:.4f}",
                "limited_ticks": self._limiter.limited_ticks,
                "slow_downs": c.slow_downs,
                "clock_jumps": c.clock_jumps,
            }

    # -- inputs ---------------------------------------------------------------------------------------------------

    def configured(self) -> None:
        """The robot is known and its inputs are connected."""
        with self._lock:
            self._supervisor.handle(Event.CONFIGURED, "configured; call executor/arm to move")

    def cleaned_up(self) -> None:
        """Nothing is connected any more."""
        with self._lock:
            self._engaged = False
            self._supervisor.handle(Event.CLEANED_UP, "not configured")

    def on_joint_state(self, names: Sequence[str], positions: Sequence[float], stamp_ns: int) -> str | None:
        """Take an encoder reading; returns why it was refused, if it was. An unusable reading counts as none."""
        try:
            with self._lock:
                self._feedback.take(names, positions, stamp_ns)
        except ValueError as error:
            self.counters.joint_states_refused += 1
            return str(error)
        return None

    def on_chunk(self, message: ChunkMessage, now_ns: int) -> Refusal | None:
        """Take an action chunk; returns why it was refused, if it was. Old and repeated chunks are ignored."""
        checked = chunk_from_message(self.robot, message, self.config.position_margin)
        curve = None if isinstance(checked, Refusal) else self._curve_of(checked)
        with self._lock:
            if isinstance(checked, Refusal):
                return self._refuse(checked)
            order = self._timeline.order(checked.stamp_ns)
            if order is not Order.NEWER:
                self.counters.chunks_ignored += 1
                self.counters.last_ignored = order.value
                return None
            refusal = check_time(checked, now_ns, self.config.max_future_s) or self._check_against_arm(checked, now_ns)
            if refusal is not None:
                return self._refuse(refusal)
            if not self._supervisor.accepts(Event.CHUNK):
                self.counters.chunks_previewed += 1
                return None
            assert curve is not None
            self.counters.chunks_accepted += 1
            self.counters.late_rows = checked.late_rows(now_ns)
            commanded_ns = now_ns if self._last_tick_ns is None else self._last_tick_ns
            self._timeline.splice(curve, commanded_ns, self._limiter.motion)
            self._supervisor.handle(Event.CHUNK, "following the policy")
        return None

    def on_task(self, now_ns: int) -> None:
        """A new task, or the same once more: chunks observed before it no longer count."""
        with self._lock:
            self._halt("new task; waiting for its first chunk", now_ns)

    def on_e_stop(self, pressed: bool, now_ns: int) -> None:
        """Latch an emergency stop; its release alone changes nothing."""
        with self._lock:
            self._e_stop_pressed = pressed
            if pressed:
                self._timeline.drop(now_ns)
                self._supervisor.handle(Event.E_STOP, "e-stop pressed; release it and call executor/reset_e_stop")

    def on_hardware(self, fault: str, now_ns: int) -> None:
        """Take the driver's word on its hardware: why it must not move, or an empty string when nothing is wrong."""
        with self._lock:
            self._hardware_fault = fault
            if fault and self._supervisor.handle(Event.FAULT, f"driver: {fault}; then disarm and arm again"):
                self._timeline.drop(now_ns)

    def reset_e_stop(self, now_ns: int) -> tuple[bool, str]:
        """Leave ESTOPPED for DISARMED; refused while the cause is there or the arm still moves."""
        with self._lock:
            if self._supervisor.state is not State.ESTOPPED:
                return False, f"not stopped by e-stop; the state is {self._supervisor.state.value}"
            if self._e_stop_pressed:
                return False, "e_stop is still true; release it first"
            if self._engaged and not self._limiter.motion.still:
                return False, "the arm is still decelerating; try again"
            self._release(now_ns)
            self._supervisor.handle(Event.RESET, "e-stop reset; call executor/arm to move")
        return True, "reset; the executor is DISARMED"

    def arm(self, now_ns: int) -> tuple[bool, str]:
        """Begin to hold the measured position; refused with the reason while that is not safe."""
        with self._lock:
            state = self._supervisor.state
            if state in (State.HOLDING, State.TRACKING):
                return True, f"already armed, {state.value}"
            if state is not State.DISARMED:
                return False, f"cannot arm while {state.value}: {self._supervisor.reason}"
            stale = self._feedback.stale(now_ns) or self._hardware_fault
            if stale:
                return False, f"cannot arm: {stale}"
            measured = self._feedback.position
            assert measured is not None
            limits, margin = self.robot.limits, self.config.position_margin
            excess = np.maximum(limits.lower - measured, measured - limits.upper)
            j = int(np.argmax(excess))
            if excess[j] > margin:
                return False, (
                    f"cannot arm: {self.robot.joint_names[j]} is at {measured[j]:.3f} rad, outside its limits "
                    f"{limits.lower[j]:.3f} to {limits.upper[j]:.3f}; move it back by hand"
                )
            self._limiter.reset(np.clip(measured, limits.lower, limits.upper))
            self._rest = self._limiter.motion
            self._feedback.begin(self._rest.position)
            self._timeline.drop(now_ns)
            self._engaged = self._fresh = True
            self._blind = False
            self._error_since_ns = None
            self._supervisor.handle(Event.ARM, "armed; waiting for an action chunk")
        return True, "armed; holding the measured position"

    def disarm(self, now_ns: int) -> tuple[bool, str]:
        """Decelerate, then command nothing more."""
        with self._lock:
            if self._supervisor.state is State.DISARMED:
                return True, "already disarmed"
            if not self._supervisor.handle(Event.DISARM, "disarmed on request"):
                return False, f"cannot disarm while {self._supervisor.state.value}: {self._supervisor.reason}"
            self._timeline.drop(now_ns)
        return True, "decelerating to rest, then DISARMED"

    # -- the tick -------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> Array | None:
        """The set-point (dof,), rad, for `now_ns`; None while nothing may be commanded."""
        with self._lock:
            even = self._watch_clock(now_ns)
            self._last_tick_ns = now_ns
            if not self._engaged:
                return None
            if self._fresh:
                self._fresh = False
                return self._remember(self._limiter.motion.position)
            if even:  # after a jump every reading looks old or new until the next ones have come
                self._watch_inputs(now_ns)
            following = self._supervisor.state in FOLLOWING and not self._timeline.finished(now_ns)
            if following:
                self._rest = self._held(self._timeline.sample(now_ns))
                # The limiter counts from the last command, which was for the tick before.
                setpoint = self._limiter.step(
                    lambda after_s: self._timeline.sample(now_ns, after_s - self._period_s), self._none_braked
                )
            else:
                stopped = self._supervisor.state is State.ESTOPPED
                setpoint = self._limiter.step(self._at_rest, self._all_braked if stopped else self._arms_braked)
            if self._limiter.refusal:
                self._halt(f"limits: {self._limiter.refusal}", now_ns)
            if not following and self._limiter.motion.still:
                self._supervisor.handle(Event.AT_REST, "")
                if self._supervisor.state is State.DISARMED:
                    self._release(now_ns)
            return self._remember(setpoint)

    def _at_rest(self, after_s: float) -> Motion:
        return self._rest

    def _held(self, wanted: Motion) -> Motion:
        """What grippers keep when the arm stops: the last target, inside the limits."""
        return Motion.at_rest(np.clip(wanted.position, self.robot.limits.lower, self.robot.limits.upper))

    def _remember(self, setpoint: Array) -> Array:
        self._feedback.commanded(setpoint)
        return setpoint

    def _release(self, now_ns: int) -> None:
        self._engaged = False
        self._tracking_error = 0.0
        self._timeline.drop(now_ns)

    def _halt(self, reason: str, now_ns: int) -> None:
        """Stop by itself; chunks observed from now on go on."""
        self._timeline.drop(now_ns)
        self._supervisor.handle(Event.HALT, reason)

    # -- watching -------------------------------------------------------------------------------------------------

    def _curve_of(self, chunk: Chunk) -> ChunkCurve:
        return ChunkCurve.of(chunk, self.robot.limits, self.robot.gripper_indices)

    def _refuse(self, refusal: Refusal) -> Refusal:
        self.counters.chunks_refused += 1
        self.counters.last_refusal = refusal.reason
        return refusal

    def _check_against_arm(self, chunk: Chunk, now_ns: int) -> Refusal | None:
        stale = self._feedback.stale(now_ns)
        if stale is not None:
            return Refusal("joint state", f"an action chunk needs a measured position to start from: {stale}")
        assert self._feedback.position is not None
        return check_start(self.robot, chunk, now_ns, self._feedback.position)

    def _watch_clock(self, now_ns: int) -> bool:
        """Halt on a gap between ticks or a step back in time; False when there was one."""
        if self._last_tick_ns is None:
            return True
        gap = (now_ns - self._last_tick_ns) * 1e-9
        if 0.0 < gap <= self.config.max_tick_gap_s:
            return True
        self.counters.clock_jumps += 1
        self._halt(f"the command loop stood still or its clock jumped, by {gap:.3f} s", now_ns)
        if gap <= 0.0:
            self._feedback.clock_went_back(now_ns)
        return False

    def _watch_inputs(self, now_ns: int) -> None:
        state = self._supervisor.state
        stale = self._feedback.stale(now_ns)
        if stale is not None:
            self._error_since_ns = None
            if not self._blind:
                self._blind = True
                self._halt(stale, now_ns)
        else:
            if self._blind:
                self._blind = False
                if state is State.HOLDING:
                    self._supervisor.handle(Event.HALT, "joint_states are back; waiting for a fresh action chunk")
            self._watch_tracking(now_ns)
        state = self._supervisor.state
        chunk = self._timeline.chunk
        if chunk is None or state not in FOLLOWING:
            return
        silence = (now_ns - chunk.stamp_ns) * 1e-9
        if self._timeline.finished(now_ns):
            self._timeline.finish()
            horizon = len(chunk.rows) / chunk.rate_hz
            self._supervisor.handle(
                Event.CHUNK_ENDING, f"policy silent for {silence:.2f} s; the chunk's {horizon:.2f} s are used up"
            )
        elif state is State.TRACKING and self._timeline.slowing(now_ns):
            self.counters.slow_downs += 1
            self._supervisor.handle(
                Event.CHUNK_ENDING, f"policy silent for {silence:.2f} s; slowing down, the chunk is nearly used up"
            )

    def _watch_tracking(self, now_ns: int) -> None:
        """A measured arm joint that is far from every recent command is a fault."""
        self._tracking_error, joint = self._feedback.tracking_error()
        if self._tracking_error <= self.config.max_tracking_error:
            self._error_since_ns = None
            return
        if self._error_since_ns is None:
            self._error_since_ns = now_ns
        if (now_ns - self._error_since_ns) * 1e-9 >= self.config.tracking_error_s:
            name = self.robot.joint_names[joint]
            reason = (
                f"tracking error: {name} is {self._tracking_error:.3f} rad from its command "
                f"(limit {self.config.max_tracking_error:g}); is it blocked, or was the arm moved? Disarm and arm again"
            )
            if self._supervisor.handle(Event.FAULT, reason):
                self._timeline.drop(now_ns)
