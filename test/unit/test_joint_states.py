"""Joint states of other people's drivers: in parts, twice, unstamped, misnamed, and jumps that no joint makes."""

from __future__ import annotations

import numpy as np
import pytest
from execution_cell import ROBOT, START_NS, Cell, ramp

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.embodiments.joint_names import JointNames
from molmoact2_ros.execution.config import ExecutorConfig
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.supervisor import State

FRANKA = embodiment("franka")
STEP_NS = 33_000_000


def read(executor: Executor, count: int = 12, stamp: bool = True) -> int:
    """Arm and fingers of a Franka as two publishers; returns the time afterwards."""
    now_ns = START_NS
    for _ in range(count):
        now_ns += STEP_NS
        arm, finger = FRANKA.rest_position[:7], FRANKA.rest_position[7:]
        executor.on_joint_state(FRANKA.joint_names[:7], arm, now_ns if stamp else 0, now_ns, "a")
        executor.on_joint_state(FRANKA.joint_names[7:], finger, now_ns - 5_000_000 if stamp else 0, now_ns, "b")
    return now_ns


def test_arm_and_fingers_from_two_publishers_are_one_robot_and_a_missing_part_is_named() -> None:
    executor = Executor(FRANKA, ExecutorConfig())
    executor.configured()
    now_ns = read(executor)
    assert executor.arm(now_ns)[0] and executor.counters.joint_states_refused == 0
    alone = Executor(FRANKA, ExecutorConfig())
    alone.configured()
    alone.on_joint_state(FRANKA.joint_names[:7], FRANKA.rest_position[:7], now_ns, now_ns)
    assert "no joint state of fr3_finger_joint1 has come yet" in alone.arm(now_ns)[1]


def test_stamp_0_is_said_and_counted_and_may_be_taken_as_received() -> None:
    executor = Executor(FRANKA, ExecutorConfig())
    executor.configured()
    assert (
        "12 joint states came and none can be used: they bear stamp 0" in executor.arm(read(executor, stamp=False))[1]
    )
    taken = Executor(FRANKA, ExecutorConfig(unstamped_joint_states="receive"))
    taken.configured()
    assert taken.arm(read(taken, stamp=False))[0]


def test_two_publishers_of_the_same_joints_are_named_and_the_second_is_not_used() -> None:
    cell = Cell()
    cell.executor.joint_publishers.update(a="/so101/driver", b="/joint_state_publisher")
    for publisher, position in (("a", cell.position), ("b", np.zeros(ROBOT.dof))):
        cell.now_ns += 1_000_000
        cell.executor.on_joint_state(ROBOT.joint_names, position, cell.now_ns, cell.now_ns, publisher)
    done, message = cell.executor.arm(cell.now_ns)
    assert not done and "/so101/driver and /joint_state_publisher" in message


def test_a_jump_that_no_joint_can_make_stops_a_moving_arm_and_is_named() -> None:
    cell = Cell(noise=1e-5)
    cell.arm()
    cell.tick(3)
    cell.send(ramp(0.6))
    cell.tick(20)
    cell.position = cell.position + np.array([0.9, 0.0, 0.0, 0.0, 0.0, 0.0])
    cell.read_encoders()
    cell.now_ns += 1
    cell.tick(2)
    assert cell.executor.state is State.FAULT
    assert "shoulder_pan jumped from" in cell.executor.reason


def test_zeros_that_no_encoder_measures_do_not_arm() -> None:
    cell = Cell()
    cell.position = np.zeros(ROBOT.dof)
    cell.tick(40)
    assert "read exactly 0" in cell.executor.arm(cell.now_ns)[1]


def test_a_map_of_names_changes_prefixes_both_ways_and_refuses_what_fits_nothing() -> None:
    names = JointNames(FRANKA, ["fr3v2_*=fr3_*"])
    assert names.theirs[0] == "fr3v2_joint1" and names.ours(["fr3v2_joint1", "x"]) == ["fr3_joint1", "x"]
    assert names.ours(["fr3_joint1"]) == ["fr3_joint1 (not in joint_map)"]
    with pytest.raises(ValueError, match="is no joint of franka"):
        JointNames(FRANKA, ["a=panda_joint1"])
