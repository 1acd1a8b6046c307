"""The guide of real-time chunking: what binds the next chunk, by time; and none of lerobot's three faults at the seam.

Pins: `ActionQueue` drops rows that were never played when an inference is slower than the robot; `LatencyTracker.max`
remembers the cold start for ever; what is left of the last chunk is filled up to the horizon with zeros, the middle of
the data, and these bind like data.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import lerobot
import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.action_queue import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.latency_tracker import LatencyTracker
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

from molmoact2_ros.policy.rtc import ChunkGuide, LatencyWindow, RTCOptions, resampled
from molmoact2_ros.policy.stages.guidance import Guidance, integrate

SECOND = 1_000_000_000
RATE = 30.0
STATE = np.zeros(1)


def lerobots_padding() -> Any:
    """The function of lerobot's RTC engine that brings a leftover to its length.

    Taken out of its module, whose package imports data sets that the policy does not need.
    """
    source = Path(lerobot.__path__[0], "rollout", "inference", "rtc.py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "_normalize_prev_actions_length":
            found: dict[str, Any] = {"torch": torch}
            exec(compile(ast.Module([node], []), str(source), "exec"), found)
            return found[node.name]
    raise AssertionError(f"{source} has no _normalize_prev_actions_length any more")


def guide_of(**options: Any) -> ChunkGuide:
    """A guide of a robot with one joint, which may be anywhere."""
    return ChunkGuide(RTCOptions(**{"enabled": True, **options}), RATE, np.array([np.inf]))


def ramp(rows: int = 30, slope: float = 1.0, start: float = 0.0) -> np.ndarray:
    """A chunk whose row says when it is due: (rows, 1), row i due at (i + 1) / RATE."""
    return (start + slope * np.arange(1, rows + 1, dtype=np.float32))[:, None]


def test_rows_that_were_never_played_are_not_skipped() -> None:
    """A latency of 8 rows by the clock, in which a robot that stood still for a while consumed 3."""
    queue = ActionQueue(RTCConfig())
    first, second = (torch.from_numpy(ramp(start=value)) for value in (0.0, 100.0))
    queue.merge(first, first, 0)
    before = queue.get_action_index()
    for _ in range(3):
        queue.get()
    queue.merge(second, second, real_delay=8, action_index_before_inference=before)
    assert float(queue.get()[0]) == 109.0, "lerobot skips eight rows though three were played"
    # Ours: neither the chunk nor its prefix knows counts. Each row is bound by the last chunk's value at its own time,
    # whatever was consumed and whenever the chunk comes.
    for latency_s in (0.05, 8 / RATE, 0.6):
        guide = guide_of(schedule="ones", horizon=20)
        guide.published(ramp(), 7 * SECOND, "go", latency_s)
        prefix = guide.prefix(7 * SECOND + round(3 / RATE * 1e9), "go", 30, STATE)
        assert prefix is not None
        np.testing.assert_allclose(prefix.actions[:27, 0], np.arange(4, 31), atol=1e-4)


def test_the_cold_start_is_forgotten() -> None:
    theirs, ours = LatencyTracker(maxlen=20), LatencyWindow(20, 100.0, 60.0)
    for seconds in (12.0, *[0.1] * 20):
        theirs.add(seconds)
        ours.add(seconds)
    assert theirs.max() == theirs.percentile(1.0) == 12.0, "lerobot expects the cold start for ever"
    assert ours.expected_s() == pytest.approx(0.1)


def test_one_slow_call_is_an_outlier_and_no_expectation_passes_the_cap() -> None:
    window = LatencyWindow(20, 80.0, 0.5)
    assert window.expected_s() is None
    for seconds in (3.0, *[0.1] * 9, -1.0, float("nan")):
        window.add(seconds)
    assert window.expected_s() == pytest.approx(0.1)
    for _ in range(20):
        window.add(3.0)
    assert window.expected_s() == 0.5
    window.clear()
    assert window.expected_s() is None


def test_missing_rows_have_no_weight_instead_of_being_the_mean() -> None:
    """Four rows at 0.9 are left of the last chunk, and eight are to be bound."""
    rtc = RTCProcessor(RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.ONES, max_guidance_weight=10.0))
    steps, noise = 10, torch.zeros(1, 10, 1)
    padded = lerobots_padding()(torch.full((4, 1), 0.9), target_steps=8)
    x = noise
    for step in range(steps):
        velocity = rtc.denoise_step(x, padded[None], 0, 1 - step / steps, lambda y: -torch.full_like(y, 0.9), 8)
        x = x - velocity.detach() / steps
    assert x[0, 4:8].abs().max() < 0.2, "lerobot pulls rows that nobody planned to zero"
    guide = guide_of(schedule="ones", horizon=8)
    guide.published(np.full((10, 1), 0.9, np.float32), 0, "go", 0.05)
    prefix = guide.prefix(round(6 / RATE * 1e9), "go", 10, STATE)
    assert prefix is not None
    np.testing.assert_array_equal(prefix.weights, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    guidance = Guidance(
        torch.from_numpy(prefix.actions)[None], torch.from_numpy(prefix.weights)[None, :, None], prefix.max_weight
    )
    ours = integrate(noise, lambda x, _: torch.full_like(x, 0.9), steps, lambda x: x, guidance)
    torch.testing.assert_close(ours, torch.full_like(ours, 0.9), atol=1e-5, rtol=0)


# -- the prefix by time ----------------------------------------------------------------------------------------------


def test_the_last_chunk_is_resampled_on_the_new_ones_grid() -> None:
    found, known = resampled(ramp(10), 2.25, 10)
    assert known == 7
    np.testing.assert_allclose(found[:7, 0], np.arange(7) + 3.25, atol=1e-6)
    np.testing.assert_allclose(found[7:, 0], 10.0)
    _, known = resampled(ramp(10), 3.0 - 1e-9, 10)
    assert known == 7
    assert resampled(ramp(10), 9.5, 10)[1] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"task": "stop"}, "another task"),
        ({"stamp_ns": -1}, "an observation older than the last chunk's"),
        ({"stamp_ns": SECOND}, "a chunk that is over"),
        ({"stamp_ns": round(0.8 * SECOND)}, "a chunk that is over when the new one arrives"),
    ],
)
def test_nothing_binds(change: dict[str, Any], what: str) -> None:
    guide = guide_of()
    asked: dict[str, Any] = {"stamp_ns": SECOND // 10, "task": "go", "rows": 30, "state": STATE}
    assert guide.prefix(**asked) is None, "the first chunk"
    guide.published(ramp(), 0, "go", 0.2)
    found = guide.prefix(**asked)
    assert found is not None and found.delay_rows == 6
    assert guide.prefix(**{**asked, **change}) is None, what
    guide.reset()
    assert guide.prefix(**asked) is None, "after a reset"


def test_rtc_that_is_off_binds_nothing() -> None:
    guide = guide_of(enabled=False)
    guide.published(ramp(), 0, "go", 0.1)
    assert guide.prefix(SECOND // 10, "go", 30, STATE) is None


def test_a_delay_beyond_the_horizon_still_binds_at_the_seam() -> None:
    guide = guide_of(horizon=4)
    guide.published(ramp(), 0, "go", 8.5 / RATE)
    prefix = guide.prefix(SECOND // 30, "go", 30, STATE)
    assert prefix is not None and prefix.delay_rows == 9
    np.testing.assert_allclose(prefix.weights[:9], 1.0)
    assert 0.0 < prefix.weights[9] < 1.0 and not prefix.weights[10:].any()


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cubic"},
        {"horizon": 0},
        {"window": 0},
        {"max_weight": 0.0},
        {"max_delay_s": 0.0},
        {"percentile": 101},
        {"max_deviation": 0.0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rtc"):
        RTCOptions(**options)
