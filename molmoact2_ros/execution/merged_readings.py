"""Joint states merged by joint into one position: what the policy's state is made of, live and from a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import Refusal
from molmoact2_ros.execution.config import UNSTAMPED
from molmoact2_ros.execution.joint_states import Array, JointStates, ReadingError


@dataclass(frozen=True)
class Merged:
    """What a message came to.

    Attributes:
        position: of all joints (dof,), rad or m, ROS order; None where it cannot be used. It is the caller's.
        stamp_ns: when the arm joint was read that was read longest ago.
        problem: why there is no position now; empty where there is one. refusal: why the message is not used.
    """

    position: Array | None
    stamp_ns: int
    problem: str
    refusal: Refusal | None


class MergedReadings:
    """The newest position of all joints, out of messages that name some or all of them.

    Args:
        timeout_s: oldest reading of a joint that counts.
        unstamped: of `UNSTAMPED`: what becomes of readings without a stamp.

    Raises:
        ValueError: `unstamped` is none of them.
    """

    def __init__(self, robot: Embodiment, timeout_s: float, unstamped: str) -> None:
        if unstamped not in UNSTAMPED:
            raise ValueError(f"unstamped_joint_states is {unstamped!r}, expected one of {', '.join(UNSTAMPED)}")
        self._states = JointStates(robot, timeout_s, stamp_unstamped=unstamped == "receive")
        self._arms = robot.arms

    @property
    def publishers(self) -> dict[str, str]:
        """Publisher's id -> the name of its node; whoever knows it puts it here."""
        return self._states.publishers

    def take(
        self, names: Sequence[str], positions: Sequence[float], stamp_ns: int, now_ns: int, publisher: str = ""
    ) -> Merged:
        """Take a message; see `JointStates.take`."""
        refusal = None
        try:
            self._states.take(names, positions, stamp_ns, now_ns, publisher)
        except ReadingError as error:
            refusal = Refusal(error.kind, str(error))
        problem = self._states.missing() or self._states.rivals(now_ns)
        if problem or refusal is not None:
            return Merged(None, 0, problem, refusal)
        oldest_ns = min(int(self._states.stamps_ns[arm].min()) for arm in self._arms)
        return Merged(self._states.position, oldest_ns, "", None)
