"""The episode node as a process against a cell over real ROS, through the session that the command line runs."""

import os
from dataclasses import replace

import pytest
from fake_cell import FakeCell

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.session import SessionError, run_session
from molmoact2_ros.bringup.specs import NodeSpec, nodes


def episode_spec(**parameters) -> NodeSpec:
    (spec,) = (spec for spec in nodes(Options(episodes=2)) if spec.executable == "episode_node")
    return replace(spec, parameters={**spec.parameters, **parameters})


def test_a_run_counts_what_the_cell_reports(tmp_path):
    heard = []
    with FakeCell(wins={0}) as cell:
        summary = run_session([episode_spec(episode_timeout_s=1.5)], tmp_path, os.environ, heard.append)
    assert (summary["episodes"], summary["successes"], summary["reached"]) == (2, 1, 1)
    assert summary["outcomes"] == ["success", "timeout"]
    assert set(summary["policy_latency_ms"]) == {"p50", "p90", "p99"}
    assert summary["chunk_age_ms"]["p50"] == 120.0
    assert set(summary["policy_stages_ms"]) == {"latency", "vision"}
    assert cell.tasks == ["pick up the red cube"] * 2
    assert cell.calls == ["disarm", "reset", "arm", "disarm", "reset", "arm", "disarm"]
    assert [line["outcome"] for line in heard if line["type"] == "result"] == ["success", "timeout"]
    assert any(line["type"] == "status" for line in heard)


def test_a_policy_that_never_answers_ends_the_run_with_one_clear_error(tmp_path):
    with FakeCell(chunks=False) as cell, pytest.raises(SessionError, match="no action chunk on policy/action_chunk"):
        run_session([episode_spec(start_timeout_s=8.0)], tmp_path, os.environ, lambda line: None)
    assert "arm" not in cell.calls
