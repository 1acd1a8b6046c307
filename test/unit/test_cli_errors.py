"""What the command line answers to a wrong input: one line, exit status 2, nothing started."""

from __future__ import annotations

import pytest

from molmoact2_ros.cli import run


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--robot", "hal"], "unknown robot 'hal'; known robots: franka"),
        (["--robot", "yam"], "there is no trained checkpoint of the simulated yam cell"),
        (["--task", "  "], "the task is empty"),
        (["--checkpoint", "/no/such/folder"], "neither a directory nor a Hugging Face id"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--episode-timeout", "-1"], "must be above 0 s"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(arguments, answer, capsys) -> None:
    assert run(["sim", *arguments]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
