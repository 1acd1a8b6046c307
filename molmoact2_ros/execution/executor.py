"""Ties timeline, limits, watches and supervisor together: inputs at any time, one set-point a tick.

Invariants: nothing is commanded unless armed; the first command after arming is where the arm is, or the target that it
rests beside since it was reached; a refused or ignored chunk changes nothing; every stop is a jerk-limited deceleration
whose time is known when it begins. A stop of one arm stops all. After a fault or an e-stop the executor lets go once
the arm rests, so that no old pose is left for the arm to come back to. Grippers keep their last target through a halt
or a fault (an object held stays held); an e-stop stops them too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.admission import Admission
from molmoact2_ros.execution.arming import reason_not_to_arm, start_pose
from molmoact2_ros.execution.chunk import Chunk, ChunkMessage, Refusal
from molmoact2_ros.execution.config import Counters, ExecutorConfig
from molmoact2_ros.execution.feedback import Feedback
from molmoact2_ros.execution.figures import shown
from molmoact2_ros.execution.handover import Handover
from molmoact2_ros.execution.joint_states import ReadingError
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.mover import Mover, Path
from molmoact2_ros.execution.steady_target import SteadyTarget
from molmoact2_ros.execution.supervisor import FOLLOWING, LET_GO, Change, Event, State, Supervisor
from molmoact2_ros.execution.watch import Watch

Array = NDArray[np.float64]

__all__ = ["Executor", "ExecutorConfig"]


class Executor:
    """All methods may be called from any thread; `tick` belongs to the command loop. Times are ROS time in ns.

    Raises:
        ValueError: the configuration does not fit the robot.
    """

    def __init__(self, robot: Embodiment, config: ExecutorConfig) -> None:
        config.check(robot)
        self.robot, self.config = robot, config
        self.counters = Counters()
        self._mover = Mover(robot, config, self.counters)
        self._supervisor = Supervisor()
        self._lock = threading.Lock()
        self._feedback = Feedback(robot, config, self.counters)
        self.joint_publishers = self._feedback.publishers  # their ids -> names for messages, put here by who knows
        self._watch = Watch(robot, config, self._feedback)
        safe, timeline = self._mover.limiter.safe, self._mover.timeline
        self._admission = Admission(robot, config, safe, timeline, self._feedback, self.counters)
        self._steady = SteadyTarget(robot)
        self.handover = Handover(robot, config, self._mover, self._supervisor, self._lock, self._stop, self._drop)
        self._engaged = False
        self._arming = self._e_stop_reason = self._hardware_fault = self._out_of_bounds = ""
        self._rest_ns: int | None = None
        self._last_tick_ns: int | None = None

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
    def arming(self) -> str:
        """Names the present arming, or the last one; every command carries it, so that a driver can tell an old stream
        of commands from a new one."""
        return self._arming

    @property
    def motion(self) -> Motion:
        """The last commanded position, velocity and acceleration."""
        return self._mover.motion

    @property
    def gripper_targets(self) -> Array:
        """Where the grippers (n,) are to go in the end, rad or m; commands are on the way there."""
        return self._mover.rest[list(self.robot.gripper_indices)]

    @property
    def stop_due_ns(self) -> int | None:
        """By when the stop under way has ended, if every tick comes; None while nothing stops."""
        return self._mover.stops.due_ns

    @property
    def pending(self) -> bool:
        """True while there are changes of state to collect."""
        return self._supervisor.pending

    @property
    def settled(self) -> bool:
        """True when nothing is commanded, or the commanded state rests."""
        with self._lock:
            return not self._engaged or self._mover.motion.still

    def changes(self) -> list[Change]:
        """Take the changes of state since the last call."""
        return self._supervisor.changes()

    def values(self, now_ns: int) -> dict[str, object]:
        """What `executor/state` says beside state and reason, ready to print."""
        with self._lock:
            return shown(now_ns, self._mover, self._feedback, self._watch, self.handover, self.counters)

    # -- inputs ---------------------------------------------------------------------------------------------------

    def configured(self, e_stopped: bool = False) -> None:
        """The robot is known and its inputs are connected. `e_stopped`: an e-stop from before still has to be reset."""
        with self._lock:
            self._supervisor.handle(Event.CONFIGURED, "configured; call executor/arm to move")
            if e_stopped:
                self._supervisor.handle(Event.E_STOP, "an e-stop from before was not reset; call executor/reset_e_stop")

    def cleaned_up(self) -> None:
        """Nothing is connected any more."""
        with self._lock:
            self._engaged = False
            self._supervisor.handle(Event.CLEANED_UP, "not configured")

    def on_joint_state(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        now_ns: int | None = None,
        publisher: str = "",
    ) -> Refusal | None:
        """Take an encoder reading, see `Feedback.take`; returns why it was refused, if it was. That counts as none.

        With `now_ns` a reading from the future is refused at once; without, it makes the arm hold until its time comes.
        """
        with self._lock:
            try:
                self._watch.measured(self._feedback.take(names, positions, stamp_ns, now_ns, publisher))
            except ReadingError as error:
                return Refusal(error.kind, str(error))
        return None

    def on_acknowledgement(self, stamp_ns: int) -> None:
        """The driver has passed on a command at `stamp_ns`."""
        with self._lock:
            self._watch.acknowledged(stamp_ns)

    def on_chunk(self, message: ChunkMessage | Refusal, now_ns: int) -> Refusal | None:
        """Take an action chunk, or what spoke against reading it; returns why it was refused, if it was. Old and
        repeated chunks are ignored."""
        checked = message if isinstance(message, Refusal) else self._admission.check_message(message)
        with self._lock:
            begin_ns, rest_ns = self._mover.commanded_ns(now_ns), self._rest_ns if self._engaged else 0
            chunk = self._admission.consider(checked, now_ns, begin_ns, rest_ns, ramping=self._mover.ramp is not None)
            if not isinstance(chunk, Chunk):
                return chunk
            if self.handover.active or not self._supervisor.accepts(Event.CHUNK):
                self.counters.chunks_previewed += 1
                return None
            rows = self._admission.prepare(chunk, self._mover.rest)
        curve = self._admission.curve_of(rows, begin_ns)  # some milliseconds, which the tick need not wait for
        with self._lock:
            # Meanwhile the arm may have been stopped, or a stop may have ended.
            stopped = self._admission.reason_to_ignore(chunk, self._mover.ramp is not None)
            if stopped or self.handover.active or not self._supervisor.accepts(Event.CHUNK):
                return None
            commanded_ns = self._mover.commanded_ns(now_ns)
            outside = self._admission.splice(curve, commanded_ns, self._mover.motion, self._mover.guard)
            if outside is not None:
                self._out_of_bounds = outside.reason
                if self._supervisor.state is State.HOLDING:
                    self._supervisor.handle(Event.HALT, outside.reason)
                return self._admission.refuse(outside)
            self._out_of_bounds = ""
            self.counters.chunks_accepted += 1
            self.counters.late_rows = chunk.late_rows(now_ns)
            self._mover.stops.forget()
            self._supervisor.handle(Event.CHUNK, "following the policy")
        return None

    def on_task(self, now_ns: int) -> None:
        """A new task, or the same once more: chunks observed before it no longer count."""
        with self._lock:
            if not self.handover.active:  # a person goes on, and no chunk counts before the arm is given back
                self._stop(Event.HALT, "new task; waiting for its first chunk", now_ns)

    def on_e_stop(self, pressed: bool, now_ns: int, reason: str = "e-stop pressed; release it") -> None:
        """Latch an emergency stop; its release alone changes nothing. `reason`: what is wrong while it is `pressed`."""
        with self._lock:
            self._e_stop_reason = reason if pressed else ""
            if pressed:
                self._stop(Event.E_STOP, f"{reason} and call executor/reset_e_stop", now_ns)

    def on_hardware(self, fault: str, now_ns: int) -> None:
        """Take the driver's word on its hardware: why it must not move, or an empty string when nothing is wrong."""
        with self._lock:
            self._hardware_fault = fault
            if fault:
                self._stop(Event.FAULT, f"driver: {fault}; then disarm and arm again", now_ns)

    def reset_e_stop(self, now_ns: int) -> tuple[bool, str]:
        """Leave ESTOPPED for DISARMED; refused while the cause is there or the arm still moves."""
        with self._lock:
            if self._supervisor.state is not State.ESTOPPED:
                return False, f"not stopped by e-stop; the state is {self._supervisor.state.value}"
            if self._e_stop_reason:
                return False, f"not reset: {self._e_stop_reason}"
            if self._engaged and not self._mover.motion.still:
                return False, "the arm is still decelerating; try again"
            self._release(now_ns)
            self._supervisor.handle(Event.RESET, "e-stop reset; call executor/arm to move")
        return True, "reset; the executor is DISARMED"

    def arm(self, now_ns: int) -> tuple[bool, str]:
        """Begin to hold the measured position; refused with the reason while that is not safe."""
        with self._lock:
            if self._supervisor.state in (State.HOLDING, State.TRACKING):
                return True, f"already armed, {self._supervisor.state.value}"
            refusal = self._arm(now_ns, to_start=self.config.ramp_on_arming)
            if refusal:
                return False, refusal
            if self.config.ramp_on_arming:
                return self._begin_ramp(now_ns)
        return True, "armed; holding the measured position"

    def disarm(self, now_ns: int) -> tuple[bool, str]:
        """Decelerate, then command nothing more."""
        with self._lock:
            if self._supervisor.state is State.DISARMED:
                return True, "already disarmed"
            if not self._stop(Event.DISARM, "disarmed on request", now_ns):
                return False, f"cannot disarm while {self._supervisor.state.value}: {self._supervisor.reason}"
        return True, "decelerating to rest, then DISARMED"

    def go_to_start(self, now_ns: int) -> tuple[bool, str]:
        """Ramp to the start pose, from HOLDING or, arming first, from DISARMED; refused with the reason."""
        with self._lock:
            if self._supervisor.state is not State.HOLDING:
                refusal = self._arm(now_ns, to_start=True)
                if refusal:
                    return False, refusal.replace("cannot arm", "cannot go to the start pose")
            return self._begin_ramp(now_ns)

    # -- the tick -------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> Array | None:
        """The set-point (dof,), rad, to send at `now_ns`; None while nothing may be commanded.

        It is where the arm shall be when the next one takes effect: one period, and the way to the robot, later.
        """
        with self._lock:
            jump = self._watch.clock(now_ns, self._last_tick_ns)
            if jump is not None:
                self.counters.clock_jumps += 1
                self._stop(jump.event, jump.reason, now_ns)
                if self._mover.stops.due_ns is not None:  # what was computed counts from before the jump
                    stopped = self._supervisor.state is State.ESTOPPED
                    self._mover.stops.set_time(self._mover.due_ns(now_ns), None if stopped else self._mover.rest)
            self._last_tick_ns = now_ns
            if not self._engaged:
                self._supervisor.handle(Event.AT_REST, "")  # disarmed from a fault: the arm was let go already
                return None
            due_ns = self._mover.due_ns(now_ns)
            if self._mover.last_due_ns is None:  # the first command after arming
                self._mover.last_due_ns = due_ns
                return self._mover.motion.position
            if jump is None:  # after a jump every reading looks old or new until the next ones have come
                found = self._watch.inputs(now_ns, self._supervisor.state is State.HOLDING)
                if found is not None:
                    self._stop(found.event, found.reason, now_ns)
                self._watch_horizon(now_ns, due_ns)
                self.handover.tick(now_ns)
            path = self._path(due_ns)
            if path is not None:
                setpoint = self._mover.follow(path, due_ns)
            else:
                setpoint = self._mover.brake(due_ns, grippers=self._supervisor.state is State.ESTOPPED)
            self._mover.last_due_ns = due_ns
            if self._mover.limiter.blocked is not None:
                self._stop(Event.HALT, self._mover.guard.reason, now_ns)
            if self._mover.refused_s > self.config.refusal_s:
                self._stop(Event.HALT, f"limits: {self._mover.limiter.refusal}", now_ns)
            rests = path is None and self._mover.motion.still
            if rests:
                self._mover.stops.ended()
                self._supervisor.handle(Event.AT_REST, "")
                if self._supervisor.state in LET_GO:
                    self._release(now_ns)
            self._rest_ns = None if not rests else self._rest_ns or now_ns
            self._watch.commanded(setpoint)
            fresh = None if self._feedback.stale(now_ns) else self._feedback.position
            self._steady.note(setpoint, fresh, now_ns)
            return setpoint

    def _path(self, due_ns: int) -> Path | None:
        """What moves the arm; None when nothing does."""
        return self._mover.path(due_ns) if self._supervisor.state in FOLLOWING else None

    # -- stops ------------------------------------------------------------------------------------------------------

    def _stop(self, event: Event, reason: str, now_ns: int) -> bool:
        """Hand `event` to the supervisor; where it stops the arm, on the path if that fits, after a fault or an e-stop
        as fast as it can. Only chunks observed from now on go on. False when the event means nothing in the present
        state."""
        if event is not Event.HALT and not self._supervisor.accepts(event):
            return False
        commanded_ns = self._mover.commanded_ns(now_ns)
        if event in (Event.FAULT, Event.E_STOP):
            self._steady.forget()  # somebody may move the arm, or have it connected anew, before it is armed again
            self._mover.stops.forget()  # whatever keeps the arm from doing as it is told, push no longer than needed
        elif self._mover.last_due_ns is not None and (path := self._path(commanded_ns)) is not None:
            self._mover.stops.plan(path, commanded_ns)
        self._drop(now_ns)
        accepted = self._supervisor.handle(event, reason)
        if self._engaged and self._mover.stops.due_ns is None:
            self._mover.stops.set_time(commanded_ns, None if event is Event.E_STOP else self._mover.rest)
        return accepted

    def _drop(self, now_ns: int) -> None:
        self._mover.ramp = None
        self.handover.interrupted()
        self._admission.drop(now_ns)

    def _release(self, now_ns: int) -> None:
        self._engaged = False
        self.handover.end()
        self._mover.stops.forget()
        self._watch.end()
        self._drop(now_ns)

    # -- arming and ramp ----------------------------------------------------------------------------------------------

    def _arm(self, now_ns: int, to_start: bool) -> str:
        """Engage at the measured position; returns why not, if not. `to_start`: the start pose is where it will go."""
        if self._supervisor.state is not State.DISARMED:
            return f"cannot arm while {self._supervisor.state.value}: {self._supervisor.reason}"
        heard_ns = None if to_start else self._admission.heard_ns
        refusal = self._hardware_fault or reason_not_to_arm(
            self.robot, self.config, self._feedback, heard_ns, now_ns, to_start, self._admission.refused
        )
        if refusal:
            return f"cannot arm: {refusal}"
        assert self._feedback.position is not None
        self._mover.begin(self._steady.resting_target(self._feedback.position))
        self._watch.begin(self._mover.rest, now_ns)
        self._drop(now_ns)
        self._engaged = True
        self._rest_ns = now_ns
        self._arming = f"arming {now_ns}"
        self._out_of_bounds = ""
        self._supervisor.handle(Event.ARM, "armed; waiting for an action chunk")
        return ""

    def _begin_ramp(self, now_ns: int) -> tuple[bool, str]:
        stale = self._feedback.stale(now_ns)
        if stale:
            return False, f"cannot go to the start pose: {stale}"
        try:
            ramp = self._mover.ramp_to(start_pose(self.robot, self.config), self.config.ramp_speed, now_ns)
        except ValueError as error:
            return False, f"cannot go to the start pose: {error}"
        self._drop(now_ns)
        self._mover.stops.forget()
        self._mover.ramp = ramp
        done = f"going to the start pose in {ramp.duration_s:.1f} s"
        self._supervisor.handle(Event.RAMP, done)
        return True, done

    # -- watching -------------------------------------------------------------------------------------------------

    def _watch_horizon(self, now_ns: int, due_ns: int) -> None:
        """What has moved the arm comes to its end."""
        state = self._supervisor.state
        if self._mover.arrived(due_ns):
            self._stop(Event.ARRIVED, "at the start pose; waiting for an action chunk", now_ns)
        if state not in FOLLOWING or self._mover.ramp is not None or self._mover.leader is not None:
            return
        ending = self._admission.ending(now_ns, due_ns, self._out_of_bounds, slowing=state is State.STOPPING)
        if ending is None:
            return
        if ending.kind == "old":
            self._stop(Event.HALT, ending.reason, now_ns)
            return
        if ending.kind == "slowing":
            self.counters.slow_downs += 1
        elif ending.kind == "over":
            self._mover.timeline.finish()
        self._supervisor.handle(Event.CHUNK_ENDING, ending.reason)
        commanded_ns = self._mover.commanded_ns(now_ns)
        self._mover.stops.set_time(commanded_ns, self._mover.rest, self._mover.timeline.left_from(commanded_ns))
