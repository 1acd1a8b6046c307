"""The gate between commands and arm: what it lets through, and what it never does."""

import numpy as np
import pytest

from molmoact2_ros.drivers.gate import Command, Gate, GateConfig
from molmoact2_ros.embodiments import embodiment

MS = 1_000_000
ROBOTS = ("so101", "yam", "franka")


def gate_at(robot_name: str = "so101") -> tuple[Gate, np.ndarray]:
    robot = embodiment(robot_name)
    gate = Gate(robot)
    gate.close("connected", over=True)
    gate.measured(robot.rest_position)
    return gate, robot.rest_position.copy()


def passes(gate: Gate, positions: np.ndarray, now_ms: int, arming: str = "a", age_ms: int = 0) -> bool:
    return gate.check(Command(positions, (now_ms - age_ms) * MS, arming), now_ms * MS) is None


@pytest.mark.parametrize("robot", ROBOTS)
def test_it_opens_for_a_command_that_agrees_in_every_joint_and_for_no_other(robot: str):
    gate, rest = gate_at(robot)
    dof = gate.robot.dof
    for j in range(dof):
        limits = gate.robot.limits
        share = 0.1 * (limits.upper[j] - limits.lower[j]) if j in gate.robot.gripper_indices else 0.05
        inwards = 1.0 if rest[j] < (limits.lower[j] + limits.upper[j]) / 2.0 else -1.0
        off = rest.copy()
        off[j] += 1.02 * share * inwards
        refusal = gate.check(Command(off, 5 * MS, "a"), 5 * MS)
        assert refusal is not None and gate.robot.joint_names[j] in refusal.reason and refusal.again
        assert not gate.open
    assert passes(gate, rest, 10) and gate.open and gate.reason == ""


def test_what_it_has_closed_for_good_never_opens_it_however_near():
    gate, rest = gate_at()
    assert passes(gate, rest, 10)
    gate.close("e-stop", over=True)
    gate.measured(rest)
    for now in range(20, 2000, 10):
        assert not passes(gate, rest, now)
    assert passes(gate, rest, 2000, "b")


def test_after_a_mere_silence_the_same_arming_goes_on_from_where_the_arm_is_held():
    gate, rest = gate_at()
    assert passes(gate, rest, 10)
    gate.close("commands ceased", over=False)
    assert not passes(gate, rest, 20), "not before a reading taken since"
    sagged = rest.copy()
    sagged[1] -= 0.08
    gate.measured(sagged)
    assert not passes(gate, rest, 30)
    gate.held(rest)
    assert passes(gate, rest, 40)


def test_old_late_repeated_and_reordered_commands_are_dropped():
    gate, rest = gate_at()
    assert not passes(gate, rest, 1000, age_ms=300)
    assert not passes(gate, rest, 1000, age_ms=-300)
    assert passes(gate, rest, 1000)
    assert not passes(gate, rest, 1005, age_ms=5), "the same stamp again"
    assert not passes(gate, rest, 1010, age_ms=20), "overtaken"
    assert passes(gate, rest, 1020)


def test_between_two_commands_no_joint_moves_further_than_its_velocity_limit_allows():
    gate, rest = gate_at()
    robot = gate.robot
    assert passes(gate, rest, 0)
    allowed = robot.limits.velocity[0] * (1.2 * 0.01 + 0.05)
    step = rest.copy()
    step[0] += 1.01 * allowed
    refusal = gate.check(Command(step, 10 * MS, "a"), 10 * MS)
    assert refusal is not None and "shoulder_pan would jump" in refusal.reason
    step[0] = rest[0] + 0.99 * allowed
    assert passes(gate, step, 10)


def test_any_age_passes_where_the_check_is_off():
    robot = embodiment("so101")
    gate = Gate(robot, GateConfig(max_age_s=0.0))
    gate.measured(robot.rest_position)
    assert passes(gate, robot.rest_position, 10_000, age_ms=9_000)


def test_more_endings_than_it_remembers_do_not_grow_without_end():
    gate, rest = gate_at()
    for i in range(1000):
        gate.end(f"arming {i}", "e-stop")
    assert not passes(gate, rest, 10, "arming 999")
    assert passes(gate, rest, 20, "new")
