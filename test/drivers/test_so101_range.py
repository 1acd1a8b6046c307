"""An arm's own calibrated range beside the robot's limits: narrower, it is not driven into its stops; wider, it may
rest a little outside the limits and comes in by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from so101_rig import ROBOT, Rig

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.gate import Command, Gate
from molmoact2_ros.execution.executor import Executor, ExecutorConfig
from molmoact2_ros.execution.supervisor import State

LIFT = 1
LOW, HIGH = 966, 3128  # 95 degrees about tick 2047, to either side
WIDE = 739, 3355  # 115 degrees
GOAL = 42


def goal(rig: Rig) -> int:
    """What the lift's servo was told last, ticks."""
    rig.driver.read()  # commands are not answered; what is asked after one is answered after it
    return int.from_bytes(bytes(rig.bus.servos[LIFT + 1].registers[GOAL : GOAL + 2]), "little")


def calibrated(folder: Path, low: int, high: int) -> Rig:
    """An arm with this range of the lift, in its file and its servo."""
    rig = Rig(folder)
    entries = json.loads(rig.path.read_text())
    entries["shoulder_lift"] |= {"range_min": low, "range_max": high}
    rig.path.write_text(json.dumps(entries))
    registers = rig.bus.servos[LIFT + 1].registers
    registers[9:11], registers[11:13] = low.to_bytes(2, "little"), high.to_bytes(2, "little")
    return rig


class Led:
    """An arm on the bus that the executor leads through the drivers' gate, in steps of its own time."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.gate, self.executor = rig, Gate(ROBOT), Executor(ROBOT, ExecutorConfig())
        self.now_ns = 1_700_000_000_000_000_000
        self.measured: list[np.ndarray] = []
        self.executor.configured()

    def tick(self, count: int) -> None:
        for _ in range(count):
            self.now_ns += 10_000_000
            command = self.executor.tick(self.now_ns)
            if command is not None:
                refusal = self.gate.check(Command(command, self.now_ns, self.executor.arming), self.now_ns)
                assert refusal is None, refusal
                self.rig.driver.write(command)
            position = self.rig.driver.read().positions
            self.measured.append(position)
            self.gate.measured(position)
            self.executor.on_joint_state(ROBOT.joint_names, position, self.now_ns, self.now_ns)


@pytest.mark.parametrize(("degrees", "comes_in"), [(-112.0, True), (-120.0, False)])
def test_an_arm_that_rests_outside_the_limits_comes_in_or_is_refused(tmp_path: Path, degrees: float, comes_in: bool):
    rig = calibrated(tmp_path, *WIDE) if comes_in else calibrated(tmp_path, 681, 3413)
    rig.joints.position[LIFT] = np.radians(degrees)
    with rig.running():
        rig.driver.connect()
        led = Led(rig)
        led.tick(40)
        done, message = led.executor.go_to_start(led.now_ns)
        assert done is comes_in, message
        if not comes_in:
            assert "shoulder_lift is at -2.09" in message and "switch its power off" in message
            return
        led.tick(600)
        assert led.executor.state is State.HOLDING, led.executor.reason
    lift = np.array(led.measured)[:, LIFT]
    assert lift[0] < np.radians(-111.8)
    assert np.diff(lift).min() >= -0.002, "a tick of the encoder, never further out"
    assert abs(lift[-1] - ROBOT.rest_position[LIFT]) < 0.01


def test_goals_beyond_its_own_range_end_there_and_are_counted_and_told(tmp_path: Path) -> None:
    rig = calibrated(tmp_path, LOW, HIGH)
    with rig.running():
        rig.driver.connect()
        at_end = ROBOT.rest_position.copy()
        at_end[LIFT] = -np.radians(95.0)
        rig.driver.write(at_end)
        assert LOW <= goal(rig) <= LOW + 1
        assert (rig.driver.health().level, rig.driver.health().values["goals_held_at_range"]) == (Level.OK, 0)
        beyond = at_end.copy()
        for degrees, end in ((-106.0, LOW), (104.0, HIGH)):
            beyond[LIFT] = np.radians(degrees)
            assert np.all(ROBOT.beyond(beyond, 0.0) <= 0.0), "the robot's limits allow it"
            rig.driver.write(beyond)
            assert abs(goal(rig) - end) <= 1 and LOW <= goal(rig) <= HIGH
            assert rig.driver.confirms(beyond)
            assert abs(np.degrees(rig.driver.read().positions[LIFT])) < 95.3
        health = rig.driver.health()
        assert health.level is Level.WARN
        assert "shoulder_lift was sent to 104.0 degrees and is held at 95.0" in health.message
        assert "calibrate it anew" in health.message
        assert health.values["goals_held_at_range"] == 2
        assert rig.driver.health().level is Level.OK, "told once: nothing has been held since"
        wide_open = ROBOT.rest_position.copy()
        wide_open[5] = ROBOT.limits.upper[5] + 0.1
        rig.driver.write(wide_open)
        assert rig.driver.health().values["goals_held_at_range"] == 2, "grippers are lerobot's affair"
