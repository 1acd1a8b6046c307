"""`molmoact2 run` on a terminal and without one, with the real SO-101 driver on its emulated bus."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from pseudo_terminal import PseudoTerminal
from ros_process import Companion, eventually, marked, wait_until
from sensor_msgs.msg import JointState

from molmoact2_ros.drivers.parking import ParkPath
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR
from molmoact2_ros.recording.episodes import episodes
from molmoact2_ros.share import bundled_checkpoint

START_S, STEP_S = 120.0, 20.0
ROBOT = embodiment("so101")
RUN = [sys.executable, "-m", "molmoact2_ros.cli", "run", "--emulated"]


class Robot:
    """Hears the executor's states through ROS, in the order in which they came."""

    def __init__(self) -> None:
        self.other = Companion()

    def __enter__(self) -> Robot:
        self.other.__enter__()
        self.messages = self.other.listen(DiagnosticStatus, "executor/state", LATCHED)
        return self

    def __exit__(self, *_: object) -> None:
        self.other.__exit__()

    @property
    def states(self) -> list[str]:
        found: list[str] = []
        for message in tuple(self.messages):
            if not found or found[-1] != message.message:
                found.append(message.message)
        return found

    def reaches(self, state: str, terminal: PseudoTerminal, limit_s: float = STEP_S) -> None:
        wait_until(lambda: self.states[-1:] == [state], lambda: f"{state}; {self.states}\n{terminal.screen}", limit_s)


@pytest.mark.parametrize("policy", ["expert", pytest.param("molmoact2", marks=pytest.mark.slow)])
def test_an_arm_is_driven_with_keys_from_start_to_quit(policy: str, tmp_path: Path) -> None:
    mark, bags = uuid.uuid4().hex, tmp_path / "bags"
    command = [*RUN, "--policy", policy, "--task", "pick up the cube", "--record", str(bags), "--out", str(tmp_path)]
    with Robot() as robot, PseudoTerminal(command, {"MOLMOACT2_TEST": mark}) as terminal:

        def shows(words: str, limit_s: float = STEP_S, since: int = 0) -> None:
            wait_until(lambda: words in terminal.text[since:], lambda: f"{words!r}\n{terminal.screen}", limit_s)

        def press(keys: str, words: str) -> None:
            since = len(terminal.text)
            terminal.press(keys)
            shows(words, STEP_S, since)

        def arm() -> None:
            """Press `a` until the arm is armed: readings must agree first, and on a slow machine an arm swings on."""
            since = len(terminal.text)
            terminal.press("a")

            refused = since

            def armed() -> bool:
                nonlocal refused
                said = terminal.text[refused:]
                if "cannot arm" in said and "readings" in said:
                    refused += len(said)
                    terminal.press("a")
                return "armed; holding" in terminal.text[since:]

            wait_until(armed, lambda: f"armed\n{terminal.screen}", STEP_S)

        shows("a arms, s arms", START_S)
        assert robot.states == ["DISARMED"], "armed before a key was pressed"
        press("e", "episode_0001")
        arm()
        robot.reaches("TRACKING", terminal)
        press(" ", "this console")
        robot.reaches("ESTOPPED", terminal)
        press("a", "cannot arm while ESTOPPED")
        press("r", "reset; the executor is DISARMED")
        press("tput the red cube down\r", "put the red cube down")
        press("e", "episode_0001")
        press("lg", "success")
        wait_until(lambda: "a arms, s arms" in terminal.screen[-1500:], lambda: terminal.screen, STEP_S)
        press("s", "going to the start pose")
        robot.reaches("TRACKING", terminal)
        press("d", "decelerating to rest, then DISARMED")
        robot.reaches("DISARMED", terminal)
        arm()
        terminal.press("q")
        assert terminal.popen.wait(60.0) == 0, terminal.screen
        assert terminal.settings() == terminal.before
        assert "every node has ended" in terminal.screen
        assert not marked(mark)
        # In order: the arm was brought to rest first. A latched topic keeps the last state only.
        assert robot.states[-1] == "UNCONFIGURED" and robot.states[-2] in ("STOPPING", "DISARMED"), robot.states
    (episode,) = episodes(bags)
    assert episode.outcome == "success"


@pytest.mark.slow
def test_a_space_stops_an_arm_that_is_being_parked(tmp_path: Path) -> None:
    pose = ROBOT.rest_position.copy()
    pose[0] += 1.0
    own = tmp_path / "own.yaml"
    own.write_text(f"/**/so101_driver: {{ros__parameters: {{park_pose: {pose.tolist()}, park_speed: 0.01}}}}")
    assert ParkPath.of(ROBOT, ROBOT.rest_position, pose, 0.01).duration_s > 30.0
    command = [*RUN, "--policy", "none", "--config", str(own), "--out", str(tmp_path)]
    with Robot() as robot, PseudoTerminal(command) as terminal:
        joints = robot.other.listen(JointState, "joint_states", SENSOR)

        def pan() -> float:
            return float(joints[-1].position[0])

        wait_until(lambda: "a arms, s arms" in terminal.text and joints, lambda: terminal.screen, START_S)
        begun = pan()
        terminal.press("q")
        wait_until(lambda: pan() > begun + 0.05, lambda: f"motion; {pan() - begun}\n{terminal.screen}", 60.0)
        assert terminal.popen.poll() is None and "also while the arm is parked" in terminal.text
        terminal.press(" ")
        assert terminal.popen.wait(60.0) == 0, terminal.screen
        assert pan() < pose[0] - 0.3, "it was not stopped on its way"
        assert terminal.settings() == terminal.before


def first_lines(popen: subprocess.Popen[str], wanted: Callable[[str], bool]) -> Iterator[str]:
    assert popen.stdout is not None
    for line in popen.stdout:
        yield line
        if wanted(line):
            return


@pytest.mark.slow
def test_without_a_terminal_it_prints_changes_takes_no_keys_and_ends_by_sigint(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = [*RUN, "--policy", "none", "--out", str(tmp_path)]
    env = {**os.environ, "MOLMOACT2_TEST": mark}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with Robot() as robot, subprocess.Popen(command, env=env, text=True, **pipes) as popen:
        assert popen.stdin is not None and popen.stdout is not None
        popen.stdin.write("a \n")
        popen.stdin.flush()
        lines = list(first_lines(popen, lambda line: "DISARMED" in line))
        wait_until(lambda: robot.states, "the executor's state")
        popen.send_signal(signal.SIGINT)
        rest = popen.stdout.read()
        assert popen.wait(60.0) == 130
        assert eventually(lambda: not marked(mark))
        assert robot.states in (["DISARMED"], ["DISARMED", "UNCONFIGURED"])
    assert lines[-1].startswith("executor DISARMED: ")
    assert "every node has ended" in rest and "\x1b" not in "".join(lines) + rest and "Traceback" not in rest


def test_sigterm_ends_the_nodes_and_gives_the_terminal_back(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = [*RUN, "--policy", "none", "--out", str(tmp_path)]
    with PseudoTerminal(command, {"MOLMOACT2_TEST": mark}) as terminal:
        wait_until(lambda: "SPACE STOP" in terminal.text, lambda: terminal.screen, START_S)
        assert terminal.settings() != terminal.before
        terminal.popen.send_signal(signal.SIGTERM)
        assert terminal.popen.wait(60.0) == 128 + signal.SIGTERM
        assert terminal.settings() == terminal.before
        assert "ended by SIGTERM; every node has ended" in terminal.screen and "Traceback" not in terminal.text
        assert not marked(mark)


POLICY = [
    *("-m", "molmoact2_ros.nodes.policy_node", "--ros-args", "-p", f"checkpoint:={bundled_checkpoint('so101')}"),
    *("-p", "norm_tag:=so100_so101_molmoact2", "-p", "threads:=1"),
]


@pytest.mark.parametrize(
    ("program", "imported", "status"),
    [
        (POLICY, "molmoact2_ros.nodes", 130),
        (POLICY, "rclpy.node", 130),
        (POLICY, "numpy._core.multiarray", 130),
        (POLICY, "torch.nn.functional", 0),
        (["-m", "molmoact2_ros.cli", "run", "--emulated"], "molmoact2_ros.cli.arguments", 130),
        (["-m", "molmoact2_ros.cli", "run", "--emulated"], "numpy._core.multiarray", 130),
        (["-m", "molmoact2_ros.cli", "sim", "--no-film"], "molmoact2_ros.bringup.specs", 130),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupt_while_it_starts_ends_it_at_once_without_a_traceback(
    program: list[str], imported: str, status: int, tmp_path: Path
) -> None:
    """At the moment at which a module has just been loaded, whatever takes how long on this machine."""
    command = [sys.executable, "-X", "importtime", *program]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=env, cwd=tmp_path, text=True, stdout=-1, stderr=-2) as popen:
        begun = list(first_lines(popen, lambda line: line.split("|")[-1].strip() == imported))
        assert begun and begun[-1].split("|")[-1].strip() == imported, "".join(begun[-20:])
        popen.send_signal(signal.SIGINT)
        assert popen.stdout is not None
        rest = popen.stdout.read()
        assert popen.wait(10.0) == status, rest[-2000:]
    assert "Traceback" not in rest and "Error" not in rest


def test_an_interrupt_right_after_the_nodes_were_started_ends_them(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    env = {**os.environ, "MOLMOACT2_TEST": mark}
    command = [*RUN, "--out", str(tmp_path)]
    with subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-2, stdin=subprocess.DEVNULL) as popen:
        list(first_lines(popen, lambda line: "in ROS domain" in line))
        assert eventually(lambda: len(marked(mark)) >= 6)
        popen.send_signal(signal.SIGINT)
        assert popen.stdout is not None
        rest = popen.stdout.read()
        assert popen.wait(10.0) == 130
        assert not marked(mark)
    assert "Traceback" not in rest + "".join(log.read_text() for log in (tmp_path / "log").glob("*.log"))


def processor_ticks(pid: int) -> int:
    """Processor time of a process so far, hundredths of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


COMPUTES = """
import hashlib, sys
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
class Computing(MolmoNode):
    def __init__(self):
        super().__init__("computing")
    def setup(self):
        print("computing", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"a library that hears no signal", b"before it is done", 2_000_000_000)
main_of(Computing)()
"""


def test_a_node_that_computes_while_it_is_configured_is_ended_all_the_same(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", COMPUTES], text=True, stdout=-1, stderr=-2) as popen:
        list(first_lines(popen, lambda line: line == "computing\n"))
        begun = processor_ticks(popen.pid)
        wait_until(lambda: processor_ticks(popen.pid) > begun + 20, "it to be within the library", STEP_S)
        popen.send_signal(signal.SIGINT)
        assert popen.stdout is not None
        rest = popen.stdout.read()
        assert popen.wait(10.0) == 0
    assert rest == "ended while it was being configured\n"
