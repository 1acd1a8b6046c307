"""A person at an emulated leader arm, over real ROS: lerobot's own leader on its bus, the teleop node and the executor
as processes, an arm and a policy in the test's. Nobody's motion has a jump, and a leader that is lost leaves the arm
where it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fault_cell import ARM, PATIENCE, ROBOT, FaultCell, as_it_is
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from sensor_msgs.msg import JointState
from teleop_cell import Person, TeleopCell, teleop_process

from molmoact2_ros.nodes.ros.qos import SENSOR

EXECUTOR = "molmoact2_ros.nodes.executor_node"
START_S = 90.0


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with Person(tmp_path_factory.mktemp("leader")) as person:
        yield person


@pytest.fixture(scope="module")
def teleop(tmp_path_factory: pytest.TempPathFactory, person: Person) -> Iterator[TeleopCell]:
    folder = tmp_path_factory.mktemp("logs")
    parameters = {**PATIENCE, "leader_timeout_s": 0.5}
    with (
        Companion() as companion,
        NodeProcess(EXECUTOR, ros_arguments(parameters), folder / "executor.log") as executor,
        teleop_process(folder, person) as node,
    ):
        teleop = TeleopCell(FaultCell(companion))
        wait_until(
            lambda: teleop.cell.state == "DISARMED", lambda: f"the executor; it wrote\n{executor.output}", START_S
        )
        wait_until(lambda: teleop.leads, lambda: f"the leader; it wrote\n{node.output}", START_S)
        yield teleop


@pytest.fixture
def cell(teleop: TeleopCell) -> FaultCell:
    teleop.cell.begin()
    teleop.driving.clear()
    return teleop.cell


def test_a_correction_from_policy_to_person_and_back_without_a_jump(
    teleop: TeleopCell, cell: FaultCell, person: Person
) -> None:
    for away in (0.3, -0.2):
        person.wants = ROBOT.rest_position + away * np.array([1, 1, 1, 1, 1, 0])
        cell.track() if cell.state == "DISARMED" else cell.await_state("TRACKING", "following the policy")
        teleop.take_over()
        accepted, first = cell.value("chunks_accepted"), cell.sent()[-1]
        person.sway(2.0)
        assert np.abs(cell.sent()[-150:] - first)[:, ARM].max() > 0.1, "the arm did not follow"
        assert cell.value("chunks_accepted") == accepted, "a chunk was followed while the person had the arm"
        teleop.give_back()
        cell.await_state("TRACKING", "following the policy")
        wait_until(lambda: teleop.driving[-1][1] == "policy", lambda: f"the policy; {teleop.driving[-1]}")
    assert cell.within_limits()
    # Who drove is said for every command, by its stamp: that is how corrections are told apart later.
    commanded = {round(stamp * 1e3) for stamp, _ in cell.commands}
    said = {round(stamp * 1e3): who for stamp, who in teleop.driving}
    assert len(commanded & set(said)) > 0.9 * len(commanded)
    assert {"policy", "teleop", "nobody"} == set(said.values())


def test_a_leader_that_is_unplugged_in_motion_leaves_the_arm_holding_until_somebody_takes_over_anew(
    teleop: TeleopCell, cell: FaultCell, person: Person
) -> None:
    cell.hold()
    cell.policy = as_it_is
    teleop.take_over()
    person.sway(1.0)
    person.rig.bus.unplug()
    try:
        reason = cell.await_state("HOLDING", "newest reading is")
        at = cell.await_rest()
        assert teleop.cell.value("handover") == "teleop: holding" and "cable" in reason
        cell.await_more(60)
        assert np.array_equal(cell.sent()[-1], at), "something moved the arm"
    finally:
        person.rig.bus.plug()
    assert not teleop.call("take_over").success
    teleop.take_over()
    assert cell.within_limits()


def test_an_e_stop_while_the_leader_drives_beats_it(teleop: TeleopCell, cell: FaultCell, person: Person) -> None:
    cell.hold()
    teleop.take_over()
    person.sway(0.6)
    cell.press()
    cell.await_state("ESTOPPED")
    cell.await_rest()
    sent = len(cell.commands)
    person.sway(0.6)
    assert len(cell.commands) == sent and not teleop.call("take_over").success
    cell.press(False)
    assert cell.reset().success
    assert teleop.cell.value("handover") == "policy"


def test_two_leaders_at_once_leave_the_arm_holding(teleop: TeleopCell, cell: FaultCell) -> None:
    cell.hold()
    teleop.take_over()
    other = cell.node.create_publisher(JointState, "teleop/command", SENSOR)

    def speak() -> None:
        message = JointState(name=list(ROBOT.joint_names), position=ROBOT.rest_position.tolist())
        message.header.stamp = cell.node.get_clock().now().to_msg()
        other.publish(message)

    cell.intruders.append((cell.node.create_timer(0.02, speak), other))
    reason = cell.await_state("HOLDING", "leaders speak at once")
    assert "end all but one" in reason
    cell.await_rest()
    assert "leaders speak at once" in teleop.call("take_over").message


@pytest.mark.slow
def test_ten_handovers_over_ros_without_a_jump(teleop: TeleopCell, cell: FaultCell, person: Person) -> None:
    rng = np.random.default_rng(3)
    cell.track()
    for _ in range(10):
        person.wants = cell.sent()[-1] + np.append(rng.uniform(-0.4, 0.4, 5), 0.0)
        cell.await_state("TRACKING", "following the policy")
        teleop.take_over()
        person.sway(float(rng.uniform(0.8, 1.5)), 0.15)
        teleop.give_back()
    cell.await_state("TRACKING", "following the policy")
    assert cell.within_limits()
