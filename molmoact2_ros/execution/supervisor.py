"""Which state the executor is in, and why. Every change goes through the one table below.

A stop is a transition to STOPPING that remembers where it leads once the arm rests: HOLDING, from which a fresh
chunk goes on, or DISARMED. FAULT is left by disarming, ESTOPPED by the reset service; both decelerate and hold
meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """State of the executor, as published on `executor/state`."""

    UNCONFIGURED = "UNCONFIGURED"
    DISARMED = "DISARMED"
    HOLDING = "HOLDING"
    TRACKING = "TRACKING"
    STOPPING = "STOPPING"
    FAULT = "FAULT"
    ESTOPPED = "ESTOPPED"


FOLLOWING = (State.TRACKING, State.STOPPING)
"""States in which the chunk, the ramp or the leader, as long as there is one, moves the arm."""
LET_GO = (State.DISARMED, State.FAULT, State.ESTOPPED)
"""States in which an arm at rest is commanded no more: its driver holds it."""


class Event(Enum):
    """What may change the state."""

    CONFIGURED = "configured"
    CLEANED_UP = "cleaned up"
    ARM = "arm"
    DISARM = "disarm"
    CHUNK = "a chunk was accepted"
    RAMP = "a ramp to the start pose was asked for"
    LEAD = "a leader drives"
    ARRIVED = "the ramp has ended"
    CHUNK_ENDING = "the horizon of the chunk ends"
    HALT = "an input is missing or has changed; goes on by itself with a fresh chunk"
    AT_REST = "all joints rest"
    FAULT = "the arm does not do what it is told"
    E_STOP = "emergency stop"
    RESET = "e-stop reset"


@dataclass(frozen=True)
class Step:
    """Where an event leads, and for a stop what follows at rest."""

    to: State
    then: State | None = None


_E_STOP = {Event.E_STOP: Step(State.ESTOPPED)}
_MOVING = {
    Event.DISARM: Step(State.STOPPING, State.DISARMED),
    Event.FAULT: Step(State.FAULT),
    **_E_STOP,
}
TRANSITIONS: Mapping[State, Mapping[Event, Step]] = {
    State.UNCONFIGURED: {Event.CONFIGURED: Step(State.DISARMED), **_E_STOP},
    State.DISARMED: {Event.ARM: Step(State.HOLDING), Event.CLEANED_UP: Step(State.UNCONFIGURED), **_E_STOP},
    State.HOLDING: {
        Event.CHUNK: Step(State.TRACKING),
        Event.RAMP: Step(State.TRACKING),
        Event.LEAD: Step(State.TRACKING),
        Event.HALT: Step(State.HOLDING),
        **_MOVING,
    },
    State.TRACKING: {
        Event.CHUNK: Step(State.TRACKING),
        Event.ARRIVED: Step(State.STOPPING, State.HOLDING),
        Event.CHUNK_ENDING: Step(State.STOPPING, State.HOLDING),
        Event.HALT: Step(State.STOPPING, State.HOLDING),
        **_MOVING,
    },
    State.STOPPING: {
        Event.CHUNK: Step(State.TRACKING),
        Event.CHUNK_ENDING: Step(State.STOPPING, State.HOLDING),
        Event.HALT: Step(State.STOPPING, State.HOLDING),
        **_MOVING,
    },
    State.FAULT: {Event.DISARM: Step(State.STOPPING, State.DISARMED), **_E_STOP},
    State.ESTOPPED: {Event.RESET: Step(State.DISARMED), **_E_STOP},
}
"""Every change there is. Nothing but the reset leaves ESTOPPED, not even a new configuration.

While STOPPING towards DISARMED only DISARM, E_STOP and AT_REST count: a lasting fault, such as a blocked arm, must not
keep the arm from being disarmed.
"""

_WHILE_DISARMING = (Event.DISARM, Event.E_STOP)


@dataclass(frozen=True)
class Change:
    """One change of state, or of the reason for it."""

    before: State
    after: State
    event: Event
    reason: str


class Supervisor:
    """Present state with its reason, and the changes that nobody has collected yet."""

    def __init__(self) -> None:
        self.state = State.UNCONFIGURED
        self.reason = "not configured"
        self._then: State | None = None
        self._changes: deque[Change] = deque(maxlen=256)

    @property
    def disarming(self) -> bool:
        """True while a stop leads to DISARMED."""
        return self.state is State.STOPPING and self._then is State.DISARMED

    def accepts(self, event: Event) -> bool:
        """Tell whether `event` means anything in the present state."""
        if event is Event.AT_REST:
            return self.state is State.STOPPING
        if self.disarming and event not in _WHILE_DISARMING:
            return False
        return event in TRANSITIONS[self.state]

    def handle(self, event: Event, reason: str) -> bool:
        """Apply `event`; False when it means nothing in the present state, which then stays as it is.

        At rest the reason of the stop is kept: it says why the arm holds.
        """
        if not self.accepts(event):
            return False
        if event is Event.AT_REST:
            assert self._then is not None
            step, reason = Step(self._then), self.reason
        else:
            step = TRANSITIONS[self.state][event]
        before, self.state, self._then = self.state, step.to, step.then
        if before is not self.state or reason != self.reason:
            self._changes.append(Change(before, self.state, event, reason))
        self.reason = reason
        return True

    @property
    def pending(self) -> bool:
        """True while there are changes to collect."""
        return bool(self._changes)

    def changes(self) -> list[Change]:
        """Take the changes since the last call, oldest first."""
        out = []
        while self._changes:
            out.append(self._changes.popleft())
        return out
