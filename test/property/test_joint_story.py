"""No story moves an arm by more than the limits allow, or at all when nobody asked: executor and driver together."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joint_story import ACTS, CHUNKS, Story

from molmoact2_ros.embodiments import embodiment

ROBOTS = ("so101", "yam", "franka")
CHAPTERS = st.lists(st.tuples(st.sampled_from(CHUNKS), st.sampled_from(ACTS)), min_size=3, max_size=3)
QUICK = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def run(robot: str, seed: int, chapters: list[tuple[str, str]]) -> Story:
    story = Story(embodiment(robot), seed)
    story.live(chapters)
    assert not story.problems, (story.problems[:3], chapters, seed)
    return story


@pytest.mark.parametrize("act", sorted(set(ACTS)))
def test_each_act_alone(act: str) -> None:
    story = run("so101", 1, [("smooth", act), ("smooth", act)])
    assert story.armings == 2 and story.moving_ticks > 30


@pytest.mark.parametrize("robot", ROBOTS)
@settings(QUICK)
@given(CHAPTERS, st.integers(0, 2**31))
def test_no_story_moves_an_arm_unasked_or_beyond_its_limits(
    robot: str, chapters: list[tuple[str, str]], seed: int
) -> None:
    run(robot, seed, chapters)


@pytest.mark.slow
@pytest.mark.parametrize("robot", ROBOTS)
def test_a_million_ticks_in_all(robot: str) -> None:
    ticks = 0

    @settings(QUICK, max_examples=500, derandomize=False, print_blob=True)
    @given(CHAPTERS, st.integers(0, 2**31))
    def holds(chapters: list[tuple[str, str]], seed: int) -> None:
        nonlocal ticks
        ticks += run(robot, seed, chapters).ticks

    holds()
    assert ticks * len(ROBOTS) >= 1_000_000
