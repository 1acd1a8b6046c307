"""The policy node over real ROS, in its own process, with a tiny random checkpoint.

Pins: chunks and depth grids carry the oldest stamp; a silent camera stops publishing and is named, and its return
starts it again; an empty task stops publishing; what was seen before a task message is not used after it; a
checkpoint that does not fit is refused with one line and a failing exit.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from policy_cell import START_S, Cell, arguments, settled
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.duration import Duration
from ros_process import Companion, NodeProcess, wait_until
from safetensors.torch import load_file, save_file
from small_checkpoints import ROBOT, make_checkpoint
from std_msgs.msg import String

from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.qos import LATCHED, RELIABLE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def running(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, Cell]]:
    log = tmp_path_factory.mktemp("log") / "policy.log"
    with (
        Companion() as companion,
        NodeProcess("molmoact2_ros.nodes.policy_node", arguments(checkpoint=checkpoint), log) as process,
    ):
        cell = Cell(companion)
        wait_until(lambda: "waiting" in process.output or process.popen.poll() is not None, "the node's start", START_S)
        assert process.popen.poll() is None, process.output
        yield process, cell
        assert process.interrupt() == 0, process.output


def test_nothing_is_published_before_a_task(running: tuple[NodeProcess, Cell]) -> None:
    process, cell = running
    wait_until(
        lambda: "no task yet" in str(cell.status.get("message")), lambda: f"a status that asks; {process.output}"
    )
    assert cell.chunks == []


def newest_grid(cell: Cell) -> set[int]:
    """What the grid of re-predicted cells holds that belongs to the newest chunk, or to one after it."""
    stamp = nanoseconds(cell.chunks[-1].header.stamp)
    wait_until(lambda: cell.updated and nanoseconds(cell.updated[-1].header.stamp) >= stamp, "the chunk's grid")
    return set(cell.updated[-1].data)


def test_chunk_and_depth_carry_the_oldest_observation(running: tuple[NodeProcess, Cell]) -> None:
    _, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks")
    chunk = cell.chunks[-1]
    assert nanoseconds(chunk.header.stamp) in cell.captured
    assert tuple(chunk.joint_names) == ROBOT.joint_names and len(chunk.points) == ROBOT.horizon
    times = [point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec for point in chunk.points]
    np.testing.assert_allclose(times, np.arange(1, 31) / 30.0, atol=1e-8)
    positions = np.array([point.positions for point in chunk.points])
    assert np.all(positions > ROBOT.limits.lower) and np.all(positions < ROBOT.limits.upper)
    wait_until(lambda: cell.codes and cell.updated, "depth grids")
    grid = cell.codes[-1]
    assert (grid.encoding, grid.height, grid.width, len(grid.data)) == ("mono8", 3, 3, 9)
    assert {nanoseconds(image.header.stamp) for image in cell.codes} <= {
        nanoseconds(c.header.stamp) for c in cell.chunks
    }
    assert newest_grid(cell) == {0}, "an unchanged image re-predicts no cell"


def test_the_present_task_is_there_for_whoever_joins_late(running: tuple[NodeProcess, Cell]) -> None:
    _, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks")
    found: list[String] = []
    cell.node.create_subscription(String, "policy/task", found.append, LATCHED)
    wait_until(lambda: found, "the task that the policy holds")
    assert found[-1].data == "pick up the red cube"


def test_a_task_that_is_set_as_a_parameter_is_answered_and_reaches_everybody(
    running: tuple[NodeProcess, Cell],
) -> None:
    process, cell = running
    companion = cell.companion
    robot_tasks = companion.listen(String, "task", RELIABLE)

    def set_task(text: str) -> tuple[bool, str]:
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
        request = SetParameters.Request(parameters=[ParameterMessage(name="task", value=value)])
        (result,) = companion.call(SetParameters, "policy/set_parameters", request).results
        return result.successful, result.reason

    def shown() -> str:
        answer = companion.call(GetParameters, "policy/get_parameters", GetParameters.Request(names=["task"]))
        return str(answer.values[0].string_value)

    assert set_task("put the cube on the plate") == (True, "")
    wait_until(lambda: [m.data for m in robot_tasks[-1:]] == ["put the cube on the plate"], "the task on its topic")
    wait_until(lambda: "task: put the cube on the plate" in process.output, "the node's own word")
    accepted, reason = set_task(" ")
    assert not accepted and "the task ' ' is empty" in reason
    assert shown() == "put the cube on the plate", "a refused one changes nothing"
    cell.task("stir the soup")
    wait_until(lambda: shown() == "stir the soup", "the task of somebody else in the parameter")
    assert robot_tasks[-1].data == "stir the soup", "what is shown is not said again"
    cell.task("pick up the red cube")
    settled(cell, "chunks")


def test_diagnostics_give_the_latency_by_stage(running: tuple[NodeProcess, Cell]) -> None:
    _, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks")
    wait_until(lambda: int(cell.status.get("chunks", 0)) > 0, "diagnostics with counts")
    for key in ("latency_ms", "preprocess_ms", "vision_ms", "prefill_ms", "depth_ms", "flow_ms", "input_age_ms"):
        # An image that is the last one to the bit is not encoded again, so vision may cost nothing.
        assert float(cell.status[key]) > 0.0 or key == "vision_ms", key
    assert int(cell.status["forwards"]) >= 1


def test_every_task_message_starts_anew(running: tuple[NodeProcess, Cell]) -> None:
    _, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks before")
    assert newest_grid(cell) == {0}
    sent = cell.task("pick up the red cube")
    mark = len(cell.updated)
    wait_until(lambda: any(set(image.data) == {255} for image in cell.updated[mark:]), "a frame with every cell anew")
    anew = next(image for image in cell.updated[mark:] if set(image.data) == {255})
    assert nanoseconds(anew.header.stamp) >= sent, "the first chunk of a task must not stem from before it"


def test_a_task_does_not_begin_where_the_training_never_was(running: tuple[NodeProcess, Cell]) -> None:
    """A driver that reports the jaw the wrong way round: no chunk comes, so that the executor cannot arm."""
    _, cell = running
    swapped = ROBOT.rest_position.copy()
    swapped[5] = ROBOT.limits.upper[5] - (swapped[5] - ROBOT.limits.lower[5])
    cell.position = swapped
    try:
        cell.task("pick up the red cube")  # what was read before it is not used any more
        wait_until(lambda: "polarity of the gripper" in str(cell.status.get("message")), lambda: str(cell.status))
        count = len(cell.chunks)
        wait_until(lambda: "far from the training states" in str(cell.status.get("message")), "a further status")
        assert len(cell.chunks) == count
    finally:
        cell.position = ROBOT.rest_position
    settled(cell, "chunks after the jaw is reported rightly")


def test_silent_camera_stops_publishing_and_is_named(running: tuple[NodeProcess, Cell]) -> None:
    process, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks before")
    cell.silent.add("wrist")
    try:
        wait_until(lambda: "camera 'wrist': no frame for" in str(cell.status.get("message")), lambda: str(cell.status))
        assert cell.status["level"] == b"\x02"
        count = len(cell.chunks)
        time.sleep(0.4)
        assert len(cell.chunks) == count, "chunks went on without the wrist camera"
        lines = [line for line in process.output.splitlines() if "camera 'wrist': no frame for" in line]
        assert len(lines) == 1 and "limit 0.50 s); is the cable in?" in lines[0], lines
    finally:
        cell.silent.clear()
    settled(cell, "chunks after the camera's return")
    wait_until(lambda: cell.status["level"] == b"\x00", lambda: str(cell.status))


def test_a_camera_that_its_node_found_frozen_stops_publishing_with_that_reason(
    running: tuple[NodeProcess, Cell], checkpoint: Path
) -> None:
    process, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks before")
    state = cell.node.create_publisher(DiagnosticStatus, "cameras/wrist/state", LATCHED)
    words = "camera 'wrist': frozen, the image has not changed for 1.2 s (limit 1.0 s)"
    state.publish(DiagnosticStatus(level=DiagnosticStatus.ERROR, message=words))
    wait_until(state.get_subscription_count, "the policy listens")
    assert state.wait_for_all_acked(Duration(seconds=10.0))
    cell.silent.add("wrist")
    try:
        told = "publishing stops: camera 'wrist': no frame for"
        wait_until(lambda: any(told in line and "frozen" in line for line in process.output.splitlines()), "the reason")
    finally:
        cell.silent.clear()
        cell.node.destroy_publisher(state)
    settled(cell, "chunks after the camera's return")


def test_empty_task_stops_publishing(running: tuple[NodeProcess, Cell]) -> None:
    process, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks before")
    cell.task("  ")
    wait_until(lambda: "the task '  ' is empty" in process.output, "a line about the empty task")
    count = len(cell.chunks)
    time.sleep(0.4)
    assert len(cell.chunks) <= count + 1, "at most the message on its way arrives"
    cell.task("pick up the red cube")
    settled(cell, "chunks after")


def test_spinning_thread_lives_during_inference(running: tuple[NodeProcess, Cell]) -> None:
    _, cell = running
    cell.task("pick up the red cube")
    settled(cell, "chunks")
    seen = threading.Event()
    subscription = cell.node.create_subscription(DiagnosticArray, "/diagnostics", lambda _: seen.set(), RELIABLE)
    try:
        wait_until(seen.is_set, "diagnostics while the model runs")
    finally:
        cell.node.destroy_subscription(subscription)


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"norm_tag": "''"}, "no norm tag given"),
        ({"task": "stir"}, "task is given to a node that runs: ros2 param set /so101/policy task 'stir'"),
        ({"checkpoint": "/no/such/place"}, "/no/such/place: no such directory"),
        ({"rtc.schedule": "cubic"}, "unknown rtc schedule 'cubic'; use zeros, ones, linear, exp"),
        ({"action_mode": "discrete"}, "the checkpoint's action_mode is 'continuous'; use action_mode continuous"),
    ],
)
def test_what_cannot_work_ends_the_node_with_one_line(
    checkpoint: Path, tmp_path: Path, parameters: dict[str, str], line: str
) -> None:
    with NodeProcess(
        "molmoact2_ros.nodes.policy_node", arguments(**{"checkpoint": checkpoint, **parameters}), tmp_path / "log"
    ) as process:
        assert process.popen is not None and process.popen.wait(START_S) == 1, process.output
        lines = [text for text in process.output.splitlines() if "cannot configure" in text]
        assert len(lines) == 1 and line in lines[0], process.output


def test_weights_that_an_interrupted_download_left_do_not_start_the_node(checkpoint: Path, tmp_path: Path) -> None:
    """Its warm-up found no end of the depth sequence, which is no fault of a sound checkpoint, and the node ran."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, directory / "model.safetensors")
    with NodeProcess("molmoact2_ros.nodes.policy_node", arguments(checkpoint=directory), tmp_path / "log") as process:
        assert process.popen is not None and process.popen.wait(START_S) == 1, process.output
        assert "weights hold NaN or infinity (lm_head.weight)" in process.output
