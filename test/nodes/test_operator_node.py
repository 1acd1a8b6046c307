"""The operator node beside a real executor, asked on its standard input and heard on its standard output."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from ros_process import Companion, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from molmoact2_ros.bringup.operating import Wire
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import ProcessGroup
from molmoact2_ros.bringup.session import lines_of
from molmoact2_ros.bringup.specs import BUTTON_SILENCE_S, nodes
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED, SENSOR

ROBOT = embodiment("so101")
OPTIONS = Options(emulated=True, episodes=0, operator="keys", visualize=False)


class Desk:
    """Executor and operator node as processes, a test in the console's place, and readings of an arm that rests."""

    def __init__(self, folder: Path) -> None:
        specs = [spec for spec in nodes(OPTIONS) if spec.name in ("executor", "operator")]
        self.silence_s = specs[0].parameters["e_stop_heartbeat_s"]
        specs[0] = replace(specs[0], parameters={**specs[0].parameters, "arm_needs_chunk": False})
        self.group = ProcessGroup(specs, folder, os.environ, piped=["operator"], fed=["operator"])
        self.other = Companion()
        self.lines: list[dict[str, Any]] = []
        self.alive = True
        self._ended = threading.Event()

    def __enter__(self) -> Desk:
        self.other.__enter__()
        self.group.__enter__()
        process = self.group.processes["operator"]
        assert process.popen.stdin is not None
        self.wire = Wire(process.popen.stdin.fileno())
        joints = self.other.node.create_publisher(JointState, "joint_states", SENSOR)

        def publish() -> None:
            message = JointState(name=list(ROBOT.joint_names), position=ROBOT.rest_position.tolist())
            message.header.stamp = self.other.node.get_clock().now().to_msg()
            joints.publish(message)
            if self.alive:
                self.wire.send([{"ask": "alive"}])

        def read() -> None:
            for line in lines_of(process, self.group, self.lines.append):
                if self._ended.is_set():
                    return
                if line is not None:
                    self.lines.append(line)

        self.other.node.create_timer(0.02, publish)
        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._reader.join(5.0)
        self.group.stop()
        self.wire.close()
        self.other.__exit__()

    @property
    def state(self) -> dict[str, Any]:
        return next((line for line in reversed(self.lines) if line["type"] == "state"), {"executor": "", "ready": []})

    def reaches(self, executor: str, within_s: float = 10.0) -> dict[str, Any]:
        wait_until(lambda: self.state["executor"] == executor, lambda: f"{executor}; {self.state}", within_s)
        return self.state

    def ask(self, ask: str, **fields: object) -> tuple[bool, str]:
        answers = self.answers(ask)
        self.wire.send([{"ask": ask, **fields}])
        wait_until(lambda: len(self.answers(ask)) > len(answers), f"an answer to {ask}", 15.0)
        last = self.answers(ask)[-1]
        return last["ok"], last["message"]

    def answers(self, ask: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == "answer" and line["ask"] == ask]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Desk(tmp_path_factory.mktemp("log")) as desk:
        wait_until(lambda: {"arm", "start", "reset"} <= set(desk.state["ready"]), "the executor's services", 30.0)
        wait_until(lambda: desk.state["executor"] == "DISARMED", "the executor's state")
        yield desk


@pytest.fixture(autouse=True)
def rested(desk: Desk) -> None:
    """What a test before left does not count here: nothing is pressed, and nothing armed."""
    desk.alive = True
    if desk.state["executor"] == "ESTOPPED":
        wait_until(lambda: desk.ask("reset")[0], lambda: f"a reset; {desk.answers('reset')[-1]}, {desk.state}", 20.0)
    assert desk.ask("disarm")[0]
    desk.reaches("DISARMED")


@contextmanager
def another_button(desk: Desk) -> Iterator[Callable[[bool], None]]:
    publisher = desk.other.node.create_publisher(Bool, "e_stop", LATCHED)
    try:
        yield lambda pressed: publisher.publish(Bool(data=pressed))
    finally:
        desk.other.node.destroy_publisher(publisher)


def test_it_arms_stops_and_resets_and_says_who_stops(desk: Desk) -> None:
    wait_until(lambda: desk.ask("arm")[0], "arming, once the executor has heard the button")
    assert desk.answers("arm")[-1]["message"] == "armed; holding the measured position"  # it misses no e_stop publisher
    desk.reaches("HOLDING")
    desk.wire.send([{"ask": "stop"}])
    desk.reaches("ESTOPPED", 5.0)
    wait_until(lambda: desk.state["stops"] == ["this console"], lambda: f"who presses; {desk.state}")
    assert desk.ask("arm")[0] is False
    assert desk.ask("reset") == (True, "reset; the executor is DISARMED")
    desk.reaches("DISARMED")
    wait_until(lambda: desk.state["stops"] == [], lambda: f"nobody presses; {desk.state}")
    assert desk.ask("disarm") == (True, "already disarmed")


def test_a_stop_passes_a_request_that_nobody_answers(desk: Desk) -> None:
    asked = threading.Event()
    go_on = threading.Event()

    def never(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        asked.set()
        go_on.wait(20.0)
        return response

    # On a node of its own: the other goes on to be the arm.
    with Companion(name="slow") as slow:
        slow.node.create_service(Trigger, "recorder/start", never)
        wait_until(lambda: "record" in desk.state["ready"], "the service")
        assert desk.ask("arm")[0]
        desk.wire.send([{"ask": "record"}])
        wait_until(asked.is_set, "the request")
        desk.wire.send([{"ask": "stop"}])
        desk.reaches("ESTOPPED", 5.0)
        assert not desk.answers("record")
        go_on.set()
    assert desk.ask("reset")[0]


def test_a_reset_is_refused_while_somebody_else_presses_and_names_him(desk: Desk) -> None:
    with another_button(desk) as button:
        button(True)
        desk.reaches("ESTOPPED")
        wait_until(lambda: desk.state["stops"] == ["/so101/companion"], lambda: f"who presses; {desk.state}")
        ok, words = desk.ask("reset")
        assert not ok and "release it" in words
        button(False)
        wait_until(lambda: desk.ask("reset")[0], "a reset")


def test_a_stop_gives_up_a_reset_that_is_under_way(desk: Desk) -> None:
    with another_button(desk) as button:
        button(True)
        desk.reaches("ESTOPPED")
        desk.wire.send([{"ask": "reset"}, {"ask": "stop"}])
        button(False)
        wait_until(
            lambda: desk.answers("reset") and desk.answers("reset")[-1]["message"] == "stopped again",
            lambda: f"the answer; {desk.answers('reset')}, {desk.state}",
        )
        assert desk.state["executor"] == "ESTOPPED"


def test_a_task_is_answered_by_the_policy_and_its_refusal_is_passed_on(desk: Desk) -> None:
    assert desk.ask("task", text="pick it up") == (False, "/so101/policy/set_parameters is not there (yet)")
    with Companion(name="policy") as policy:
        policy.node.declare_parameter("task", "")

        def refuse(parameters: Any) -> SetParametersResult:
            bad = parameters[0].value == "bad"
            return SetParametersResult(successful=not bad, reason="too short" if bad else "")

        policy.node.add_on_set_parameters_callback(refuse)
        wait_until(lambda: "task" in desk.state["ready"], "the policy's service")
        assert desk.ask("task", text="bad") == (False, "too short")
        assert desk.ask("task", text="pick it up") == (True, "task: pick it up")
        assert policy.node.get_parameter("task").value == "pick it up"


def test_labels_carry_the_word_of_the_person(desk: Desk) -> None:
    heard = []

    def label(request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        heard.append(request.data)
        response.success, response.message = True, "labelled"
        return response

    service = desk.other.node.create_service(SetBool, "recorder/label", label)
    wait_until(lambda: "label" in desk.state["ready"], "the service")
    assert [desk.ask("label", success=success)[0] for success in (True, False)] == [True, True]
    assert heard == [True, False]
    desk.other.node.destroy_service(service)


def test_nothing_moves_beside_a_second_executor(desk: Desk) -> None:
    second = desk.other.node.create_publisher(DiagnosticStatus, "executor/state", LATCHED)
    wait_until(lambda: desk.other.node.count_publishers("executor/state") == 2, "the second one")
    wait_until(lambda: "another executor" in desk.ask("arm")[1], "a refusal")
    assert "another executor" in desk.ask("start")[1]
    desk.other.node.destroy_publisher(second)
    wait_until(lambda: desk.ask("arm")[0], "arming, now that it has gone")
    assert desk.ask("disarm")[0]
    desk.reaches("DISARMED")


def test_what_cannot_be_understood_changes_nothing(desk: Desk) -> None:
    for line in ("nonsense", "[]", "{}", '{"ask": "fly"}', '{"ask": 3}', '{"ask": ["arm"]}'):
        os.write(desk.wire._descriptor, line.encode() + b"\n")
    os.write(desk.wire._descriptor, json.dumps({"ask": "task"}).encode() + b"\n")
    assert desk.ask("disarm")[0]
    assert desk.state["executor"] == "DISARMED"


def test_a_console_that_falls_silent_stops_the_arm(desk: Desk) -> None:
    assert desk.silence_s == BUTTON_SILENCE_S
    assert desk.ask("arm")[0]
    desk.reaches("HOLDING")
    desk.alive = False
    assert "e_stop silent" in desk.reaches("ESTOPPED", BUTTON_SILENCE_S + 5.0)["reason"]
    desk.alive = True
    wait_until(lambda: desk.ask("reset")[0], "a reset, now that the console is heard again")
