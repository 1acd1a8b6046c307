"""The loop around every driver: what reaches the arm, what never does, and what happens when it is lost."""

from __future__ import annotations

import numpy as np
import pytest
from pretend_arm import PretendArm

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import Health, MissingPackageError, Reading, hardware_package
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig

MS = 1_000_000


class Bench:
    """A loop on a pretended arm in a time of its own: every look at the clock takes 1 ms."""

    def __init__(self, config: LoopConfig | None = None) -> None:
        self.arm = PretendArm()
        self.now = 0
        self.readings: list[Reading] = []
        self.loop = DriverLoop(self.arm, config or LoopConfig(retry_s=0.001), self.readings.append, self.clock)

    def clock(self) -> int:
        self.now += MS
        return self.now

    def pass_ms(self, span: int) -> None:
        until = self.now + span * MS
        while self.now < until:
            self.loop.step()

    def connected(self) -> Bench:
        self.pass_ms(30)
        assert self.loop.connected
        return self


def test_readings_come_at_their_rate_and_commands_reach_the_arm():
    bench = Bench().connected()
    before = len(bench.readings)
    bench.pass_ms(1000)
    assert 80 <= len(bench.readings) - before <= 101
    target = bench.arm.position + 0.01
    assert bench.loop.command(target) == ""
    bench.pass_ms(5)
    assert np.array_equal(bench.arm.written[-1], target)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda rest: rest[:5], "expected 6 joint targets"),
        (lambda rest: np.append(rest, 0.0), "expected 6 joint targets"),
        (lambda rest: np.where(np.arange(6) == 2, np.nan, rest), "elbow_flex is nan"),
        (lambda rest: np.where(np.arange(6) == 0, np.inf, rest), "shoulder_pan is inf"),
        (lambda rest: np.where(np.arange(6) == 0, 2.2, rest), "outside its limits"),
        (lambda rest: np.where(np.arange(6) == 0, rest[0] + 0.7, rest), "shoulder_pan would jump by 0.70 rad"),
    ],
)
def test_absurd_commands_never_reach_the_arm_and_are_explained(change, hint):
    bench = Bench().connected()
    assert hint in bench.loop.command(change(bench.arm.robot.rest_position))
    bench.pass_ms(100)
    assert bench.arm.written == []
    assert bench.loop.status().level is Level.WARN and hint in bench.loop.status().message
    assert bench.loop.command(bench.arm.position) == ""
    assert bench.loop.status().level is Level.OK


def test_a_gripper_may_be_far_from_its_target_since_it_holds_something():
    bench = Bench().connected()
    target = bench.arm.position.copy()
    target[5] = 1.7
    assert bench.loop.command(target) == ""


def test_a_command_before_the_first_reading_is_refused():
    assert "no position has been measured" in Bench().loop.command(PretendArm().position)


def test_the_arm_holds_once_when_commands_cease_and_the_gripper_keeps_its_target():
    bench = Bench().connected()
    target = bench.arm.position.copy()
    target[0] += 0.1
    target[5] = 1.0
    bench.loop.command(target)
    bench.pass_ms(150)
    assert len(bench.arm.written) == 1
    bench.pass_ms(1000)
    held = bench.arm.written[1:]
    assert len(held) == 1 and bench.loop.counters.holds == 1
    assert np.array_equal(held[0][:5], bench.arm.position[:5])
    assert held[0][5] == 1.0
    bench.loop.command(target)
    bench.pass_ms(1000)
    assert bench.loop.counters.holds == 2


def test_an_e_stop_holds_every_joint_and_drops_commands_until_it_is_released():
    bench = Bench().connected()
    target = bench.arm.position.copy()
    target[5] = 1.0
    bench.loop.command(target)
    bench.pass_ms(20)
    bench.loop.e_stop(True)
    bench.pass_ms(50)
    assert np.array_equal(bench.arm.written[-1], bench.arm.position)
    count = len(bench.arm.written)
    bench.loop.command(target)
    bench.pass_ms(500)
    assert len(bench.arm.written) == count
    bench.loop.e_stop(False)
    bench.loop.command(target)
    bench.pass_ms(20)
    assert np.array_equal(bench.arm.written[-1], target)


def test_a_lost_arm_is_connected_anew_and_readings_stop_meanwhile():
    bench = Bench().connected()
    bench.arm.there = False
    bench.pass_ms(400)
    count = len(bench.readings)
    bench.pass_ms(400)
    assert not bench.loop.connected and len(bench.readings) == count
    assert bench.loop.status().level is Level.ERROR
    assert bench.loop.status().message == "no arm; plug it in"
    bench.arm.there = True
    bench.pass_ms(2000)
    assert bench.loop.connected and bench.arm.connections == 2
    assert len(bench.readings) > count


def test_a_short_silence_loses_readings_but_not_the_arm():
    bench = Bench().connected()
    bench.arm.answers = False
    bench.pass_ms(200)
    bench.arm.answers = True
    bench.pass_ms(100)
    assert bench.loop.connected and bench.arm.connections == 1
    assert bench.loop.counters.stale > 5


def test_sick_hardware_is_a_fault_that_holds_the_arm_and_passes_no_command_on():
    bench = Bench().connected()
    target = bench.arm.position + 0.05
    bench.loop.command(target)
    bench.pass_ms(20)
    bench.arm.present = Health(Level.ERROR, "elbow_flex is at 70 degrees C")
    bench.pass_ms(600)
    assert bench.loop.fault == "elbow_flex is at 70 degrees C"
    assert np.array_equal(bench.arm.written[-1][:5], bench.arm.position[:5])
    count = len(bench.arm.written)
    bench.loop.command(target)
    bench.pass_ms(100)
    assert len(bench.arm.written) == count
    bench.arm.present = Health()
    bench.pass_ms(600)
    assert bench.loop.fault == ""


def test_a_missing_hardware_package_is_one_line_with_its_install_line():
    with pytest.raises(MissingPackageError) as caught:
        hardware_package("no_such_sdk", "so101", "The SDK")
    assert str(caught.value) == "The SDK is not installed: pip install '.[so101]' in the checkout"
