"""The policy node with its options away from their defaults, over real ROS.

Pins: depth is refreshed as often as asked; chunks are guided by the last one, and not by one of another task; a fixed
rate asks for chunks on its beat.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from policy_cell import START_S, Cell, arguments, settled
from ros_process import Companion, NodeProcess, wait_until
from small_checkpoints import make_checkpoint

from molmoact2_ros.nodes.ros.messages import nanoseconds
from molmoact2_ros.nodes.ros.policy_parameters import PARAMETERS, inference_options
from molmoact2_ros.policy import InferenceOptions

OPTIONS = {
    "rtc.enabled": "true",
    "rtc.schedule": "exp",
    "rtc.horizon": 20,
    # The arm of this test stands still.
    "rtc.max_deviation": 10.0,
    "depth.drift_safe": "true",
    "depth.refresh_every": 3,
    "request.policy": "rate",
    "request.rate_hz": 4.0,
    "max_rate_hz": 0.0,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    log = tmp_path_factory.mktemp("log") / "policy.log"
    with (
        Companion() as companion,
        NodeProcess("molmoact2_ros.nodes.policy_node", arguments(checkpoint=checkpoint, **OPTIONS), log) as process,
    ):
        cell = Cell(companion)
        wait_until(lambda: "waiting" in process.output or process.popen.poll() is not None, "the node's start", START_S)
        assert process.popen.poll() is None, process.output
        cell.task("pick up the red cube")
        settled(cell, "chunks")
        yield cell
        assert process.interrupt() == 0, process.output


def test_every_third_call_predicts_all_depth_anew(running: Cell) -> None:
    start = len(running.updated)
    wait_until(lambda: len(running.updated) >= start + 7, "seven frames")
    anew = [set(image.data) == {255} for image in running.updated[start : start + 7]]
    beats = np.flatnonzero(anew)
    assert len(beats) >= 2 and set(np.diff(beats)) == {3}, f"all cells anew: {anew}"


def test_chunks_are_guided_by_the_last_one(running: Cell) -> None:
    wait_until(lambda: int(running.status.get("guided_rows", 0)) > 0, lambda: f"guided rows; {running.status}")
    assert int(running.status["guided_rows"]) <= 20


def test_a_fixed_rate_asks_on_its_beat(running: Cell) -> None:
    settled(running, "chunks")
    stamps = np.array([nanoseconds(chunk.header.stamp) for chunk in running.chunks]) / 1e9
    # Far more images came; a busy machine may lose beats, but never gains any.
    assert np.sum(np.diff(stamps) < 0.15) <= 1, np.diff(stamps)


def test_every_parameter_says_what_it_is() -> None:
    assert len({parameter.name for parameter in PARAMETERS}) == len(PARAMETERS)
    for parameter in PARAMETERS:
        assert parameter.description.endswith((".", "s.", "Hz.", "%.")) and len(parameter.description) > 15
        numeric = isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool)
        assert (parameter.low is not None and parameter.high is not None) == numeric, parameter.name


def test_a_switch_is_on_off_or_left_to_the_machine() -> None:
    values: dict[str, object] = {parameter.name: parameter.default for parameter in PARAMETERS}
    options = inference_options(values.__getitem__)
    assert options == InferenceOptions(), "a node without parameters does what the policy does without options"
    values.update(amx="off", cuda_graphs="on", compile=True, precision="fp16")
    options = inference_options(values.__getitem__)
    assert (options.amx, options.cuda_graphs, options.compile, options.precision) == ("off", True, True, "fp16")
    with pytest.raises(ValueError, match="cuda_graphs must be one of auto, on, off, got 'yes'"):
        inference_options({**values, "cuda_graphs": "yes"}.__getitem__)
    with pytest.raises(ValueError, match="unknown precision 'fp8'; use bf16, fp16"):
        inference_options({**values, "precision": "fp8"}.__getitem__)
