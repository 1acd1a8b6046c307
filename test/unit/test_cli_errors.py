"""What the command line answers to a wrong input: one line, exit status 2, nothing started."""

from __future__ import annotations

import pytest

from molmoact2_ros.cli import run
from molmoact2_ros.share import bundled_checkpoint

CELL = str(bundled_checkpoint("so101"))
CAMERAS = "front=v4l2:/dev/v4l/by-path/none,wrist=v4l2:/dev/v4l/by-path/none2"


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


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "policy molmoact2 needs a checkpoint on a robot"),
        (["--checkpoint", CELL], "nothing says where the images of so101 come from"),
        (["--checkpoint", CELL, "--cameras", CAMERAS], "nothing says which arm: --port /dev/serial/by-id/..."),
        (["--checkpoint", CELL, "--cameras", "front=sim:x", "--port", "/dev/null"], "this is a real arm"),
        (["--checkpoint", CELL, "--cameras", CAMERAS, "--port", "a,b"], "so101 has port, got ports a, b"),
        (["--checkpoint", CELL, "--cameras", CAMERAS, "--robot-ip", "10.0.0.2"], "robot_ip is of a Franka"),
        (["--policy", "expert", "--cameras", CAMERAS], "the scripted expert knows the simulated cell only"),
        (["--emulated", "--cameras", CAMERAS], "the simulated cell has cameras of its own"),
        (["--emulated", "--config", "/no/such/file"], "cannot read the parameter file /no/such/file"),
        (["--emulated", "--robot", "yam"], "there is no trained checkpoint of the simulated yam cell"),
    ],
)
def test_a_robot_is_not_started_on_what_cannot_work(arguments, answer, capsys) -> None:
    assert run(["run", *arguments]) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["sim", "--no-film"], ["run", "--emulated"]], ids=lambda value: value[0])
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_starts(command, capsys, tmp_path) -> None:
    out = tmp_path / "out"
    assert run([*command, "--robot", "yam", "--checkpoint", CELL, "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert "the checkpoint is refused: " in err and "no norm tag 'yam_dual_molmoact2'" in err
    assert err.count("\n") == 1 and not out.exists()


def test_a_robot_is_not_started_on_a_fault_that_the_doctor_finds(capsys, tmp_path) -> None:
    given = ["--checkpoint", CELL, "--cameras", CAMERAS, "--port", "/dev/serial/by-id/none", "--out", str(tmp_path)]
    assert run(["run", *given]) == 1
    out, err = capsys.readouterr()
    assert "/dev/v4l/by-path/none of the config is not plugged in" in out and "-> lerobot-find-port" in out
    assert err == "molmoact2: not started: cameras, ports must be mended first\n"
    assert not (tmp_path / "log").exists()
