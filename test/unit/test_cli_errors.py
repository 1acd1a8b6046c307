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


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--robot", "hal"], "unknown robot 'hal'"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets the network in, and no --token-file is given"),
        (["--token-file", "/no/such/file"], "the token file /no/such/file cannot be read"),
        (["--checkpoint", "/no/such/folder"], "/no/such/folder: no such directory"),
        (["--norm-tag", "franka_droid"], "no norm tag 'franka_droid'"),
        (["--robot", "yam"], "no trained checkpoint"),
        (["--backend", "remote:ws://127.0.0.1:9"], "on this machine"),
        (["--port", "70000"], "--port"),
        (["--idle", "0"], "--idle"),
    ],
)
def test_a_server_that_cannot_be_is_answered_in_one_line(arguments, answer, capsys) -> None:
    assert run(["serve", *arguments]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1
