"""The panel without ROS and without a browser: what it shows, who is let in, what is a lost browser, the 3D view."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from panel_cell import Page
from ros_process import wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from molmoact2_ros.bringup.advice import BUTTONS, KEYS
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.specs import BUTTON_SILENCE_S, nodes
from molmoact2_ros.cli.view import robots_from
from molmoact2_ros.embodiments import EMBODIMENTS, embodiment
from molmoact2_ros.embodiments.description import robot_description
from molmoact2_ros.embodiments.link_shapes import LinkModel
from molmoact2_ros.execution.supervisor import State
from molmoact2_ros.panel.gate import Gate, check_reach
from molmoact2_ros.panel.hold_to_run import HoldToRun
from molmoact2_ros.panel.pages import framed
from molmoact2_ros.panel.scene import Scene
from molmoact2_ros.panel.server import Hooks, PanelServer
from molmoact2_ros.panel.view import ACTIONS, TONES, RobotView, checked
from molmoact2_ros.rendering.projection import tip_paths

# -- what is shown ----------------------------------------------------------------------------------------------------


def state(executor: str = "DISARMED", **changed: Any) -> dict[str, Any]:
    said = {name: (0, "fine") for name in ("executor", "policy", "recorder")}
    found = {"executor": executor, "reason": "so it is", "chunk_age_ms": "41.2", "latency_ms": "93.0", "chunks": True}
    found |= {"limited_ticks": "10", "task": "pick it up", "stops": [], "driver": (0, "ready"), "said": said}
    return found | {"ready": list(ACTIONS), **changed}


def view(executor: str = "DISARMED", **changed: Any) -> RobotView:
    made = RobotView("/so101", "so101")
    made.hear(state(executor, **changed), 0.0)
    return made


def test_every_state_of_the_executor_has_its_colour() -> None:
    assert set(TONES) == {state.value for state in State}


@pytest.mark.parametrize(
    ("executor", "changed", "advice"),
    [
        ("", {}, "wait: the executor is silent"),
        ("DISARMED", {}, "press Arm"),
        ("DISARMED", {"task": ""}, "type a task"),
        ("DISARMED", {"driver": (2, "no arm")}, "wait, or mend: no arm"),
        ("DISARMED", {"chunks": False}, "no usable chunk"),
        ("HOLDING", {"task": ""}, "type a task"),
        ("TRACKING", {}, "STOP or the space bar"),
        ("STOPPING", {}, "comes to rest"),
        ("FAULT", {}, "press Disarm"),
        ("ESTOPPED", {"stops": ["this panel"]}, "press Reset"),
        ("ESTOPPED", {"stops": ["/so101/operator"]}, "/so101/operator must let go"),
    ],
)
def test_it_says_what_to_do_next(executor: str, changed: dict[str, Any], advice: str) -> None:
    assert advice in view(executor, **changed).shown()["next"]


def test_keys_and_buttons_speak_of_the_same_things() -> None:
    assert vars(KEYS).keys() == vars(BUTTONS).keys() and all(vars(BUTTONS).values())


def test_who_drives_is_shown_and_a_lost_leader_says_what_to_do() -> None:
    made = RobotView("/so101", "so101")
    made.hear(state("TRACKING", drives="policy", handover="policy"), 0.0)
    assert made.shown()["leads"] is False and made.shown()["drives"] == "policy"
    said = {"teleop": (0, "reading"), "policy": (0, "active")}
    made.hear(state("HOLDING", drives="nobody", handover="teleop: holding", said=said), 1.0)
    assert made.shown()["leads"] is True and made.shown()["next"] == BUTTONS.take_anew


def test_what_it_shows_can_be_sent_as_json_whatever_was_heard() -> None:
    odd = view("TRACKING", chunk_age_ms="nan", latency_ms="?", limited_ticks="-", said={"policy": (2, "bad\x00")})
    odd.listed("{not json")
    odd.listed('[{"episode": null, "length_s": "nan", "verdict": 7}, 3]')
    shown = json.loads(json.dumps(odd.shown(), allow_nan=False))
    assert shown["sample"] == [None, None, None, None]
    assert shown["episodes"] == [{"number": None, "task": "", "outcome": "", "length": "", "verdict": []}]


def test_ticks_at_a_limit_are_a_rate_and_a_restarted_executor_is_no_negative_one() -> None:
    made = view()
    made.hear(state(limited_ticks="30"), 0.5)
    assert made.sample() == [93.0, 41.2, None, 40.0]
    made.hear(state(limited_ticks="0"), 1.0)
    assert made.sample()[3] == 0.0
    made.reused(0.8)
    assert made.sample()[2] == 80.0


def test_the_history_has_each_task_once_and_the_last_on_top() -> None:
    made = view()
    for task in ("place it", "pick  it up", "place it", *(f"task {i}" for i in range(30))):
        made.told(task)
    assert made.tasks[0] == "task 29" and len(made.tasks) == 20 == len(set(made.tasks))


def test_an_executor_that_fell_silent_may_still_move_its_arm() -> None:
    made = view("TRACKING")
    made.hear(state(""), 1.0)
    assert made.moves and made.shown()["state"] == "NOT HEARD"
    made.hear(state("ESTOPPED"), 2.0)
    assert not made.moves


def test_a_control_says_why_it_is_grey() -> None:
    assert "not there" in view(ready=["arm"]).shown()["buttons"]["record"]
    recording = view(said={"recorder": (0, "recording episode_0003")}).shown()
    assert recording["recording"] == "episode_0003"
    assert recording["buttons"]["record"] and not recording["buttons"]["end"]


@pytest.mark.parametrize(
    "asked",
    [None, [], {}, {"ask": "episodes", "robot": "/a"}, {"ask": "arm"}, {"ask": "arm", "robot": ["/a"]},
     {"ask": "task", "robot": "/a", "text": " "}, {"ask": "task", "robot": "/a", "text": "x" * 401},
     {"ask": "label", "robot": "/a", "success": "yes"}],
)  # fmt: skip
def test_what_is_no_request_is_refused(asked: object) -> None:
    with pytest.raises(ValueError):
        checked(asked, ["/a"])


def test_a_request_is_stripped_to_what_it_needs() -> None:
    asked = {"ask": "task", "robot": "/a", "text": " pick\n it ", "presses": 7, "page": 1}
    assert checked(asked, ["/a"]) == ("/a", {"ask": "task", "text": "pick it"})


# -- hold to run ------------------------------------------------------------------------------------------------------


def test_the_arm_stops_when_its_holder_or_the_last_browser_is_lost() -> None:
    hold = HoldToRun(1.0)
    hold.heard(1, 0.0)
    hold.heard(2, 0.0)
    hold.armed_by(1)
    assert hold.lost(0.5, moves=True) == ""
    hold.gone(1)
    assert "armed is lost" in hold.lost(0.6, moves=True)
    assert hold.lost(0.7, moves=True) == ""  # the other one still looks
    assert "no browser" in hold.lost(1.1, moves=True)
    assert hold.lost(9.0, moves=False) == ""


# -- who is let in ----------------------------------------------------------------------------------------------------


def test_a_network_is_let_in_with_a_token_only() -> None:
    check_reach("127.0.0.1", "")
    check_reach("0.0.0.0", "a-token")
    with pytest.raises(ValueError, match="openssl"):
        check_reach("0.0.0.0", "")


@pytest.mark.parametrize(
    ("token", "headers", "allowed"),
    [
        ("", {"Host": "127.0.0.1:8090"}, True),
        ("", {"Host": "localhost:8090", "Origin": "http://localhost:8090"}, True),
        ("", {"Host": "[::1]:8090"}, True),
        ("", {"Host": "rebound.example:8090"}, False),
        ("", {"Host": "127.0.0.1:8090", "Origin": "https://evil.example"}, False),
        ("", {"Host": "127.0.0.1:8090", "Origin": "null"}, False),
        ("", {}, False),
        ("t" * 20, {"Host": "robot.lan:8090", "Origin": "http://robot.lan:8090"}, True),
        ("t" * 20, {"Host": "robot.lan:8090", "Origin": "http://robot.lan:8091"}, False),
    ],
)
def test_pages_from_elsewhere_are_refused(token: str, headers: dict[str, str], allowed: bool) -> None:
    assert (Gate(token).refusal(headers) == "") is allowed


def test_a_browser_shows_the_token_once_and_the_cookie_is_not_the_token() -> None:
    gate = Gate("t" * 20)
    assert gate.shown({"Authorization": "Bearer " + "u" * 20}) is None
    cookie = gate.shown({"Authorization": "Bearer " + "t" * 20})
    assert cookie is not None and "t" * 20 not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    pair = cookie.partition(";")[0]
    assert gate.knows({"Cookie": f"other=1; {pair}"}) and Gate("t" * 20).knows({"Cookie": pair})
    for cookies in ("", pair[:-1], "molmoact2_panel=", "\x00;=;;"):
        assert not gate.knows({"Cookie": cookies})
    assert not Gate("v" * 20).knows({"Cookie": pair})


# -- the server and the 3D view, with real ones -----------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.stops: list[int] = []
        self.asked: list[Any] = []
        self.there: set[int] = set()
        self.hooks = Hooks(
            self.stops.append, lambda page, asked: self.asked.append(asked), lambda page: None, self.there.add,
            self.there.discard,
        )  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def server(scene: Scene, heard: Heard) -> Iterator[PanelServer]:
    server = PanelServer("127.0.0.1", 0, Gate(""), scene.port, heard.hooks).start()
    yield server
    server.close()


def test_pages_are_told_and_heard(server: PanelServer, heard: Heard) -> None:
    with Page(server.port) as page, Page(server.port) as other:
        wait_until(lambda: server.pages() == 2, "two pages")
        server.show({"type": "view", "robots": [1]})
        server.tell({"type": "answer", "words": "only you"}, 1)
        server.picture("front", {"camera": "front"}, b"jpeg")
        for one in (page, other):
            wait_until(lambda one=one: one.view["robots"] == [1] and one.pictures, "the view")
            assert one.pictures == [({"camera": "front"}, b"jpeg")]
        page.send({"ask": "stop"})
        page.send({"ask": "arm", "robot": "/so101"})
        wait_until(lambda: heard.stops and heard.asked, "the requests")
        assert len(page.of("answer")) + len(other.of("answer")) == 1
    wait_until(lambda: not heard.there, "both to be gone")


def test_the_3d_view_is_passed_on_to_who_has_its_ticket_and_to_nobody_else(server: PanelServer) -> None:
    with Page(server.port) as page:
        wait_until(lambda: page.of("welcome"), "the welcome")
        path = page.of("welcome")[0]["scene"]
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10.0) as answer:
        assert b"hasFocus = () => true" in answer.read()
    with connect(f"ws://127.0.0.1:{server.port}{path}", subprotocols=["viser-v1.1.1"], origin="null", proxy=None) as ws:
        assert ws.subprotocol == "viser-v1.1.1" and len(ws.recv(10.0)) > 100
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{server.port}/scene/{'0' * 32}/", origin="null", proxy=None)


def test_without_the_token_there_is_a_page_to_type_it_and_nothing_else(scene: Scene, heard: Heard) -> None:
    server = PanelServer("127.0.0.1", 0, Gate("t" * 20), scene.port, heard.hooks).start()
    try:
        for path in ("/", "/panel.js", "/live", "/login", "/scene/", "/../setup.cfg"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10.0)
            assert refused.value.code == 401
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/login.js", timeout=10.0) as answer:
            assert b"Bearer" in answer.read()
        with pytest.raises(InvalidStatus):
            Page(server.port)
        cookie = Gate("t" * 20).shown({"Authorization": "Bearer " + "t" * 20})
        assert cookie is not None
        with Page(server.port, additional_headers={"Cookie": cookie.partition(";")[0]}) as page:
            wait_until(lambda: page.of("welcome"), "the welcome")
    finally:
        server.close()
        server.close()


def test_a_taken_port_is_told(server: PanelServer, heard: Heard) -> None:
    with pytest.raises(OSError, match="choose another"):
        PanelServer("127.0.0.1", server.port, Gate(""), 1, heard.hooks)


def test_a_viser_page_of_another_make_is_refused() -> None:
    with pytest.raises(ValueError, match="viser"):
        framed(b"<html></html>")


@pytest.mark.parametrize("name", sorted(EMBODIMENTS))
def test_links_stand_where_the_kinematics_have_them(name: str) -> None:
    robot = embodiment(name)
    model = LinkModel(robot_description(robot))
    assert {shape.link for shape in model.shapes} <= set(model.links) and len(model.shapes) > 5
    rng = np.random.default_rng(0)
    joints = rng.uniform(robot.limits.lower, robot.limits.upper)
    poses = model.poses(dict(zip(robot.joint_names, joints.tolist(), strict=True)))
    for chain, indices in robot.chains:
        last = chain.frames(joints[list(indices)])[-2]
        assert min(np.abs(pose - last).max() for pose in poses.values()) < 1e-9


@pytest.mark.parametrize("name", ["so101", "franka", "yam"])
def test_robots_are_drawn_and_what_is_not_finite_is_left_out(scene: Scene, name: str) -> None:
    robot = embodiment(name)
    drawn = scene.robot(f"/{name}", robot, 0, meshes=True)
    drawn.pose(np.full(robot.dof, np.nan))
    drawn.pose(np.zeros(3))
    drawn.path(tip_paths(robot, np.linspace(robot.rest_position, robot.rest_position + 0.1, 12)))
    drawn.cloud(np.array([[np.nan, 0, 0], [0, 0, 1e9]], np.float32), np.zeros((2, 3), np.uint8))
    drawn.cloud(np.zeros((50_000, 3), np.float32), np.zeros((50_000, 3), np.uint8))
    drawn.path(())


# -- which nodes ------------------------------------------------------------------------------------------------------


def test_a_panel_is_one_node_more_and_holding_makes_its_silence_a_stop(tmp_path: Any) -> None:
    options = Options(emulated=True, episodes=0, panel=True)
    plain = {spec.name: spec for spec in nodes(options)}
    assert "panel" in plain and "e_stop_heartbeat_s" not in plain["executor"].parameters
    own = tmp_path / "own.yaml"
    own.write_text("/**/panel: {ros__parameters: {hold_to_run: true}}\n")
    held = {spec.name: spec for spec in nodes(Options(emulated=True, episodes=0, panel=True, config=str(own)))}
    assert held["executor"].parameters["e_stop_heartbeat_s"] == BUTTON_SILENCE_S


def test_view_takes_namespaces_with_their_robots() -> None:
    assert robots_from("so101") == {"/so101": "so101"}
    assert robots_from("left=yam, /franka") == {"/left": "yam", "/franka": "franka"}
    for wrong in ("", "left=nothing"):
        with pytest.raises(ValueError):
            robots_from(wrong)
