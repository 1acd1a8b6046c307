"""An arm at rest keeps the target that it rests beside, and nothing else."""

import numpy as np

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.steady_target import SETTLED_S, SteadyTarget

ROBOT = embodiment("so101")
TARGET = ROBOT.rest_position
SAG = np.array([0.0, -0.06, 0.0, 0.0, 0.0, 0.0])
SETTLED_NS = round(SETTLED_S * 1e9)


def settled(error: np.ndarray, target: np.ndarray = TARGET) -> SteadyTarget:
    steady = SteadyTarget(ROBOT)
    steady.update(target, target + error, 0)
    steady.update(target, target + error, SETTLED_NS)
    return steady


def test_a_joint_that_sags_as_before_keeps_its_target():
    measured = TARGET + SAG
    assert np.array_equal(settled(SAG).resting_target(measured), TARGET)


def test_a_joint_that_was_moved_is_held_where_it_is():
    steady, moved = settled(SAG), TARGET + SAG
    moved[2] += 0.1
    held = steady.resting_target(moved)
    assert held[2] == moved[2] and np.array_equal(np.delete(held, 2), np.delete(TARGET, 2))


def test_in_motion_every_joint_is_held_where_it_is():
    steady = SteadyTarget(ROBOT)
    for i in range(100):
        steady.update(TARGET + 0.01 * i, TARGET, i * 10_000_000)
    assert np.array_equal(steady.resting_target(TARGET), TARGET)


def test_a_large_error_of_an_arm_joint_is_no_sag_but_a_gripper_holds_what_it_holds():
    blocked = np.zeros(6)
    blocked[1] = 0.3
    assert settled(blocked).resting_target(TARGET + blocked)[1] == TARGET[1] + 0.3
    holding = np.zeros(6)
    holding[5] = 0.8
    assert settled(holding).resting_target(TARGET + holding)[5] == TARGET[5]


def test_nothing_is_known_at_first_and_after_forgetting():
    assert np.array_equal(SteadyTarget(ROBOT).resting_target(TARGET + SAG), TARGET + SAG)
    steady = settled(SAG)
    steady.forget()
    assert np.array_equal(steady.resting_target(TARGET + SAG), TARGET + SAG)
