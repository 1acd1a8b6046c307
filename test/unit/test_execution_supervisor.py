"""The supervisor: one table, a way out of every state, an e-stop from everywhere."""

from __future__ import annotations

import pytest

from molmoact2_ros.execution.supervisor import TRANSITIONS, Event, State, Supervisor


def reachable_from(start: State) -> set[State]:
    found, new = {start}, {start}
    while new:
        new = {s for state in new for step in TRANSITIONS[state].values() for s in (step.to, step.then) if s} - found
        found |= new
    return found


@pytest.mark.parametrize("state", State)
def test_every_state_leads_back_to_disarmed(state: State) -> None:
    assert State.DISARMED in reachable_from(state)


@pytest.mark.parametrize("state", State)
def test_an_e_stop_counts_in_every_state(state: State) -> None:
    assert TRANSITIONS[state][Event.E_STOP].to is State.ESTOPPED


def test_only_the_reset_leaves_estopped() -> None:
    assert {e for e, step in TRANSITIONS[State.ESTOPPED].items() if step.to is not State.ESTOPPED} == {Event.RESET}


def test_only_arming_leaves_disarmed_for_a_moving_state() -> None:
    moving = {State.HOLDING, State.TRACKING, State.STOPPING}
    assert [e for e, step in TRANSITIONS[State.DISARMED].items() if step.to in moving] == [Event.ARM]


def test_neither_a_chunk_nor_a_lasting_fault_undoes_a_disarm() -> None:
    supervisor = Supervisor()
    for event in (Event.CONFIGURED, Event.ARM, Event.CHUNK, Event.DISARM):
        assert supervisor.handle(event, event.value)
    assert not supervisor.handle(Event.CHUNK, "")
    assert not supervisor.handle(Event.HALT, "")
    assert not supervisor.handle(Event.FAULT, "")
    assert supervisor.handle(Event.AT_REST, "")
    assert supervisor.state is State.DISARMED


def test_every_change_is_kept_with_its_reason_and_a_repeated_one_is_not() -> None:
    supervisor = Supervisor()
    supervisor.handle(Event.CONFIGURED, "configured")
    supervisor.handle(Event.ARM, "armed")
    supervisor.handle(Event.CHUNK, "following")
    supervisor.handle(Event.CHUNK, "following")
    supervisor.handle(Event.HALT, "no joint state")
    supervisor.handle(Event.AT_REST, "")
    changes = supervisor.changes()
    assert [change.after for change in changes] == [
        State.DISARMED,
        State.HOLDING,
        State.TRACKING,
        State.STOPPING,
        State.HOLDING,
    ]
    assert changes[-1].reason == "no joint state"
    assert supervisor.changes() == []
