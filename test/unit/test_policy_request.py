"""When the next chunk is asked for: at once, at a remaining share, or on a beat that slow calls do not shift."""

from __future__ import annotations

from typing import Any

import pytest

from molmoact2_ros.policy.request import RequestOptions, Requests

MS = 1_000_000
START = 50_000 * MS


def requests(**options: Any) -> Requests:
    return Requests(RequestOptions(**options), horizon_s=1.0)


def test_as_fast_as_possible_never_waits() -> None:
    asked = requests()
    for now in range(START, START + 500 * MS, 100 * MS):
        assert asked.wait_ns(now) == 0
        asked.called(now)
        asked.published(now)


def test_a_remaining_share_is_measured_in_the_chunks_own_time() -> None:
    asked = requests(policy="remaining", remaining=0.3)
    assert asked.wait_ns(START) == 0, "the first chunk is asked for at once"
    asked.called(START)
    assert asked.wait_ns(START + MS) == 0, "a call that failed is repeated"
    asked.published(START)
    assert asked.wait_ns(START + 100 * MS) == 600 * MS, "from the observation's stamp, not from the publication"
    assert asked.wait_ns(START + 700 * MS) == 0 == asked.wait_ns(START + 9000 * MS)
    assert asked.wait_ns(START - 5000 * MS) == 0, "a clock that was set back does not silence the policy"
    asked.reset()
    assert asked.wait_ns(START + 100 * MS) == 0


def test_a_fixed_rate_keeps_its_beat() -> None:
    asked = requests(policy="rate", rate_hz=10.0)
    assert asked.wait_ns(START) == 0
    asked.called(START)
    assert asked.wait_ns(START + 30 * MS) == 70 * MS
    asked.called(START + 104 * MS)
    assert asked.wait_ns(START + 104 * MS) == 96 * MS, "being late once does not shift the beat"
    asked.called(START + 450 * MS)
    assert asked.wait_ns(START + 450 * MS) == 50 * MS, "beats that passed are left out, not made up for"
    assert asked.wait_ns(START - 9000 * MS) == 100 * MS, "never longer than a period"
    asked.called(START - 9000 * MS)
    assert asked.wait_ns(START - 9000 * MS) == 100 * MS
    asked.reset()
    assert asked.wait_ns(START) == 0


@pytest.mark.parametrize("options", [{"policy": "never"}, {"remaining": 1.5}, {"rate_hz": 0.0}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="request"):
        RequestOptions(**options)
