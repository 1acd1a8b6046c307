"""Processes: whatever ends the run (Ctrl-C, SIGTERM, kill -9 of the parent, a node that dies), none is left behind."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from ros_process import Companion, eventually, marked
from sensor_msgs.msg import JointState

from molmoact2_ros.bringup import processes
from molmoact2_ros.bringup.ending import RESTARTS, OnEnd
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import NodeEndedError, ProcessGroup, free_domain_id, node_environment
from molmoact2_ros.bringup.specs import NodeSpec, nodes
from molmoact2_ros.nodes.ros.qos import SENSOR

TEST_DIR = Path(__file__).parents[1]


@dataclass(frozen=True)
class Script(NodeSpec):
    """A node that is a module of the tests."""

    @property
    def module(self) -> str:
        return self.executable


def script(module: str, name: str = "script", on_end: OnEnd = OnEnd.ENDS_RUN, **environment: str) -> Script:
    return Script(module, name, "/so101", environment={"PYTHONPATH": str(TEST_DIR), **environment}, on_end=on_end)


def polite(diary: Path, name: str, seconds: float) -> Script:
    return script("polite", name, NAME=name, DIARY=str(diary), SECONDS=str(seconds))


def camera() -> NodeSpec:
    return next(spec for spec in nodes(Options()) if spec.executable == "camera_node")


def test_a_node_that_ignores_every_signal_is_killed_with_its_helpers(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TERMINATE_S", 0.3)
    monkeypatch.setattr(processes, "AGAIN_S", 0.3)
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


def test_a_node_that_could_not_start_ends_the_session_with_its_own_line(tmp_path):
    bad = replace(camera(), parameters={**camera().parameters, "names": ["front", "front"]}, on_end=OnEnd.RESTARTED)
    with ProcessGroup([bad], tmp_path, os.environ) as bringup:
        bringup.processes["camera"].popen.wait(20.0)
        with pytest.raises(NodeEndedError) as found:
            bringup.check()
    told = str(found.value)
    assert told.startswith("camera: parameters names ['front', 'front'] and sources") and told.count("\n") == 0


def test_a_node_that_is_not_needed_is_reported_once(tmp_path):
    with ProcessGroup([script("no_such_module", on_end=OnEnd.REPORTED)], tmp_path, os.environ) as bringup:
        bringup.processes["script"].popen.wait(20.0)
        assert len(bringup.check()) == 1
        assert bringup.check() == []


def test_a_node_that_is_started_again_is_so_for_a_while_and_then_only_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "RESTART_DELAY_S", 0.0)
    lines = []
    with ProcessGroup([script("no_such_module", on_end=OnEnd.RESTARTED)], tmp_path, os.environ) as bringup:
        process = bringup.processes["script"]
        assert eventually(lambda: lines.extend(bringup.check()) or len(lines) == RESTARTS + 1, 60.0)
        assert process.popen.poll() == 1
        assert bringup.check() == [] and process.due_s is None
    assert all(f"is started again ({i} of {RESTARTS})" in line for i, line in enumerate(lines[:-1], 1))
    assert "started again" not in lines[-1] and "status 1" in lines[-1]
    assert process.log.read_text().count("No module named no_such_module") == RESTARTS + 1


def test_a_node_waiting_to_be_started_again_is_not_when_the_run_ends(tmp_path):
    with ProcessGroup([script("no_such_module", on_end=OnEnd.RESTARTED)], tmp_path, os.environ) as bringup:
        process = bringup.processes["script"]
        process.popen.wait(20.0)
        assert len(bringup.check()) == 1 and process.due_s is not None
    assert process.due_s is None
    assert bringup.check() == []


ENDING = ["executor", "camera", "so101_driver", "sim"]


def test_nodes_end_in_order_and_each_only_when_those_before_it_have(tmp_path):
    diary = tmp_path / "diary"
    with ProcessGroup([polite(diary, name, 0.2) for name in reversed(ENDING)], tmp_path, os.environ):
        assert eventually(lambda: diary.is_file() and diary.read_text().count("ready") == 4)
    told = [line for line in diary.read_text().splitlines() if "ready" not in line]
    assert told == [f"{name} {what}" for name in ENDING for what in ("asked", "ended")]


def test_a_second_interrupt_ends_the_others_at_once_and_leaves_the_arm_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TERMINATE_S", 300.0)
    diary = tmp_path / "diary"
    specs = [polite(diary, "executor", 1.0), script("stubborn", "camera"), polite(diary, "so101_driver", 1.0)]

    def interrupt_again() -> None:
        assert eventually(lambda: "executor asked" in diary.read_text())
        os.kill(os.getpid(), signal.SIGINT)
        assert eventually(lambda: "so101_driver asked" in diary.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    with ProcessGroup(specs, tmp_path, os.environ) as bringup:
        log = bringup.processes["camera"].log
        assert eventually(lambda: diary.is_file() and diary.read_text().count("ready") == 2)
        assert eventually(lambda: "ready" in log.read_text())
        impatient = threading.Thread(target=interrupt_again)
        impatient.start()
    impatient.join()
    assert bringup.processes["camera"].popen.returncode == -signal.SIGKILL
    assert "executor ended\nso101_driver asked\nso101_driver ended" in diary.read_text()


def all_at_once(bringup: ProcessGroup) -> None:
    """As a terminal's Ctrl-C reaches the nodes of `ros2 launch`."""
    for process in bringup.processes.values():
        process.popen.send_signal(signal.SIGINT)


@pytest.mark.parametrize("how", [ProcessGroup.stop, all_at_once], ids=["in order", "all at once"])
def test_the_driver_lets_go_of_an_arm_that_has_come_to_rest(tmp_path, how):
    options = Options(emulated=True, policy="expert", visualize=False, link_prefix=f"molmoact2_{uuid.uuid4().hex[:8]}")
    positions: deque[np.ndarray] = deque(maxlen=20)

    def moving() -> bool:
        """Faster than 0.3 rad/s in the last 0.2 s."""
        return len(positions) == 20 and bool(np.abs(positions[-1] - positions[0])[:5].max() > 0.06)

    with Companion() as other, ProcessGroup(nodes(options), tmp_path, os.environ) as bringup:
        other.node.create_subscription(
            JointState, "joint_states", lambda message: positions.append(np.array(message.position)), SENSOR
        )
        assert eventually(moving, 120.0), bringup.processes["episode"].tail()
        how(bringup)
        ended = [bringup.processes[name].popen for name in ("executor", "so101_driver", "sim")]
        assert eventually(lambda: all(popen.poll() is not None for popen in ended), 60.0)
        assert [popen.returncode for popen in ended] == [0, 0, 0]
        last = np.array(list(positions)[-10:])
    steps = np.abs(np.diff(last[:, :5], axis=0))
    assert len(steps) == 9
    assert steps.max() < 4e-3, f"the arm moved by {steps.max():.4f} rad between two of its last readings"


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


def test_domains_in_which_a_killed_process_left_shared_memory_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fastrtps_port8161", "fastrtps_port8161_el", "fastrtps_0f5d169180077527", "sem.fastrtps_port9000"):
        (tmp_path / name).touch()
    assert processes.left_behind(tmp_path) == {3}
    monkeypatch.setattr(processes, "left_behind", lambda: set(range(1, 102)) - {57})
    found = {free_domain_id() for _ in range(5)}
    assert found == {57}
