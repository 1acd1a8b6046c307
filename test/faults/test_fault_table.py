"""Faults injected into the executor node over real ROS 2: the table of `fault_table`, and processes that die or stand.

Each fault is held to its state and reason, to the largest movement after it, to the limits, and after an e-stop to
nothing but the deceleration and the hold. With MOLMOACT2_FAULT_REPORT=FILE the outcomes are written there as JSON, for
`molmoact2 bench execution --faults FILE`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_cell import ARM, PATIENCE, ROBOT, SPEED, FaultCell, nothing
from fault_table import AT_ONCE, BLIND, FAULTS, USED_UP, Fault, refuses_to_arm
from leader_faults import LEADER_FAULTS
from ros_process import Companion, NodeProcess, ros_arguments, wait_until

EXECUTOR, REPLAY = "molmoact2_ros.nodes.executor_node", "molmoact2_ros.nodes.bench.replay_node"
START_S = 90.0

# -- the run --------------------------------------------------------------------------------------------------


class Report:
    """Outcomes, in the order of the runs."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, fault: str, state: str, reason: str, movement: float | None) -> None:
        self.rows.append({"fault": fault, "state": state, "reason": reason, "movement_rad": movement, "passed": True})

    def write(self) -> None:
        path = os.environ.get("MOLMOACT2_FAULT_REPORT", "")
        if path:
            found = {"robot": ROBOT.name, "rate_hz": 100.0, "faults": self.rows}
            Path(path).write_text(json.dumps(found, indent=1))


class Setup:
    """The executor's process, which a fault may have to start anew, and the cell around it."""

    def __init__(self, folder: Path, companion: Companion) -> None:
        self.folder, self.cell, self.report = folder, FaultCell(companion), Report()
        self.started = 0
        self.process: NodeProcess | None = None

    def start(self) -> NodeProcess:
        self.started += 1
        log = self.folder / f"executor{self.started}.log"
        self.process = NodeProcess(EXECUTOR, ros_arguments(PATIENCE), log).__enter__()
        self.cell.states.clear()
        return self.process

    def replay(self, **parameters: object) -> NodeProcess:
        return NodeProcess(REPLAY, ros_arguments({"speed": SPEED, **parameters}), self.folder / "replay.log")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with Companion() as companion:
        setup = Setup(tmp_path_factory.mktemp("faults"), companion)
        process = setup.start()
        try:
            wait_until(
                lambda: setup.cell.state == "DISARMED", lambda: f"the executor; it wrote\n{process.output}", START_S
            )
            yield setup
        finally:
            if setup.process is not None:
                setup.process.interrupt()
            setup.report.write()


@pytest.fixture
def cell(setup: Setup) -> FaultCell:
    setup.cell.begin()
    return setup.cell


def movement_since(cell: FaultCell, first: int, origin: np.ndarray) -> float:
    """The furthest that an arm joint was commanded from `origin`, rad."""
    sent = cell.sent(first)
    return float(np.abs(sent - origin)[:, ARM].max()) if len(sent) else 0.0


CASES = [
    pytest.param(fault, id=fault.name, marks=() if fault.quick else pytest.mark.slow)
    for fault in (*FAULTS, *LEADER_FAULTS)
]


@pytest.mark.parametrize("fault", CASES)
def test_fault(setup: Setup, cell: FaultCell, fault: Fault) -> None:
    if fault.start == "LEADING":
        cell.hold()
    {"TRACKING": cell.track, "LEADING": cell.lead, "HOLDING": cell.hold, "DISARMED": lambda: None}[fault.start]()
    counted = {name: int(cell.value(name) or 0) for name in fault.counter.split("|") if name}
    first = len(cell.commands)
    origin = cell.sent()[-1] if first else cell.position
    fault.inject(cell)
    if fault.bound is None:
        cell.await_more(100)
    reason = cell.await_state(fault.state, fault.reason)
    movement = None
    if fault.bound is not None:
        if fault.start != "DISARMED" and fault.state != "DISARMED":
            cell.await_rest()
        movement = movement_since(cell, first, origin)
        assert movement <= fault.bound, f"moved by {movement:.3f} rad; it says {cell.told()}"
    if fault.refusal:
        assert fault.refusal in cell.value("last_refusal"), cell.told()
        reason = f"{reason} (refused: {cell.value('last_refusal')})"
    if counted:
        wait_until(
            lambda: any(int(cell.value(name)) > before for name, before in counted.items()),
            lambda: f"{fault.counter} to grow; it says {cell.told()}",
        )
    if fault.state == "DISARMED":
        sent = len(cell.commands)
        published = len(cell.states)
        wait_until(lambda: len(cell.states) > published + 2, "the state to be published")
        assert len(cell.commands) <= sent + 1, "commanded while DISARMED"
    if fault.then is not None:
        reason = fault.then(cell) or reason
    assert cell.within_limits()
    setup.report.add(fault.name, fault.state, reason, movement)


# -- processes -----------------------------------------------------------------------------------------------


def stopped_and_resumed(
    setup: Setup, cell: FaultCell, process: NodeProcess, name: str, reason: str, bound: float
) -> None:
    first, origin = len(cell.commands), cell.sent()[-1]
    process.popen.send_signal(signal.SIGSTOP)
    try:
        said = cell.await_state("HOLDING", reason)
        cell.await_rest()
        movement = movement_since(cell, first, origin)
        assert movement <= bound
    finally:
        process.popen.send_signal(signal.SIGCONT)
    cell.await_state("TRACKING", "following")
    setup.report.add(f"{name} process stopped (SIGSTOP), then resumed", "HOLDING", said, movement)


def killed(setup: Setup, cell: FaultCell, process: NodeProcess, name: str, reason: str, bound: float) -> None:
    first, origin = len(cell.commands), cell.sent()[-1]
    process.popen.kill()
    said = cell.await_state("HOLDING", reason)
    cell.await_rest()
    movement = movement_since(cell, first, origin)
    assert movement <= bound
    setup.report.add(f"{name} process killed (SIGKILL)", "HOLDING", said, movement)


@pytest.mark.slow
def test_the_policys_process_is_stopped_resumed_and_killed(setup: Setup, cell: FaultCell) -> None:
    with setup.replay(arm=False, chunk_rate_hz=10.0) as process:
        cell.hold()
        cell.await_state("TRACKING", "following", START_S)
        stopped_and_resumed(setup, cell, process, "policy", "policy silent", USED_UP)
        killed(setup, cell, process, "policy", "policy silent", USED_UP)
    assert cell.within_limits()


def test_the_drivers_process_is_stopped_resumed_and_killed(setup: Setup, cell: FaultCell) -> None:
    with setup.replay(policy=False) as process:
        wait_until(lambda: cell.node.count_publishers(f"{cell.node.get_namespace()}/joint_states") == 2, "it", START_S)
        cell.driver = nothing  # from here on the readings are those of the process, which hears the same commands
        topic = f"{cell.node.get_namespace()}/executor/command"
        wait_until(lambda: cell.node.count_subscribers(topic) == 2, "it to hear commands", START_S)
        cell.track()
        cell.await_state("TRACKING", "following")
        stopped_and_resumed(setup, cell, process, "driver", "joint_states silent", BLIND)
        killed(setup, cell, process, "driver", "joint_states silent", BLIND)
    assert cell.within_limits()


@pytest.mark.slow
def test_the_executors_process_is_stopped_and_resumed(setup: Setup, cell: FaultCell) -> None:
    cell.track()
    assert setup.process is not None
    jumps = int(cell.value("clock_jumps"))
    first, origin = len(cell.commands), cell.sent()[-1]
    setup.process.popen.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    cell.policy = nothing
    wait_until(lambda: time.monotonic() - begun > 1.5, "longer than a gap that is borne")
    setup.process.popen.send_signal(signal.SIGCONT)
    said = cell.await_state("HOLDING", "command loop stood still|policy silent|joint_states")
    cell.await_rest()
    movement = movement_since(cell, first, origin)
    assert int(cell.value("clock_jumps")) > jumps
    assert movement <= AT_ONCE
    # Nothing is made up for: the first command after the gap is as near to the last one as any.
    assert np.abs(np.diff(cell.sent(max(0, first - 1)), axis=0)).max() <= float(ROBOT.limits.velocity.max()) * 0.05
    setup.report.add("executor process stopped (SIGSTOP) for 1.5 s, then resumed", "HOLDING", said, movement)


@pytest.mark.slow
def test_an_executor_that_is_killed_comes_back_disarmed_and_an_e_stop_from_before_is_heard(
    setup: Setup, cell: FaultCell
) -> None:
    cell.track()
    assert setup.process is not None
    first, origin = len(cell.commands), cell.sent()[-1]
    setup.process.popen.kill()
    setup.process.popen.wait()
    movement = movement_since(cell, first, origin)
    sent = len(cell.commands)
    process = setup.start()
    cell.states.clear()
    wait_until(lambda: cell.state == "DISARMED", lambda: f"the executor; it wrote\n{process.output}", START_S)
    previewed = int(cell.value("chunks_previewed"))
    wait_until(lambda: int(cell.value("chunks_previewed")) > previewed + 3, lambda: f"chunks; it says {cell.told()}")
    assert len(cell.commands) <= sent + 2, "a new executor commanded something"
    setup.report.add("executor process killed (SIGKILL) and started again", "DISARMED", cell.value("reason"), movement)
    cell.press()
    cell.await_state("ESTOPPED")
    assert process.interrupt() == 0
    process = setup.start()
    wait_until(lambda: cell.state == "ESTOPPED", lambda: f"the executor; it wrote\n{process.output}", START_S)
    said = cell.value("reason")
    refuses_to_arm("ESTOPPED")(cell)
    setup.report.add("e-stop pressed before the executor starts", "ESTOPPED", said, 0.0)


def test_an_executor_that_is_terminated_in_motion_decelerates_first(setup: Setup, cell: FaultCell) -> None:
    cell.track()
    assert setup.process is not None
    first, origin = len(cell.commands), cell.sent()[-1]
    assert setup.process.interrupt(signal.SIGTERM) == 0
    sent = cell.sent(max(0, first - 5))
    steps = np.abs(np.diff(sent, axis=0)).max(axis=1)
    assert steps[-1] < 1e-3 < steps.max(), "it ended in motion"
    movement = movement_since(cell, first, origin)
    assert movement <= AT_ONCE
    setup.report.add(
        "executor process terminated (SIGTERM) in motion", "(ended)", "decelerated to rest first", movement
    )
