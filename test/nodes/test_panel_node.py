"""The panel's node over real ROS and a real websocket: what a page asks is done, refused or stopped as by anybody."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from fault_cell import ROBOT, as_it_is
from panel_cell import Page, PanelCell
from rcl_interfaces.msg import SetParametersResult
from ros_process import Companion, wait_until
from sensor_msgs.msg import Image, JointState, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.nodes.ros.messages import image_message
from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR
from molmoact2_ros.nodes.ros.visual_messages import cloud_of


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelCell]:
    with PanelCell(tmp_path_factory.mktemp("panel"), hold_to_run=True, hold_timeout_s=3.0) as cell:
        yield cell


@pytest.fixture
def page(cell: PanelCell) -> Iterator[Page]:
    with cell.page() as page:
        cell.begin(page)
        yield page


def test_it_serves_its_page_and_the_3d_view(cell: PanelCell, page: Page) -> None:
    wait_until(lambda: page.of("welcome"), "the welcome")
    for path, part in (("/", "STOP"), ("/panel.js", "sendStop"), (page.of("welcome")[0]["scene"], "Viser")):
        with urllib.request.urlopen(f"http://127.0.0.1:{cell.port}{path}", timeout=10.0) as answer:
            assert part in answer.read().decode(errors="replace")


def test_it_arms_moves_and_stops_in_motion(cell: PanelCell, page: Page) -> None:
    assert page.ask("arm")[0]
    page.shows("HOLDING")
    cell.cell.policy = as_it_is
    page.shows("TRACKING")
    page.stop()
    robot = page.shows("ESTOPPED")
    assert cell.cell.state == "ESTOPPED"
    cell.cell.await_rest()
    wait_until(lambda: page.robot["stops"] == ["this panel"], lambda: f"who presses; {page.robot}")
    assert "press Reset" in robot["next"]
    assert page.ask("arm")[0] is False
    assert cell.cell.within_limits()
    assert page.ask("reset")[0]
    page.shows("DISARMED")


def test_a_stop_passes_a_hung_policy(cell: PanelCell, page: Page) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(parameters: object) -> SetParametersResult:
        asked.set()
        go_on.wait(30.0)
        return SetParametersResult(successful=True)

    with Companion(name="policy") as policy:
        policy.node.declare_parameter("task", "")
        policy.node.add_on_set_parameters_callback(hang)
        wait_until(lambda: not page.robot["buttons"]["task"], "the policy's service", 20.0)
        assert page.ask("arm")[0]
        page.shows("HOLDING")
        page.send({"ask": "task", "robot": "/so101", "text": "pick it up"})
        wait_until(asked.is_set, "the request")
        page.stop()
        page.shows("ESTOPPED")
        assert not [answer for answer in page.of("answer") if answer["ask"] == "task"]
        go_on.set()


def test_what_nobody_answers_is_refused_in_words(cell: PanelCell, page: Page) -> None:
    assert page.ask("record") == (False, "/so101/recorder/start is not there (yet)")
    assert page.ask("task", text="pick it up") == (False, "/so101/policy/set_parameters is not there (yet)")
    assert "not there" in page.robot["buttons"]["record"]


def test_what_is_no_request_changes_nothing(cell: PanelCell, page: Page) -> None:
    bad = ("nonsense", "[]", "{}", '{"ask": "fly"}', '{"ask": ["arm"]}', "[" * 5000, "x" * 20_000,
           '{"ask": "arm", "robot": "/other"}', '{"ask": "task", "robot": "/so101", "text": 3}')  # fmt: skip
    for text in bad:
        page.send(text)
    wait_until(lambda: len(page.of("refused")) >= len(bad), lambda: f"refusals; {page.of('refused')}")
    assert page.ask("disarm")[0]
    assert page.robot["state"] == "DISARMED"


def test_two_pages_see_the_same_and_each_stops(cell: PanelCell, page: Page) -> None:
    with cell.page() as other:
        assert page.ask("arm")[0]
        other.shows("HOLDING")
        other.stop()
        page.shows("ESTOPPED")
        assert not other.of("answer")


def test_a_browser_that_is_lost_stops_the_arm_that_it_armed(cell: PanelCell, page: Page) -> None:
    with cell.page() as holder:
        holder.shows("DISARMED")
        assert holder.ask("arm")[0]
        page.shows("HOLDING")
    assert "e-stop" in page.shows("ESTOPPED")["reason"]
    assert "the browser that armed is lost" in cell.panel.output


def test_a_browser_that_falls_silent_is_lost(cell: PanelCell, page: Page) -> None:
    assert page.ask("arm")[0]
    page.shows("HOLDING")
    page.speaks = False
    page.shows("ESTOPPED")
    page.speaks = True


def test_images_come_with_overlays_where_there_are_any_and_else_without(cell: PanelCell, page: Page) -> None:
    node = cell.companion.node
    picture = np.full((48, 64, 3), 90, dtype=np.uint8)
    raw = node.create_publisher(Image, "cameras/front/image_raw", SENSOR)
    drawn = node.create_publisher(Image, "visualization/overlay/front", NEWEST)
    outputs = [raw, drawn]

    def publish() -> None:
        for output in tuple(outputs):
            output.publish(image_message(picture, "rgb8", Header()))

    wait_until(lambda: any(header["overlay"] for header, _ in page.pictures), "an overlay", 20.0, publish)
    assert page.pictures[-1][1].startswith(b"\xff\xd8")
    node.destroy_publisher(outputs.pop())
    wait_until(lambda: not page.pictures[-1][0]["overlay"], "the camera's own", 20.0, publish)
    wait_until(lambda: page.robot["cameras"] == {"front": False}, lambda: f"the camera; {page.robot['cameras']}")
    node.destroy_publisher(raw)


def test_garbage_in_topics_is_told_and_ends_nothing(cell: PanelCell, page: Page) -> None:
    node = cell.companion.node
    nan = float("nan")
    chunks = [
        JointTrajectory(),
        JointTrajectory(joint_names=["elbow"], points=[JointTrajectoryPoint(positions=[nan])]),
        JointTrajectory(
            joint_names=list(ROBOT.joint_names), points=[JointTrajectoryPoint(positions=[nan] * ROBOT.dof)]
        ),
    ]
    cloud = cloud_of(np.array([[nan, 0, 0], [0.1, 0, 0.1]], np.float32), None, Header())
    broken = cloud_of(np.zeros((4, 3), np.float32), None, Header())
    broken.width = 4000
    outputs = [
        (node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST), chunks),
        (node.create_publisher(JointState, "joint_states", SENSOR), [JointState(name=["elbow"], position=[nan])]),
        (node.create_publisher(PointCloud2, "visualization/depth_points", SENSOR), [cloud, PointCloud2(), broken]),
        (node.create_publisher(Image, "policy/depth_updated", NEWEST), [Image(encoding="rgb8", height=3, width=2)]),
        (node.create_publisher(Image, "cameras/odd/image_raw", SENSOR), [Image(encoding="what", height=3, width=2)]),
    ]

    def publish() -> None:
        for publisher, messages in outputs:
            for message in messages:
                publisher.publish(message)

    def told() -> bool:
        words = " ".join(trouble["words"] for trouble in page.robot["troubles"])
        return all(part in words for part in ("depth cloud", "updated cells", "camera 'odd'"))

    wait_until(told, lambda: f"what is wrong; {page.robot['troubles']}", 20.0, publish)
    assert cell.panel.popen is not None and cell.panel.popen.poll() is None
    assert page.ask("disarm")[0]
    for publisher, _ in outputs:
        node.destroy_publisher(publisher)


def test_episodes_are_listed_as_the_recorder_says(cell: PanelCell, page: Page) -> None:
    episode = {"episode": 4, "task": "pick it up", "outcome": "success", "length_s": 3.21, "verdict": ["front: 9 s"]}

    def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = True, json.dumps([episode])
        return response

    service = cell.companion.node.create_service(Trigger, "recorder/list", answer)
    row = {"number": 4, "task": "pick it up", "outcome": "success", "length": "3.2 s", "verdict": ["front: 9 s"]}
    wait_until(lambda: page.robot["episodes"] == [row], lambda: f"the list; {page.robot['episodes']}", 20.0)
    cell.companion.node.destroy_service(service)


@pytest.mark.slow
def test_a_panel_that_ends_takes_no_press_back(cell: PanelCell) -> None:
    with cell.page() as page:
        cell.begin(page)
        assert page.ask("arm")[0]
        page.stop()
        page.shows("ESTOPPED")
    cell.panel.interrupt()
    assert cell.cell.state == "ESTOPPED"
    cell.start_panel()
    with cell.page() as page:
        page.shows("ESTOPPED", 30.0)
        wait_until(lambda: page.ask("reset")[0], lambda: f"a reset; {page.robot}", 20.0)
        page.shows("DISARMED")
