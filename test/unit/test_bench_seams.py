"""`molmoact2 bench rtc` and `bench redraft`: what is counted is what happened, and guidance shrinks seams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.benchmarking.policy import redraft, rtc
from molmoact2_ros.cli import run
from molmoact2_ros.policy import RTCOptions, open_checkpoint
from molmoact2_ros.policy.options import REDRAFTS


def test_guidance_shrinks_the_seams_of_the_simulated_cell() -> None:
    guided = RTCOptions(enabled=True, schedule="linear", horizon=rtc.HORIZON)
    off, on = (
        rtc.run(name, options, episodes=1, latency_s=0.2, seed=1000, limit_s=2.0)
        for name, options in (("off", RTCOptions()), ("linear", guided))
    )
    assert off.positions.size >= 5 and on.positions.size >= 5
    assert np.median(on.positions) < 0.5 * np.median(off.positions)
    page = rtc.render([off, on], 0.2)
    assert "| off | " in page and "| linear | " in page and "200 ms after its images" in page


def test_redrafts_are_counted_by_kind(tmp_path: Path) -> None:
    opened = open_checkpoint(make_checkpoint(tmp_path, num_depth_codes=25), ROBOT, ROBOT.norm_tag)
    rows = list(redraft.on_drafts(opened, share=0.4, frames=2))
    assert {(row.blocks, row.redraft) for row in rows} == {(b, kind) for b in redraft.ROW_COSTS for kind in REDRAFTS}
    for row in rows:
        assert row.frames == 2 and row.cells == 10 and 1.0 < row.forwards <= 12.0
    prev = next(row for row in rows if (row.blocks, row.redraft) == ("free", "prev"))
    assert prev.corrections == 5, "every second changed cell's draft is wrong, and only those"
    shown = [[([np.full((60, 80, 3), value, np.uint8)] * 2, ROBOT.rest_position) for value in (10, 200, 200)]]
    (first, *_) = redraft.on_frames("tiny", opened, shown, "adaptive")
    assert first.frames == 2 and first.mode == "adaptive", "the first frame of an episode has no draft"


@pytest.mark.parametrize(
    "words", [["rtc", "--episodes", "0"], ["rtc", "--latency", "1.5"], ["redraft", "--frames", "1"]]
)
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
