"""The executor node over real ROS 2: its own process, a pretended driver in the test's.

Regressions pinned: garbage in chunks moves nothing; silence of the policy or the driver ends in a hold that says
why; an e-stop stays. All tests but the last share one executor process; each leaves it DISARMED.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticStatus
from ros_process import Companion, NodeProcess, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, RELIABLE, SENSOR

ROBOT = embodiment("so101")
START_S = 90.0
"""Importing rclpy and scipy takes 2 s of a core, which a loaded machine may not give for a long time."""


class Cell:
    """A driver whose arm soon does what it is told, and a hand on everything else that the executor hears."""

    def __init__(self, companion: Companion) -> None:
        self.companion, self.node = companion, companion.node
        self.position = self.target = ROBOT.rest_position.copy()
        self.read_s = time.monotonic()
        self.encoders_work = True
        self.policy: Callable[[], JointTrajectory] | None = None
        self.commands: list[np.ndarray] = []
        self.previews = 0
        self.states: list[DiagnosticStatus] = []
        self.lock = threading.Lock()
        node = self.node
        self.joint_states = node.create_publisher(JointState, "joint_states", SENSOR)
        self.chunks = node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)
        self.task = node.create_publisher(String, "task", LATCHED)
        self.e_stop = node.create_publisher(Bool, "e_stop", LATCHED)
        node.create_subscription(JointState, "executor/command", self._on_command, RELIABLE)
        node.create_subscription(DiagnosticStatus, "executor/state", self.states.append, LATCHED)
        node.create_timer(0.01, self._read_encoders)
        node.create_timer(0.1, self._infer)

    def _on_command(self, message: JointState) -> None:
        with self.lock:
            self.target = np.array(message.position)
            self.commands.append(self.target)

    def _read_encoders(self) -> None:
        # No faster than joints are: after a pause of this process commands of a long time come at once.
        now_s = time.monotonic()
        way = 1.2 * ROBOT.limits.velocity * (now_s - self.read_s)
        self.read_s = now_s
        with self.lock:
            self.position = self.position + np.clip(self.target - self.position, -way, way)
        if self.encoders_work:
            message = JointState(name=list(ROBOT.joint_names), position=array("d", self.position))
            message.header.stamp = self.node.get_clock().now().to_msg()
            self.joint_states.publish(message)

    def _infer(self) -> None:
        if self.policy is not None:
            self.chunks.publish(self.policy())

    def chunk(self, rows: np.ndarray, names: tuple[str, ...] = ROBOT.joint_names) -> JointTrajectory:
        message = JointTrajectory(joint_names=list(names))
        message.header.stamp = self.node.get_clock().now().to_msg()
        for i, row in enumerate(rows):
            nanoseconds = round((i + 1) / ROBOT.rate_hz * 1e9)
            due = Duration(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)
            message.points.append(JointTrajectoryPoint(positions=array("d", row), time_from_start=due))
        return message

    def rows(self, speed: float = 0.4) -> np.ndarray:
        """Rows (30, 6) from the present position on, all arm joints at `speed` rad/s."""
        out = np.tile(self.position, (ROBOT.horizon, 1))
        out[:, :5] += speed * (np.arange(ROBOT.horizon) + 1)[:, None] / ROBOT.rate_hz
        return np.clip(out, ROBOT.limits.lower, ROBOT.limits.upper)

    def begin(self) -> None:
        """The arm at its rest pose, read by the executor, which is DISARMED."""
        self.await_state("DISARMED")
        while True:  # commands of before may still be on their way
            with self.lock:
                self.position = self.target = ROBOT.rest_position.copy()
                self.commands.clear()
            published = len(self.states)
            wait_until(lambda: len(self.states) > published + 1, "the state to be published")  # noqa: B023
            if not self.commands:
                break
        wait_until(lambda: float(self.value("joint_state_age_ms") or 1e9) < 200.0, "readings to reach the executor")

    def end(self) -> None:
        """Leave the executor DISARMED, whatever the test did."""
        self.policy, self.encoders_work = None, True
        if self.state == "ESTOPPED":
            self.e_stop.publish(Bool(data=False))
            wait_until(self.reset, "the reset to be allowed")
        self.arm(False)
        self.await_state("DISARMED")

    def reset(self) -> bool:
        return bool(self.companion.call(Trigger, "executor/reset_e_stop", Trigger.Request()).success)

    # -- what the executor says -----------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self.states[-1].message if self.states else "nothing"

    def value(self, key: str) -> str:
        return next(pair.value for pair in self.states[-1].values if pair.key == key)

    def told(self) -> str:
        return f"{self.state}: {self.value('reason')}" if self.states else "nothing"

    def await_state(self, state: str, reason: str = "") -> None:
        wait_until(
            lambda: self.state == state and reason in self.value("reason"),
            lambda: f"{state} ({reason}); it says {self.told()}",
        )

    def arm(self, on: bool = True) -> SetBool.Response:
        return self.companion.call(SetBool, "executor/arm", SetBool.Request(data=on))

    def track(self, speed: float = 0.4) -> None:
        """Arm, let a policy run, and wait until the arm has moved by 0.1 rad."""
        response = self.arm()
        assert response.success, response.message
        self.policy = lambda: self.chunk(self.rows(speed))
        start = self.position.copy()
        wait_until(lambda: np.all(self.position[:5] - start[:5] > 0.1), lambda: f"motion; it says {self.told()}")
        self.await_state("TRACKING")

    def await_let_go(self) -> None:
        """Wait until nothing is commanded any more."""
        wait_until(lambda: self.value("joint_state_age_ms") and self._silent(), f"silence; it says {self.told()}")

    def _silent(self) -> bool:
        before, sent = len(self.states), len(self.commands)
        wait_until(lambda: len(self.states) >= before + 2, "two more states")
        return len(self.commands) == sent

    def await_rest(self, count: int = 20) -> np.ndarray:
        """Wait until the last `count` commands are one and the same; returns it."""
        first = len(self.commands)

        def rests() -> bool:
            with self.lock:
                last = self.commands[max(first, len(self.commands) - count) :]
            return len(last) == count and not np.ptp(np.array(last), axis=0).any()

        wait_until(rests, lambda: f"the commands to come to rest; it says {self.told()}")
        return self.commands[-1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cell, NodeProcess]]:
    # Wide enough for a loaded machine, on which this process and the executor's may wait half a second for a core.
    # Each test puts the arm back to its rest pose at once, and arms.
    patience = ("arming_steady_s:=0.0", "max_tick_gap_s:=2.0", "joint_state_timeout_s:=0.6", "realtime_priority:=10")
    arguments = ["--ros-args", "-r", "__ns:=/so101", *(word for figure in patience for word in ("-p", figure))]
    log = tmp_path_factory.mktemp("executor") / "executor.log"
    with NodeProcess("molmoact2_ros.nodes.executor_node", arguments, log) as process, Companion() as companion:
        cell = Cell(companion)
        wait_until(lambda: cell.state == "DISARMED", lambda: f"the executor; it wrote\n{process.output}", START_S)
        yield cell, process


@pytest.fixture
def executor(shared: tuple[Cell, NodeProcess]) -> NodeProcess:
    return shared[1]


@pytest.fixture
def cell(shared: tuple[Cell, NodeProcess]) -> Iterator[Cell]:
    cell, process = shared
    cell.begin()
    yield cell
    if process.popen is not None and process.popen.poll() is None:
        cell.end()


def test_disarmed_it_commands_nothing_and_armed_it_begins_where_the_arm_is(cell: Cell) -> None:
    cell.policy = lambda: cell.chunk(cell.rows())
    previewed = int(cell.value("chunks_previewed"))
    wait_until(lambda: int(cell.value("chunks_previewed")) >= previewed + 3, "chunks to be previewed")
    assert cell.commands == []
    cell.policy = None
    measured = cell.position.copy()
    assert cell.arm().success
    cell.await_state("HOLDING", "waiting for an action chunk")
    np.testing.assert_array_equal(cell.await_rest(), measured)
    np.testing.assert_array_equal(cell.commands[0], measured)


def test_it_moves_along_the_chunks_and_stops_on_disarm(cell: Cell) -> None:
    cell.track()
    response = cell.arm(False)
    assert response.success
    cell.await_state("DISARMED", "disarmed on request")
    count = len(cell.commands)
    assert np.abs(cell.commands[-1] - cell.commands[-2]).max() < 1e-3, "it ended in motion"
    cell.policy = None
    # Two more publications of the state: a tick that commanded something would have come before them.
    published = len(cell.states)
    wait_until(lambda: len(cell.states) > published + 2, "the state to be published")
    assert len(cell.commands) == count


def test_a_silent_policy_ends_in_a_hold_within_the_horizon_that_says_why(cell: Cell) -> None:
    cell.track()
    before = cell.position.copy()
    cell.policy = None
    cell.await_state("HOLDING", "policy silent for")
    held = cell.await_rest()
    horizon_s = ROBOT.horizon / ROBOT.rate_hz
    assert np.all(held[:5] - before[:5] <= 0.4 * horizon_s + 0.05)
    cell.policy = lambda: cell.chunk(cell.rows(-0.2))
    cell.await_state("TRACKING")


def test_garbage_moves_nothing_and_each_kind_is_one_clear_error(cell: Cell, executor: NodeProcess) -> None:
    cell.track()
    cell.policy = None
    cell.await_state("HOLDING", "policy silent for")
    held = cell.await_rest()
    good = cell.rows(0.1)
    nan, huge = good.copy(), good.copy()
    nan[4, 1], huge[9, 2] = np.nan, 1e6
    for rows, names, error in (
        (nan, ROBOT.joint_names, "row 4 of the action chunk has nan for shoulder_lift"),
        (huge, ROBOT.joint_names, "asks 1e+06 rad of elbow_flex"),
        (good, ("panda_joint1", *ROBOT.joint_names[1:]), "names joints ['panda_joint1'"),
        (good[:0], ROBOT.joint_names, "has 0 rows"),
    ):
        refused = int(cell.value("chunks_refused"))
        for _ in range(3):
            cell.chunks.publish(cell.chunk(rows, names))
            refused += 1
            wait_until(lambda n=refused: int(cell.value("chunks_refused")) == n, lambda: f"a refusal; {cell.told()}")
        assert error in cell.value("last_refusal")
        assert executor.output.count(error) == 1, "one error, not one a chunk"
    np.testing.assert_array_equal(cell.await_rest(), held)
    assert cell.state == "HOLDING"


def test_an_e_stop_holds_and_stays_until_reset(cell: Cell) -> None:
    cell.track()
    cell.e_stop.publish(Bool(data=True))
    cell.await_state("ESTOPPED", "e-stop pressed")
    cell.await_let_go()
    assert not cell.reset()
    sent = len(cell.commands)
    cell.e_stop.publish(Bool(data=False))
    chunks = cell.value("chunks_previewed")
    wait_until(lambda: cell.value("chunks_previewed") != chunks, "chunks that come all the same")
    assert cell.state == "ESTOPPED" and len(cell.commands) == sent, "no old pose is commanded after the release"
    response = cell.arm()
    assert not response.success and "ESTOPPED" in response.message
    wait_until(cell.reset, "the reset to be allowed")
    cell.await_state("DISARMED")
    assert cell.arm().success


def test_an_e_stop_from_a_publisher_that_latches_nothing_is_heard(cell: Cell) -> None:
    plain = cell.node.create_publisher(Bool, "e_stop", RELIABLE)
    wait_until(lambda: plain.get_subscription_count() >= 1, "the executor to be discovered")
    plain.publish(Bool(data=True))
    cell.await_state("ESTOPPED")
    cell.node.destroy_publisher(plain)


def test_a_silent_driver_ends_in_a_hold_that_says_so(cell: Cell) -> None:
    cell.track()
    cell.encoders_work = False
    cell.await_state("HOLDING", "joint_states silent for")
    cell.await_rest()
    cell.encoders_work = True
    cell.await_state("TRACKING")


def test_a_new_task_drops_the_chunks_of_the_old_one(cell: Cell) -> None:
    cell.track()
    cell.policy = None
    cell.task.publish(String(data="pick up the red cube"))
    cell.await_state("HOLDING", "new task")


def test_arming_without_a_driver_is_refused_with_the_reason(cell: Cell) -> None:
    cell.encoders_work = False
    wait_until(lambda: float(cell.value("joint_state_age_ms")) > 700.0, "the readings to be old")
    response = cell.arm()
    assert not response.success
    assert "joint" in response.message and "is the driver running?" in response.message


def test_ctrl_c_in_motion_decelerates_before_the_process_ends(cell: Cell, executor: NodeProcess) -> None:
    cell.track()
    assert executor.interrupt() == 0
    steps = np.abs(np.diff(np.array(cell.commands), axis=0)).max(axis=1)
    assert steps.max() > 2e-3 and steps[-1] < 1e-3, "it ended in motion"
