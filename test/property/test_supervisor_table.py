"""The supervisor's table as a whole: every state that can be reached has a way out, and e-stop is heard in all."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_ros.execution.supervisor import TRANSITIONS, Event, State, Supervisor

Key = tuple[State, bool]
"""State, and whether a stop leads to DISARMED."""


def after(events: tuple[Event, ...]) -> Supervisor:
    supervisor = Supervisor()
    for event in events:
        supervisor.handle(event, event.name)
    return supervisor


def key(supervisor: Supervisor) -> Key:
    return supervisor.state, supervisor.disarming


def reachable() -> dict[Key, tuple[Event, ...]]:
    """Every situation there is, with the shortest events that lead to it."""
    found: dict[Key, tuple[Event, ...]] = {key(after(())): ()}
    open_ends = [()]
    while open_ends:
        way = open_ends.pop(0)
        for event in Event:
            there = after((*way, event))
            if key(there) not in found:
                found[key(there)] = (*way, event)
                open_ends.append((*way, event))
    return found


SITUATIONS = reachable()
OUT = (Event.DISARM, Event.AT_REST, Event.RESET, Event.CONFIGURED)
"""What a person can always do (disarm, reset, configure) and what a stopped arm does by itself (come to rest)."""


def leads_out(events: tuple[Event, ...]) -> bool:
    """Breadth-first from there with the events of `OUT` alone, to DISARMED."""
    ways = [events]
    for _ in range(4):
        ways = [(*way, event) for way in ways for event in OUT]
        if any(after(way).state is State.DISARMED for way in ways):
            return True
    return after(events).state is State.DISARMED


def test_every_state_of_the_table_can_be_reached() -> None:
    assert {state for state, _ in SITUATIONS} == set(State)
    assert set(TRANSITIONS) == set(State)


def test_every_situation_leads_back_to_disarmed() -> None:
    for situation, events in SITUATIONS.items():
        assert leads_out(events), f"no way out of {situation}"


def test_an_e_stop_is_heard_in_every_situation_and_only_the_reset_ends_it() -> None:
    for situation, events in SITUATIONS.items():
        stopped = after((*events, Event.E_STOP))
        assert stopped.state is State.ESTOPPED, situation
        for event in Event:
            again = after((*events, Event.E_STOP, event))
            if event not in (Event.RESET, Event.CLEANED_UP):
                assert again.state is State.ESTOPPED, (situation, event)
            assert again.state in (State.ESTOPPED, State.DISARMED, State.UNCONFIGURED), (situation, event)


def test_only_arming_leads_from_disarmed_to_motion() -> None:
    moving = {State.HOLDING, State.TRACKING, State.STOPPING, State.FAULT}
    for (state, _), events in SITUATIONS.items():
        if state in (State.DISARMED, State.UNCONFIGURED, State.ESTOPPED):
            for event in Event:
                if event is not Event.ARM:
                    assert after((*events, event)).state not in moving, (state, event)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(list(Event)), max_size=40))
def test_no_sequence_of_events_is_a_dead_end(events: list[Event]) -> None:
    supervisor = after(tuple(events))
    assert key(supervisor) in SITUATIONS
    for event in (Event.CONFIGURED, Event.RESET, Event.DISARM, Event.AT_REST):
        supervisor.handle(event, event.name)
    assert supervisor.state is State.DISARMED, events
