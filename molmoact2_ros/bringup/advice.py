"""What whoever operates a robot should do next, from what is heard of it: for the console's keys and for the panel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LET_GO = ("DISARMED", "ESTOPPED", "UNCONFIGURED")
"""States in which nothing is commanded, or the arm is stopped already."""
DECIDES = ("policy", "expert")


@dataclass(frozen=True)
class Words:
    """How the advice names what can be done.

    Attributes:
        me: what a press of the own button is called among those who press.
        reset, arm, disarm, again, task: each a phrase; `start` follows a semicolon, `moving` is said while the arm may
            move, `arm_or_start` when it may be armed.
    """

    me: str
    reset: str
    reset_others: str
    disarm: str
    task: str
    start: str
    arm_or_start: str
    moving: str
    take: str
    take_anew: str


KEYS = Words(
    me="this console",
    reset="r resets the e-stop, then a arms",
    reset_others="then r resets it",
    disarm="d disarms, then a arms again",
    task="t tells a task",
    start="s goes to the start pose",
    arm_or_start="a arms, s arms and goes to the start pose",
    moving="SPACE stops at once, d disarms in order",
    take="h takes over with the leader",
    take_anew="h takes over anew, p gives the arm back to the policy",
)
BUTTONS = Words(
    me="this panel",
    reset="press Reset, then Arm",
    reset_others="then press Reset",
    disarm="press Disarm, then Arm again",
    task="type a task",
    start="Start pose works already",
    arm_or_start="press Arm, or Start pose, which arms too",
    moving="STOP or the space bar stops at once, Disarm in order",
    take="press Take over to lead the arm",
    take_anew="press Take over anew, or Give back to the policy",
)


def next_step(state: Mapping[str, Any], missing: Sequence[str], policy: bool, words: Words, leads: bool = False) -> str:
    """What to do next.

    Args:
        state: what is heard, as `RobotWatch.state` has it; may be empty.
        missing: nodes that have not spoken yet.
        policy: a policy or an expert belongs to the robot.
        leads: there is something that a person can take over with.
    """
    executor, ready = state.get("executor", ""), state.get("ready", [])
    if not executor or "arm" not in ready:
        return f"wait: {', '.join(missing)} not there yet" if missing else "wait: the executor is silent"
    driver = state.get("driver")
    if executor == "ESTOPPED":
        others = [name for name in state["stops"] if name != words.me]
        if others:
            return f"{', '.join(others)} must let go of the e-stop, {words.reset_others}"
        return f"when all is well: {words.reset}"
    if executor == "FAULT":
        return f"look at the arm, then {words.disarm}"
    if executor == "DISARMED":
        if driver is not None and driver[0] > 0:
            return f"wait, or mend: {driver[1]}"
        return _before_arming(state, policy, words)
    if executor == "STOPPING":
        return "wait: the arm comes to rest"
    if leads and state.get("handover") == "teleop: holding":
        return words.take_anew
    if executor == "HOLDING" and leads and not policy and state.get("handover", "policy") in ("", "policy"):
        return words.take
    if executor == "HOLDING" and not state.get("task"):
        return words.task
    return words.moving


def _before_arming(state: Mapping[str, Any], policy: bool, words: Words) -> str:
    if not policy:
        return words.arm_or_start
    said = next((state["said"][name] for name in DECIDES if name in state.get("said", {})), None)
    if said is None:
        return f"wait: the policy loads; {words.start}"
    if not state.get("task"):
        return f"{words.task}; {words.start}"
    if said[0] > 0:
        return f"wait, or mend what the policy names; {words.start}"
    if not state.get("chunks"):
        return f"wait: no usable chunk comes yet; {words.start}"
    return words.arm_or_start


def troubles(state: Mapping[str, Any], missing: Collection[str]) -> list[tuple[int, str]]:
    """What nodes warn of: level, and words, the worst first; nothing while a simulated cell is still being built."""
    if "sim" in missing:
        return []
    # The executor's word has a place of its own.
    said = state.get("said", {}).items()
    return sorted(
        ((level, f"{name}: {words}") for name, (level, words) in said if level > 0 and name != "executor"), reverse=True
    )
