"""Who has the arm, the policy or a person with a leader, and how it goes from one to the other without a jump.

Taking over: the arm comes to rest on its path; a leader that is to be matched first comes to the arm; then the leader
drives, relative to where it was. What it is away from the arm is used up by the leader's own motion: the arm goes half
as far as a leader that comes nearer and half as far again as one that goes away, until both meet. So the arm moves only
when the person does.

Giving back: the arm comes to rest, and chunks observed from then on count again; an arm that has rested since a chunk
was observed begins at its beginning. What the policy says meanwhile moves nothing. A leader that is lost, or any other
halt, leaves the arm holding in the person's hands: the policy does not go on by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.gripper import BinaryGrippers
from molmoact2_ros.execution.leader import Leader, LeaderError
from molmoact2_ros.execution.leader_path import LeaderPath
from molmoact2_ros.execution.mover import Mover
from molmoact2_ros.execution.supervisor import Event, State, Supervisor

Array = NDArray[np.float64]
Stop = Callable[[Event, str, int], bool]

MEETING_SHARE = 0.5
"""Share of the leader's motion that goes into meeting the arm."""
STIRRED = 0.004
"""Smaller motions of a leader's joint, rad or m, are its encoder's steps: they bring nothing nearer."""
SLOPE_S = 0.06
"""The leader's velocity is taken over so long."""
ARMED = (State.HOLDING, State.TRACKING, State.STOPPING)


class Phase(Enum):
    """Who has the arm, as `executor/state` says it."""

    POLICY = "policy"
    RESTING = "taking over: coming to rest"
    MATCHING = "taking over: matching the leader"
    DRIVING = "teleop"
    HELD = "teleop: holding"
    RETURNING = "giving back"


TAKING = (Phase.RESTING, Phase.MATCHING, Phase.DRIVING)


class Handover:
    """See the module.

    Args:
        lock: of the executor. `take_over`, `give_back` and `on_leader` take it; everything else is called under it.
        stop: the executor's: has an event stop the arm for a reason, at a time.
        drop: the executor's: only chunks observed from this time on count.
    """

    def __init__(
        self,
        robot: Embodiment,
        config: ExecutorConfig,
        mover: Mover,
        supervisor: Supervisor,
        lock: threading.Lock,
        stop: Stop,
        drop: Callable[[int], None],
    ) -> None:
        self._robot, self._config, self._mover, self._supervisor = robot, config, mover, supervisor
        self._lock, self._stop, self._drop = lock, stop, drop
        self._counters = mover.counters
        self.leader = Leader(robot, config, mover.counters)
        self.phase = Phase.POLICY
        limits = robot.limits
        self._decided = BinaryGrippers(robot.gripper_indices, limits.lower, limits.upper)
        self._arm_joints = np.concatenate([np.arange(robot.dof)[arm] for arm in robot.arms])
        self._offset: Array = np.zeros(robot.dof)
        self._stirred: Array = np.zeros(robot.dof)
        self._targets: deque[tuple[int, Array]] = deque()
        self._since_ns = 0

    @property
    def drives(self) -> str:
        """Who moved the arm in the last tick: policy, teleop, ramp or nobody."""
        return self._mover.drives

    @property
    def active(self) -> bool:
        """True while a person has the arm, or it is on its way between the two: no chunk is followed."""
        return self.phase is not Phase.POLICY

    # -- inputs -------------------------------------------------------------------------------------------------------

    def on_leader(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int, publisher: str = ""
    ) -> LeaderError | None:
        """Take a reading of the leader, rad or m; returns why it was refused, if it was. That ends its turn."""
        with self._lock:
            try:
                newer = self.leader.take(names, positions, stamp_ns, now_ns, publisher)
            except LeaderError as error:
                if self.phase in TAKING:
                    self._stop(Event.HALT, f"holding: {error}", now_ns)
                return error
            if newer and self.phase is Phase.DRIVING:
                self._aim(now_ns)
        return None

    def take_over(self, now_ns: int) -> tuple[bool, str]:
        """Bring the arm to rest and let the leader drive; refused with the reason."""
        with self._lock:
            if self.phase in TAKING:
                return True, f"already taken over: {self._supervisor.reason}"
            if self._supervisor.disarming or self._supervisor.state not in ARMED:
                state = self._supervisor.state.value
                return False, f"cannot take over while {state}: {self._supervisor.reason}; arm first"
            problem = self.leader.trouble(now_ns) or self.leader.unsteady()
            if problem:
                return False, f"cannot take over: {problem}"
            self._stop(Event.HALT, "taking over: the arm comes to rest", now_ns)
            self.phase = Phase.RESTING
            self._counters.takeovers += 1
        return True, "taking over: the arm comes to rest, then the leader drives"

    def give_back(self, now_ns: int) -> tuple[bool, str]:
        """Bring the arm to rest and let the policy go on from there."""
        with self._lock:
            if not self.active:
                return True, "nobody has taken over"
            self._stop(Event.HALT, "given back; waiting for a fresh action chunk", now_ns)
            self.phase = Phase.RETURNING
        return True, "given back: the arm comes to rest, then the policy goes on"

    # -- from the executor --------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Go on to the next phase where its time has come, and watch the leader."""
        rests = self._supervisor.state is State.HOLDING and self._mover.motion.still
        if self.phase is Phase.RETURNING and rests:
            self.phase = Phase.POLICY
            self._drop(now_ns)
        if self.phase not in TAKING:
            return
        trouble = self.leader.trouble(now_ns)
        if trouble:
            self._stop(Event.HALT, f"holding: {trouble}", now_ns)
        elif self.phase is Phase.RESTING and rests:
            self.phase, self._since_ns = Phase.MATCHING, now_ns
            self._match(now_ns)
        elif self.phase is Phase.MATCHING:
            self._match(now_ns)

    def interrupted(self) -> None:
        """The arm is stopped: whatever the leader was about to do is over, and the arm stays in the person's hands."""
        self._mover.leader = None
        if self.phase in TAKING:
            self.phase = Phase.HELD

    def end(self) -> None:
        """The arm is let go; the next arming is the policy's."""
        self.interrupted()
        self.phase = Phase.POLICY

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start(self) -> Array:
        """Where the arm rests, and where its grippers are to go."""
        start, grippers = self._mover.motion.position.copy(), list(self._robot.gripper_indices)
        start[grippers] = self._mover.rest[grippers]
        return start

    def _match(self, now_ns: int) -> None:
        """Let the leader drive once it is where the arm is, where that is asked for."""
        assert self.leader.position is not None
        away = np.abs(self.leader.position - self._start())[self._arm_joints]
        worst = int(np.argmax(away))
        limit = self._config.leader_match_rad
        if limit > 0.0 and away[worst] > limit:
            name = self._robot.joint_names[int(self._arm_joints[worst])]
            if (now_ns - self._since_ns) * 1e-9 > self._config.leader_match_timeout_s:
                self._stop(
                    Event.HALT,
                    f"holding: the leader's {name} is {away[worst]:.3f} rad from the arm's (limit {limit:g}); bring it "
                    "there and take over again",
                    now_ns,
                )
            elif not self._supervisor.reason.startswith("matching"):
                self._supervisor.handle(Event.HALT, "matching: the leader comes to the arm")
            return
        start = self._start()
        self._offset = start - self.leader.position
        self._stirred = self.leader.position.copy()
        self._targets.clear()
        self._mover.stops.forget()
        self._mover.leader = LeaderPath(start, self._mover.commanded_ns(now_ns), self._robot.gripper_indices)
        self.phase = Phase.DRIVING
        self._supervisor.handle(Event.LEAD, "following the leader")

    def _aim(self, now_ns: int) -> None:
        """Follow the leader's newest reading."""
        leader, path = self.leader.position, self._mover.leader
        assert leader is not None and path is not None
        moved = np.abs(leader - self._stirred)
        stirred = moved > STIRRED
        used = np.where(stirred, MEETING_SHARE * moved, 0.0)
        self._stirred[stirred] = leader[stirred]
        self._offset = np.sign(self._offset) * np.maximum(np.abs(self._offset) - used, 0.0)
        safe = self._mover.limiter.safe
        target = np.clip(leader + self._offset, safe.lower, safe.upper)
        nearer = target - leader  # what lies beyond a limit need not be used up
        keep = np.abs(nearer) < np.abs(self._offset)
        self._offset[keep] = nearer[keep]
        if self._config.binary_grippers:
            target = self._decided.decide(target[None], self._mover.rest)[0]
        self._targets.append((self.leader.stamp_ns, target))
        while self.leader.stamp_ns - self._targets[0][0] > SLOPE_S * 1e9:
            self._targets.popleft()
        first_ns, first = self._targets[0]
        span_s = (self.leader.stamp_ns - first_ns) * 1e-9
        slope = (target - first) / span_s if span_s > 0.005 else np.zeros_like(target)
        path.aim(target, slope, self.leader.stamp_ns, self._mover.motion, self._mover.commanded_ns(now_ns))
