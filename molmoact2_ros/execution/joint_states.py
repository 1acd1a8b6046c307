"""Joint states of whatever drivers there are, merged by joint: each joint has its own reading, age and publisher.

An arm and its fingers may come in messages of their own; a message updates the joints that it names. A joint has one
publisher as long as that one speaks: what another says of the same joint is told and not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]
Joints = NDArray[np.int_]

RIVAL_S = 1.0
"""A second publisher counts for so long after it was last heard."""
UNSTAMPED = (
    "they bear stamp 0: a driver must stamp each with the time of its reading; where it cannot, set "
    "unstamped_joint_states to receive, which takes the time at which they come"
)


class ReadingError(ValueError):
    """Why a joint state is not used. `kind` stays the same while the cause does; the text carries the figures."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class JointStates:
    """See the module. Times are in ns of one clock.

    Args:
        timeout_s: oldest reading of a joint that counts as fresh. max_future_s: how far a stamp may lie ahead.
        stamp_unstamped: a message with stamp 0 counts as read when it came, instead of being refused.

    Attributes:
        position: newest reading of each joint (dof,), rad or m, ROS order; NaN where none has come.
        stamps_ns: its stamp (dof,); 0 where none has come.
        publishers: publisher's id -> the name of its node, for messages; whoever knows it puts it here.
        repeated, out_of_order: messages that brought nothing newer.
    """

    def __init__(
        self, robot: Embodiment, timeout_s: float, max_future_s: float = 0.1, stamp_unstamped: bool = False
    ) -> None:
        self._robot, self._timeout_s, self._max_future_s = robot, timeout_s, max_future_s
        self._timeout_ns = round(timeout_s * 1e9)
        self._stamp_unstamped = stamp_unstamped
        self._index = {name: j for j, name in enumerate(robot.joint_names)}
        self.position: Array = np.full(robot.dof, np.nan)
        self.stamps_ns: NDArray[np.int64] = np.zeros(robot.dof, dtype=np.int64)
        self.publishers: dict[str, str] = {}
        self.repeated = self.out_of_order = 0
        self._owner = [""] * robot.dof
        self._heard_ns = [0] * robot.dof
        self._rivals: dict[int, tuple[str, str, int]] = {}
        """Joint -> its publisher, the other one, and when that one was last heard."""
        self._why = [""] * robot.dof
        self._refused = [0] * robot.dof
        self._overtaken = [0] * robot.dof
        self._foreign = ""

    @property
    def complete(self) -> bool:
        """Every joint has been read at least once."""
        return bool(self.stamps_ns.all())

    @property
    def oldest_ns(self) -> int:
        """Stamp of the joint that was read longest ago; 0 while one is missing."""
        return int(self.stamps_ns.min())

    # -- messages in --------------------------------------------------------------------------------------------------

    def take(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        stamp_ns: int,
        now_ns: int | None = None,
        publisher: str = "",
    ) -> Joints:
        """Take a message; joints of which it has nothing newer stay as they are. Joints that the robot does not have
        are left out, since drivers publish more than is used.

        Returns the joints that it has updated, ascending.

        Raises:
            ReadingError: it names none of the robot's joints or one twice, sizes differ, a value is not finite, it has
                stamp 0 or one that lies in the future, or all its joints have another publisher.
        """
        joints = self._named(names)
        try:
            values = self._values(names, positions, joints)
            stamp_ns = self._stamp(stamp_ns, now_ns)
        except ReadingError as error:
            for j in joints.tolist():
                self._why[j] = str(error)
                self._refused[j] += 1
            raise
        if now_ns is not None:
            self._forget_the_future(now_ns, stamp_ns)
        ours = self._own(joints, publisher, stamp_ns if now_ns is None else now_ns)
        joints, values = joints[ours], values[ours]
        newer = np.asarray(stamp_ns > self.stamps_ns[joints])
        if not newer.any():
            if stamp_ns in self.stamps_ns[joints]:
                self.repeated += 1
            else:
                self.out_of_order += 1
        for j in joints[~newer].tolist():
            self._overtaken[j] += 1
        taken = joints[newer]
        self.position = self.position.copy()  # who was given the last one keeps it
        self.position[taken] = values[newer]
        self.stamps_ns[taken] = stamp_ns
        for j in taken.tolist():
            self._why[j], self._refused[j], self._overtaken[j] = "", 0, 0
        return taken

    def _named(self, names: Sequence[str]) -> Joints:
        """The robot's joints in a message, ascending."""
        robot = self._robot
        found = sorted({self._index[name] for name in names if name in self._index})
        if not found:
            self._foreign = (
                f"they name {_listed(names)}, and none of {robot.name}'s joints {_listed(robot.joint_names)}; "
                "joint_map says which name is which joint"
            )
            raise ReadingError("names", self._foreign)
        return np.array(found)

    def _values(self, names: Sequence[str], positions: Sequence[float], joints: Joints) -> Array:
        """What a message says of `joints`."""
        robot = self._robot
        if len(names) != len(positions):
            raise ReadingError("size", f"{robot.name}: {len(names)} joint names but {len(positions)} positions")
        if len(set(names)) != len(names):
            raise ReadingError("twice", f"{robot.name}: a joint is named twice in {list(names)}")
        where = {name: i for i, name in enumerate(names)}
        found = np.asarray(positions, dtype=np.float64)[[where[robot.joint_names[j]] for j in joints.tolist()]]
        if not np.isfinite(found).all():
            name = robot.joint_names[int(joints[np.argmin(np.isfinite(found))])]
            raise ReadingError("finite", f"{robot.name}: the position of {name} is NaN or infinity")
        return found

    def _stamp(self, stamp_ns: int, now_ns: int | None) -> int:
        if stamp_ns == 0:
            if not self._stamp_unstamped or now_ns is None:
                raise ReadingError("unstamped", UNSTAMPED)
            return now_ns
        if now_ns is not None and stamp_ns - now_ns > self._max_future_s * 1e9:
            ahead = (stamp_ns - now_ns) * 1e-9
            raise ReadingError(
                "future", f"it is stamped {ahead:.2f} s in the future; are the machines' clocks synchronised?"
            )
        return stamp_ns

    def _forget_the_future(self, now_ns: int, stamp_ns: int) -> None:
        """The clock has gone back: stamps from before would hide all that comes now."""
        ahead = self.stamps_ns - now_ns > self._max_future_s * 1e9
        self.stamps_ns[ahead] = stamp_ns - 1
        self._heard_ns = [min(heard, now_ns) for heard in self._heard_ns]

    def _own(self, joints: Joints, publisher: str, now_ns: int) -> NDArray[np.bool_]:
        """Which of `joints` belong to this publisher; takes note of the others."""
        ours = np.ones(len(joints), dtype=bool)
        for i, j in enumerate(joints.tolist()):
            owner = self._owner[j]
            if publisher and owner and owner != publisher and now_ns - self._heard_ns[j] <= self._timeout_ns:
                self._rivals[j] = owner, publisher, now_ns
                ours[i] = False
            else:
                self._owner[j], self._heard_ns[j] = publisher, now_ns
        if not ours.any():
            raise ReadingError("rival", self.rivals(now_ns))
        return ours

    # -- what is wrong ------------------------------------------------------------------------------------------------

    def rivals(self, now_ns: int) -> str:
        """Which joints have two publishers, and which; empty where none has."""
        self._rivals = {j: rival for j, rival in self._rivals.items() if now_ns - rival[2] <= RIVAL_S * 1e9}
        if not self._rivals:
            return ""
        first = next(iter(self._rivals.values()))[:2]
        joints = [self._robot.joint_names[j] for j, rival in sorted(self._rivals.items()) if rival[:2] == first]
        one, other = (self.publishers.get(gid, f"an unknown node ({gid[:16]})") for gid in first)
        same = " (two of its publishers)" if one == other else ""
        return (
            f"two publishers send joint states of {_listed(joints)}: {one} and {other}{same}; only one may: end the "
            "other, or have it publish elsewhere (joint_state_topics says which topics are heard)"
        )

    def missing(self) -> str:
        """Why a joint has never been read; empty when all have."""
        absent = np.flatnonzero(self.stamps_ns == 0)
        if not len(absent):
            return ""
        refused = self._told(absent)
        if refused:
            return refused
        if len(absent) < self._robot.dof:
            known = self._names(np.flatnonzero(self.stamps_ns))
            return (
                f"no joint state of {self._names(absent)} has come yet, only of {known}; is their driver running, on "
                "one of joint_state_topics, and under these names (joint_map)?"
            )
        if self._foreign:
            return f"no joint state that can be used has come yet: {self._foreign}"
        return "no joint state has come yet; is the driver running?"

    def silent(self, now_ns: int) -> str:
        """Why the joint that was read longest ago is too old, or comes from the future; empty when all are fresh."""
        old = np.flatnonzero(now_ns - self.stamps_ns > self._timeout_ns)
        if len(old):
            age = (now_ns - self.oldest_ns) * 1e-9
            some = "" if len(old) == self._robot.dof else f" of {self._names(old)}"
            limit = f"(limit {self._timeout_s:.2f} s)"
            refused = self._told(old)
            if refused:
                return f"joint_states{some} not newer than {age:.2f} s {limit}: {refused}"
            overtaken = max(self._overtaken[j] for j in old.tolist())
            if overtaken:
                return (
                    f"joint_states{some} not newer than {age:.2f} s {limit}: the last {overtaken} came twice or out of "
                    "order; is there a second driver, or did its clock jump?"
                )
            return f"joint_states{some} silent for {age:.2f} s {limit}; is the driver running?"
        ahead = (int(self.stamps_ns.max()) - now_ns) * 1e-9
        if ahead > self._max_future_s:
            return f"joint_states stamped {ahead:.2f} s in the future; are the machines' clocks synchronised?"
        return ""

    def problem(self, now_ns: int) -> str:
        """The first reason for which `position` must not be used; empty when it may."""
        return self.missing() or self.silent(now_ns) or self.rivals(now_ns)

    def clock_went_back(self, now_ns: int) -> None:
        """Forget stamps of a clock that was ahead: they would hide every reading that comes now."""
        np.minimum(self.stamps_ns, now_ns, out=self.stamps_ns)
        self._heard_ns = [min(heard, now_ns) for heard in self._heard_ns]

    def _told(self, joints: Joints) -> str:
        """Why messages about `joints` were refused since they were last read."""
        worst = max(joints.tolist(), key=lambda j: self._refused[j])
        if not self._refused[worst]:
            return ""
        why = self._why[worst]
        if why == UNSTAMPED:
            return f"{self._refused[worst]} joint states came and none can be used: {why}"
        return f"{self._refused[worst]} joint states came and were refused, the last: {why}"

    def _names(self, joints: Joints) -> str:
        return _listed([self._robot.joint_names[j] for j in joints.tolist()])


def _listed(names: Iterable[str]) -> str:
    """Names for a message, none of them but the first and last few where there are many."""
    names = list(names)
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])}, ... {names[-1]}"
