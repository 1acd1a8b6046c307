"""Processes: whatever ends the run (Ctrl-C, SIGTERM, kill -9 of the parent, a node that dies), none is left behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from molmoact2_ros.bringup import processes
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import NodeEndedError, ProcessGroup, free_domain_id, node_environment
from molmoact2_ros.bringup.specs import NodeSpec, nodes

TEST_DIR = Path(__file__).parents[1]


@dataclass(frozen=True)
class Script(NodeSpec):
    """A node that is a module of the tests."""

    @property
    def module(self) -> str:
        return self.executable


def script(module: str, name: str = "script", essential: bool = True) -> Script:
    return Script(module, name, "/so101", environment={"PYTHONPATH": str(TEST_DIR)}, essential=essential)


def camera() -> NodeSpec:
    return next(spec for spec in nodes(Options()) if spec.executable == "camera_node")


def marked(mark: str) -> set[int]:
    """Living processes that carry `mark` in their environment, zombies left out."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and " Z " not in (folder / "stat").read_text():
                found.add(int(folder.name))
        except OSError:
            continue
    return found - {os.getpid()}


def eventually(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_node_that_ignores_every_signal_is_killed_with_its_helpers(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "INTERRUPT_S", 0.3)
    monkeypatch.setattr(processes, "TERMINATE_S", 0.3)
    mark = uuid.uuid4().hex
    with ProcessGroup([script("stubborn")], tmp_path, {**os.environ, "MOLMOACT2_TEST": mark}) as bringup:
        log = bringup.processes["script"].log
        assert eventually(lambda: "ready" in log.read_text())
        assert len(marked(mark)) == 2
    assert eventually(lambda: not marked(mark), 5.0)


def test_a_node_that_dies_ends_the_session_and_shows_its_last_words(tmp_path):
    with ProcessGroup([script("no_such_module")], tmp_path, os.environ) as bringup:
        process = bringup.processes["script"]
        process.popen.wait(20.0)
        with pytest.raises(NodeEndedError, match=r"(?s)'script' ended with status 1.*No module named no_such_module"):
            bringup.check()


def test_a_node_that_is_not_needed_is_reported_once(tmp_path):
    with ProcessGroup([script("no_such_module", essential=False)], tmp_path, os.environ) as bringup:
        bringup.processes["script"].popen.wait(20.0)
        assert len(bringup.check()) == 1
        assert bringup.check() == []


def test_an_orderly_node_ends_by_the_first_signal(tmp_path):
    with ProcessGroup([camera()], tmp_path, os.environ) as bringup:
        process = bringup.processes["camera"]
        assert eventually(lambda: "camera 'front'" in process.log.read_text())
    assert process.popen.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_the_command_line_leaves_no_process_behind(tmp_path, number):
    mark = uuid.uuid4().hex
    env = {**os.environ, "MOLMOACT2_TEST": mark}
    run = [sys.executable, "-m", "molmoact2_ros.cli", "sim"]
    command = [*run, "--policy", "expert", "--no-film", "--out", str(tmp_path)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as popen:
        assert popen.stderr is not None
        for line in popen.stderr:
            if "waiting for the nodes" in line:
                break
        assert len(marked(mark)) >= 5
        popen.send_signal(number)
        rest = popen.stderr.read() if number is not signal.SIGKILL else ""
        status = popen.wait(60.0)
        assert eventually(lambda: not marked(mark))
    if number is not signal.SIGKILL:
        assert status == 128 + number
        assert "every node has ended" in rest
        assert "Traceback" not in rest


def test_another_ros_does_not_leak_into_the_nodes(tmp_path):
    other = tmp_path / "opt" / "ros"
    (other / "lib").mkdir(parents=True)
    (other / "lib" / "librcl.so").touch()
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    env = node_environment(
        {
            "PYTHONPATH": f"{other}/lib/python3.12/site-packages",
            "LD_LIBRARY_PATH": f"{other}/lib:/usr/lib/extra",
            "AMENT_PREFIX_PATH": f"{workspace}:{other}",
            "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1",
        }
    )
    assert str(other) not in " ".join(env.values())
    assert env["AMENT_PREFIX_PATH"].split(":") == [str(workspace), sys.prefix]
    assert "/usr/lib/extra" in env["LD_LIBRARY_PATH"]
    assert "_ROS_WHEELS_BOOTSTRAP_COMPLETE" not in env  # the nodes set their own library paths up again


def test_what_the_user_has_set_stays():
    env = node_environment({"ROS_DOMAIN_ID": "77", "MUJOCO_GL": "osmesa", "FASTRTPS_DEFAULT_PROFILES_FILE": "/my.xml"})
    chosen = (env["ROS_DOMAIN_ID"], env["MUJOCO_GL"], env["FASTRTPS_DEFAULT_PROFILES_FILE"])
    assert chosen == ("77", "osmesa", "/my.xml")


def test_a_domain_in_use_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.random.SystemRandom, "shuffle", lambda self, values: None)
    first = free_domain_id()
    spec = replace(camera(), environment={"ROS_DOMAIN_ID": str(first)})
    with ProcessGroup([spec], tmp_path, os.environ) as bringup:
        assert eventually(lambda: "camera 'front'" in bringup.processes["camera"].log.read_text())
        assert free_domain_id() != first
