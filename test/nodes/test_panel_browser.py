"""The panel in a real Chromium: a person types, clicks and presses keys; pictures of it are taken on the way.

With MOLMOACT2_PANEL_PICTURES=FOLDER the pictures of docs/panel.md are written there, and with
MOLMOACT2_PANEL_REPORT=FILE what was measured between a click on STOP and the arm at rest, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from fault_cell import ROBOT, as_it_is
from panel_cell import Page, PanelCell
from rcl_interfaces.msg import SetParametersResult
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header, String
from websockets.exceptions import InvalidStatus

from molmoact2_ros.bringup.processes import graphics_installed
from molmoact2_ros.cameras.cell_cameras import CELL, calibrations_of
from molmoact2_ros.nodes.ros.messages import image_message
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR
from molmoact2_ros.nodes.ros.visual_messages import cloud_of
from molmoact2_ros.rendering.projection import camera_pose, points_of_depth

pytestmark = pytest.mark.slow

PLAYWRIGHT = Path(sys.prefix) / "browser"
SOFTWARE = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
"""Of Chromium, which these tests run as whoever runs them, and on machines without a graphics card."""
LOOK_S = 60.0
PRESSES = 10
TASK = "pick up the red cube"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.fail("there is no Chromium on this machine; install it with: sudo apt install chromium")
    sys.path.insert(0, str(PLAYWRIGHT))
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(f"playwright is not in {PLAYWRIGHT}; install it with: make vendor")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(SOFTWARE))
        yield browser
        browser.close()
    sys.path.remove(str(PLAYWRIGHT))


class Cameras:
    """Images and depth of the simulated cell with its arm where the executor sends it. Use as a context manager."""

    def __init__(self, cell: PanelCell) -> None:
        self._cell, self._ended = cell, threading.Event()
        node = cell.companion.node
        self._images = {name: node.create_publisher(Image, f"cameras/{name}/image_raw", SENSOR) for name in CAMERAS}
        self._cloud = node.create_publisher(PointCloud2, "visualization/depth_points", NEWEST)
        self._thread = threading.Thread(target=self._render, daemon=True)

    def __enter__(self) -> Cameras:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20.0)

    def _render(self) -> None:
        from molmoact2_ros.simulation.cells import make_cell

        found = make_cell("so101", seed=3)
        found.reset(0)
        calibration = calibrations_of(CELL, "so101", CAMERAS)["front"]
        while not self._ended.wait(0.4):
            arm = self._cell.cell.position.copy()
            found.place_arm(arm)
            stamp = self._cell.companion.node.get_clock().now().to_msg()
            for name, output in self._images.items():
                output.publish(image_message(found.render(name), "rgb8", Header(stamp=stamp)))
            depth = found.render_depth("front")[::6, ::6]
            rgb = found.render("front")[::6, ::6].reshape(-1, 3)
            pose = camera_pose(ROBOT, calibration, arm)
            points = points_of_depth(depth, calibration) @ pose[:3, :3].T + pose[:3, 3]
            near = np.linalg.norm(points, axis=1) < 0.8
            self._cloud.publish(cloud_of(points[near].astype(np.float32), rgb[near], Header(stamp=stamp)))
        found.close()


CAMERAS = ("front", "wrist")


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PanelCell]:
    if not graphics_installed() and not os.environ.get("MUJOCO_GL"):
        pytest.fail("the cameras of the cell need OpenGL: sudo apt install libegl1 libgl1-mesa-dri libopengl0")
    folder = tmp_path_factory.mktemp("panel")
    port = Port()
    visualizer = {"cameras": list(CAMERAS), "calibration_file": CELL}
    recorder = {"cameras": list(CAMERAS), "directory": str(folder / "bags")}
    with (
        PanelCell(folder, port=port.number) as cell,
        NodeProcess("molmoact2_ros.nodes.visualizer_node", ros_arguments(visualizer), folder / "visualizer.log"),
        NodeProcess("molmoact2_ros.nodes.recorder_node", ros_arguments(recorder), folder / "recorder.log"),
        Companion(name="policy") as policy,
        Cameras(cell),
    ):
        pretend_policy(policy)
        yield cell


class Port:
    """A free port that stays the same when the node is started anew, as a user's does."""

    def __init__(self) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            self.number = server.getsockname()[1]


def pretend_policy(policy: Companion) -> None:
    """It takes a task, and says once a second how it is."""
    told = {"task": "", "calls": 0}
    policy.node.declare_parameter("task", "")
    diagnostics = policy.node.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
    task = policy.node.create_publisher(String, "task", LATCHED)
    updated = policy.node.create_publisher(Image, "policy/depth_updated", NEWEST)

    def take(parameters: Any) -> SetParametersResult:
        told["task"] = parameters[0].value
        task.publish(String(data=told["task"]))
        return SetParametersResult(successful=True)

    def say() -> None:
        told["calls"] += 1
        latency = 95.0 + 12.0 * np.sin(told["calls"])
        values = [KeyValue(key=k, value=str(v)) for k, v in (("task", told["task"]), ("latency_ms", latency))]
        status = DiagnosticStatus(name="/so101/policy", message="publishing", values=values)
        diagnostics.publish(DiagnosticArray(status=[status]))
        cells = np.where(np.arange(100).reshape(10, 10) < 18 + 9 * np.sin(told["calls"] * 0.7), 255, 0)
        updated.publish(image_message(cells.astype(np.uint8), "mono8", Header()))

    policy.node.add_on_set_parameters_callback(take)
    policy.node.create_timer(0.5, say)


@pytest.fixture
def visitor(cell: PanelCell, chromium: Any) -> Iterator[Any]:
    """A browser's page that shows the panel at 1280 x 720, the arm DISARMED."""
    with cell.page() as page:
        cell.begin(page)
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    visitor = opened(context, cell)
    shows(visitor, "DISARMED")
    yield visitor
    context.close()


def opened(context: Any, cell: PanelCell) -> Any:
    visitor = context.new_page()
    visitor.set_default_timeout(LOOK_S * 1e3)
    visitor.goto(f"http://127.0.0.1:{cell.port}/")
    visitor.wait_for_selector("#link.go")
    return visitor


def shows(visitor: Any, state: str) -> None:
    visitor.wait_for_function("state => document.getElementById('state').textContent === state", arg=state)


def reads(visitor: Any, selector: str, words: str) -> None:
    visitor.wait_for_function(
        "([selector, words]) => document.querySelector(selector).textContent.includes(words)", arg=[selector, words]
    )


def press(visitor: Any, selector: str) -> None:
    """A click where the control is, as a hand makes it."""
    box = visitor.locator(selector).bounding_box()
    visitor.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def picture(visitor: Any, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("MOLMOACT2_PANEL_PICTURES", tmp_path))
    path = folder / f"panel_{name}.png"
    visitor.screenshot(path=path)
    assert 10_000 < path.stat().st_size < 400_000


def armed(visitor: Any) -> None:
    press(visitor, "[data-ask=arm]")
    reads(visitor, "#state", "ING")  # HOLDING, or TRACKING


def test_a_task_is_typed_the_arm_moves_is_recorded_stopped_and_labelled(
    visitor: Any, cell: PanelCell, tmp_path: Path
) -> None:
    visitor.click("#task-text")
    visitor.keyboard.type(TASK)  # with blanks: nothing can move
    visitor.keyboard.press("Enter")
    reads(visitor, "#task", TASK)
    reads(visitor, "#history", TASK)
    cell.cell.policy = as_it_is
    wait_until(lambda: "press Arm" in visitor.inner_text("#next-words"), "the advice to arm", LOOK_S)
    armed(visitor)
    shows(visitor, "TRACKING")
    visitor.wait_for_selector("#cameras img[src^='blob:']")
    press(visitor, "[data-ask=record]")
    visitor.wait_for_selector("#recording:not([hidden])")
    visitor.wait_for_timeout(3000)
    picture(visitor, "dark", tmp_path)
    press(visitor, "#stop")
    shows(visitor, "ESTOPPED")
    assert cell.cell.state == "ESTOPPED"
    reads(visitor, "#next-words", "press Reset")
    press(visitor, "[data-ask=end]")
    visitor.wait_for_selector("#recording", state="hidden")
    press(visitor, "[data-success=true]")
    reads(visitor, "#episodes", "success")
    press(visitor, "[data-ask=reset]")
    shows(visitor, "DISARMED")


def test_the_space_bar_stops_wherever_the_focus_is(visitor: Any, cell: PanelCell) -> None:
    for focus in ("#task-text", "[data-ask=arm]", "#theme"):
        armed(visitor)
        visitor.focus(focus)
        visitor.keyboard.press("Space")
        shows(visitor, "ESTOPPED")
        assert visitor.evaluate("document.documentElement.dataset.theme") == "dark"  # the button was not pressed
        press(visitor, "[data-ask=reset]")
        shows(visitor, "DISARMED")


def test_the_3d_view_shows_the_robot_and_its_space_bar_stops(visitor: Any, cell: PanelCell, tmp_path: Path) -> None:
    cell.cell.policy = as_it_is
    visitor.evaluate("localStorage.setItem('solid', 'on')")
    visitor.reload()
    visitor.wait_for_selector("#link.go")
    frame = visitor.wait_for_selector("#scene[src*='/scene/']").content_frame()
    frame.wait_for_selector("canvas", timeout=LOOK_S * 2e3)
    armed(visitor)
    visitor.wait_for_timeout(15_000)  # drawn by the processor, a picture takes a while
    # As a function: a bare expression is evaluated in the page, whose policy forbids that.
    visitor.wait_for_function("() => [...document.querySelectorAll('#cameras img')].every(image => image.naturalWidth)")
    visitor.wait_for_selector("#link.go")
    picture(visitor, "3d", tmp_path)
    press(visitor, "#scene")
    visitor.keyboard.press("Space")
    wait_until(lambda: cell.cell.state == "ESTOPPED", cell.cell.told, LOOK_S)


def test_stop_is_quick(visitor: Any, cell: PanelCell) -> None:
    """Times go to the report; the test holds only that each press stops."""
    visitor.evaluate(
        "addEventListener('pointerdown', () => window.pressed = performance.timeOrigin + performance.now(), true);"
        "new MutationObserver(() => { if (document.getElementById('state').textContent === 'ESTOPPED')"
        " window.shown = performance.timeOrigin + performance.now(); })"
        ".observe(document.getElementById('state'), {childList: true, characterData: true, subtree: true})"
    )
    said: list[float] = []
    cell.companion.node.create_subscription(
        DiagnosticStatus,
        "executor/state",
        lambda message: said.append(time.time()) if message.message == "ESTOPPED" else None,
        RELIABLE,
    )
    rows = []
    for _ in range(PRESSES):
        cell.cell.policy = as_it_is
        armed(visitor)
        shows(visitor, "TRACKING")
        start = cell.cell.position.copy()
        wait_until(lambda start=start: np.abs(cell.cell.position - start).max() > 0.05, cell.cell.told, LOOK_S)
        said.clear()
        press(visitor, "#stop")
        shows(visitor, "ESTOPPED")
        cell.cell.await_rest()
        pressed_s, shown_s = visitor.evaluate("[window.pressed, window.shown]")
        with cell.cell.lock:
            stamps = np.array([stamp for stamp, _ in cell.cell.commands])
            positions = np.array([position for _, position in cell.cell.commands])
        moving = np.abs(np.diff(positions, axis=0)).max(axis=1) > 1e-5
        at_rest = stamps[1:][moving][-1]
        rows.append([said[0] - pressed_s * 1e-3, at_rest - pressed_s * 1e-3, (shown_s - pressed_s) * 1e-3])
        press(visitor, "[data-ask=reset]")
        shows(visitor, "DISARMED")
    figures = {
        name: {"median_ms": float(np.median(values) * 1e3), "max_ms": float(np.max(values) * 1e3)}
        for name, values in zip(("executor_estopped", "arm_at_rest", "page_shows"), np.array(rows).T, strict=True)
    }
    if os.environ.get("MOLMOACT2_PANEL_REPORT"):
        Path(os.environ["MOLMOACT2_PANEL_REPORT"]).write_text(json.dumps({"presses": PRESSES, **figures}, indent=1))


def test_two_browsers_see_the_same_and_either_stops(visitor: Any, cell: PanelCell, chromium: Any) -> None:
    context = chromium.new_context()
    other = opened(context, cell)
    armed(visitor)
    reads(other, "#state", "ING")
    press(other, "#stop")
    shows(visitor, "ESTOPPED")
    context.close()


def test_a_phone_and_the_light_theme_show_stop_and_state(cell: PanelCell, chromium: Any, tmp_path: Path) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visitor = opened(context, cell)
    visitor.wait_for_selector("#cameras img[src^='blob:']")
    visitor.wait_for_timeout(1500)
    for name in ("phone_top", "phone"):
        stop, state = (visitor.locator(selector).bounding_box() for selector in ("#stop", "#state"))
        assert stop["y"] + stop["height"] <= 844 and stop["height"] >= 90 and stop["width"] > 350
        assert state["y"] >= 0 and state["y"] + state["height"] < 300
        if name == "phone_top":
            visitor.evaluate("scrollTo(0, 500)")
        else:
            visitor.evaluate("scrollTo(0, 0)")
            picture(visitor, name, tmp_path)
    context.close()
    context = chromium.new_context(viewport={"width": 1280, "height": 720})
    visitor = opened(context, cell)
    press(visitor, "#theme")
    visitor.wait_for_selector("#cameras img[src^='blob:']")
    visitor.wait_for_timeout(1500)
    picture(visitor, "light", tmp_path)
    assert visitor.evaluate("document.documentElement.scrollWidth") <= 1280
    context.close()


def test_a_page_comes_back_when_the_node_was_restarted_and_says_so_meanwhile(visitor: Any, cell: PanelCell) -> None:
    cell.panel.interrupt()
    visitor.wait_for_selector("#alarm:not([hidden])")
    reads(visitor, "#alarm", "nothing on this page stops the arm")
    press(visitor, "#stop")
    reads(visitor, "#alarm", "STOP HAS NOT BEEN SENT")
    cell.start_panel()
    visitor.wait_for_selector("#link.go")
    shows(visitor, "ESTOPPED")  # the press has not been forgotten


def test_a_wrong_token_shows_nothing(cell: PanelCell, chromium: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-the-test-0123456789\n")
    parameters = {"port": Port().number, "host": "0.0.0.0", "token_file": str(token)}
    arguments = ros_arguments(parameters, namespace="/elsewhere")
    address = f"http://127.0.0.1:{parameters['port']}/"
    with NodeProcess("molmoact2_ros.nodes.panel_node", arguments, tmp_path / "panel.log") as process:
        wait_until(lambda: "panel: http" in process.output, lambda: process.output, 120.0)
        with pytest.raises(InvalidStatus):
            Page(parameters["port"])
        context = chromium.new_context()
        visitor = context.new_page()
        visitor.goto(address)
        visitor.fill("#token", "a-token-of-somebody-else")
        visitor.keyboard.press("Enter")
        reads(visitor, "#said", "this is not the token")
        visitor.fill("#token", "a-token-of-the-test-0123456789")
        visitor.keyboard.press("Enter")
        visitor.wait_for_selector("#link.go", timeout=LOOK_S * 1e3)
        context.close()
