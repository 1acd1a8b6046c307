"""Whatever chunks, readings, people and clocks do: no set-point leaves a limit, stops end in time, nothing is stuck.

The default run ticks some ten thousand times a robot on stories that stay the same; the slow one a million times in
all on new ones (a failing story is printed by hypothesis and can be run again with `@reproduce_failure`).
"""

from __future__ import annotations

import numpy as np
import pytest
from hostile import TICKS, Hostile, chapters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molmoact2_ros.embodiments import embodiment

ROBOTS = ("so101", "franka", "yam")
CHAPTERS = 10
STORY = st.lists(chapters, min_size=CHAPTERS, max_size=CHAPTERS)
TICKS_A_STORY = CHAPTERS * TICKS
QUICK = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def run(robot: str, story: list) -> Hostile:
    hostile = Hostile(embodiment(robot))
    hostile.live(story)
    hostile.witness.check()
    return hostile


@pytest.mark.parametrize("robot", ROBOTS)
def test_no_story_moves_the_arm_out_of_its_limits_or_leaves_it_stuck(robot: str) -> None:
    seen = {"ticks": 0, "moving": 0, "stops": 0}

    @QUICK
    @given(STORY)
    def holds(story: list) -> None:
        hostile = run(robot, story)
        hostile.find_the_way_out()
        hostile.witness.check()
        seen["ticks"] += hostile.witness.ticks
        seen["moving"] += hostile.witness.moving_ticks
        seen["stops"] += hostile.witness.stops

    holds()
    assert seen["ticks"] >= 20 * TICKS_A_STORY
    # Otherwise the stories would be about an arm that stands.
    assert seen["moving"] > 0.2 * seen["ticks"] and seen["stops"] > 50, seen


@pytest.mark.parametrize("robot", ROBOTS)
@settings(QUICK, max_examples=4)
@given(STORY)
def test_the_same_story_gives_the_same_motion(robot: str, story: list) -> None:
    first, second = run(robot, story).witness.commands, run(robot, story).witness.commands
    np.testing.assert_array_equal(np.array(first), np.array(second))


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_a_million_ticks_in_all(robot: str) -> None:
    examples = 700
    ticks = 0

    @settings(QUICK, max_examples=examples, derandomize=False, print_blob=True)
    @given(STORY)
    def holds(story: list) -> None:
        nonlocal ticks
        hostile = run(robot, story)
        hostile.find_the_way_out()
        hostile.witness.check()
        ticks += hostile.witness.ticks

    holds()
    assert ticks * len(ROBOTS) >= 1_000_000
