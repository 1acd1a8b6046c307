"""The loop around every driver: what reaches the arm, what never does, and what happens when it is lost."""

from __future__ import annotations

import numpy as np
import pytest
from pretend_arm import PretendArm

from molmoact2_ros.diagnostics import Level
from molmoact2_ros.drivers.driver import DriverError, Health, MissingPackageError, Reading, StaleError, hardware_package
from molmoact2_ros.drivers.gate import Command
from molmoact2_ros.drivers.loop import DriverLoop, LoopConfig
from molmoact2_ros.drivers.parking import checked_pose
from molmoact2_ros.drivers.thread import DriverThread
from molmoact2_ros.embodiments import embodiment

MS = 1_000_000
ROBOT = embodiment("so101")


class Bench:
    """A loop on a pretended arm in a time of its own: every look at the clock takes 1 ms, and nobody really waits."""

    def __init__(self, config: LoopConfig | None = None) -> None:
        self.arm = PretendArm()
        self.now = 0
        self.readings: list[Reading] = []
        config = config or LoopConfig(retry_s=0.001)
        self.loop = DriverLoop(self.arm, config, self.readings.append, self.clock, lambda *_: None)

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

    def command(self, positions, arming: str = "first", age_ms: int = 0) -> str:
        return self.loop.command(Command(np.asarray(positions), self.now - age_ms * MS, arming), self.now)

    def moving(self, arming: str = "first") -> Bench:
        """Armed, and led 0.3 rad along by an executor that keeps its limits; the arm follows 0.1 rad behind."""
        self.connected()
        start = self.arm.position.copy()
        for i in range(31):
            goal = start.copy()
            goal[0] += 0.01 * i
            assert self.command(goal, arming) == ""
            self.pass_ms(10)
            self.arm.position[0] = start[0] + max(0.0, 0.01 * i - 0.1)
        return self


def test_readings_come_at_their_rate_and_commands_reach_the_arm():
    bench = Bench().connected()
    before = len(bench.readings)
    bench.pass_ms(1000)
    assert 80 <= len(bench.readings) - before <= 101
    target = bench.arm.position + 0.01
    assert bench.command(target) == ""
    bench.pass_ms(5)
    assert np.array_equal(bench.arm.written[-1], target)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda rest: rest[:5], "expected 6 joint targets"),
        (lambda rest: np.append(rest, 0.0), "expected 6 joint targets"),
        (lambda rest: np.where(np.arange(6) == 2, np.nan, rest), "elbow_flex is nan"),
        (lambda rest: np.where(np.arange(6) == 0, np.inf, rest), "shoulder_pan is inf"),
        (lambda rest: np.where(np.arange(6) == 0, 2.4, rest), "outside its limits"),
        (lambda rest: np.where(np.arange(6) == 0, rest[0] + 0.06, rest), "0.060 rad from where it is (limit 0.05)"),
    ],
)
def test_absurd_commands_never_reach_the_arm_and_are_explained(change, hint):
    bench = Bench().connected()
    assert hint in bench.command(change(bench.arm.robot.rest_position))
    bench.pass_ms(100)
    assert bench.arm.written == []
    assert bench.loop.status().level is Level.WARN and hint in bench.loop.status().message
    assert bench.command(bench.arm.position) == ""
    assert bench.loop.status().level is Level.OK


def test_a_gripper_on_an_object_may_be_far_from_its_target_once_it_was_led_there():
    bench = Bench().connected()
    for step in range(40):
        target = bench.arm.position.copy()
        target[5] -= 0.02 * step  # closing; the object keeps the fingers where they are
        target[5] = max(target[5], bench.arm.robot.limits.lower[5])
        assert bench.command(target) == ""
        bench.pass_ms(10)


def test_a_command_before_the_first_reading_is_refused():
    bench = Bench()
    assert "no position has been measured" in bench.command(bench.arm.position)


def test_the_arm_holds_once_when_commands_cease_and_the_gripper_keeps_its_target():
    bench = Bench().connected()
    target = bench.arm.position.copy()
    target[0] += 0.04
    target[5] += 0.1
    assert bench.command(target) == ""
    bench.pass_ms(150)
    assert len(bench.arm.written) == 1
    bench.pass_ms(1000)
    held = bench.arm.written[1:]
    assert len(held) == 1 and bench.loop.counters.holds == 1
    assert np.array_equal(held[0][:5], bench.arm.position[:5])
    assert held[0][5] == target[5]
    assert bench.command(target) == "", "after a mere silence the same arming goes on, from where the arm is held"
    bench.pass_ms(1000)
    assert bench.loop.counters.holds == 2


def test_an_e_stop_in_motion_ends_the_arming_and_its_release_moves_nothing():
    bench = Bench().moving()
    old = bench.arm.written[-1]
    bench.loop.e_stop(True)
    bench.pass_ms(50)
    assert np.array_equal(bench.arm.written[-1], bench.arm.position)
    count = len(bench.arm.written)
    assert "arm again" in bench.command(bench.arm.position)
    bench.loop.e_stop(False)
    for _ in range(30):
        assert "an e-stop stopped the arm; arm again" in bench.command(old)
        assert "arm again" in bench.command(bench.arm.position), "however near it is, the stream is over"
        bench.pass_ms(10)
    assert len(bench.arm.written) == count
    assert "arm again" in bench.loop.fault, "the executor is told to let go"
    bench.pass_ms(300)
    assert bench.loop.fault == "", "it has let go"
    assert bench.command(bench.arm.position, "second") == ""
    bench.pass_ms(20)
    assert len(bench.arm.written) == count + 1


def test_an_e_stop_between_taking_a_command_and_writing_it_still_holds():
    bench = Bench().connected()
    writing = bench.arm.write

    def stopped_meanwhile(positions) -> None:
        bench.arm.write = writing
        bench.loop.e_stop(True)
        writing(positions)

    bench.arm.write = stopped_meanwhile
    target = bench.arm.position + 0.03
    assert bench.command(target) == ""
    bench.pass_ms(50)
    assert np.array_equal(bench.arm.written[0], target)
    assert np.array_equal(bench.arm.written[-1], bench.arm.position) and len(bench.arm.written) == 2


def test_a_hold_is_written_again_until_the_hardware_confirms_it():
    bench = Bench().moving()
    writing, lost = bench.arm.write, []

    def loses_three(positions) -> None:
        if len(lost) < 3:
            lost.append(positions)
            raise StaleError("no answer")
        writing(positions)

    bench.arm.write = loses_three
    bench.arm.keeps = False  # and swallows some more without a word
    bench.loop.e_stop(True)
    bench.pass_ms(100)
    assert len(lost) == 3
    count = len(bench.arm.written)
    assert count > 33
    bench.arm.keeps = True
    bench.pass_ms(100)
    assert len(bench.arm.written) == count + 1
    assert np.array_equal(bench.arm.written[-1], bench.arm.position)


def test_what_is_moved_by_hand_stays_where_it_was_put():
    bench = Bench().moving()
    old = bench.arm.written[-1]
    bench.loop.guide(True)
    assert "guided by hand" in bench.loop.fault
    assert "guided by hand" in bench.command(old)
    bench.arm.position[1] += 0.4
    bench.pass_ms(100)
    bench.loop.guide(False)
    count = len(bench.arm.written)
    for _ in range(30):
        assert "the arm was guided by hand; arm again" in bench.command(old)
        bench.pass_ms(10)
    assert all(np.array_equal(held, bench.arm.position) for held in bench.arm.written[count:])


def test_a_lost_arm_is_connected_anew_and_readings_stop_meanwhile():
    bench = Bench().moving()
    old = bench.arm.written[-1]
    bench.arm.there = False
    bench.pass_ms(400)
    count = len(bench.readings)
    bench.pass_ms(400)
    assert not bench.loop.connected and len(bench.readings) == count
    assert bench.loop.status().level is Level.ERROR
    assert bench.loop.status().message == "no arm; plug it in"
    written = len(bench.arm.written)
    bench.arm.position[1] -= 0.3
    bench.arm.there = True
    for _ in range(200):
        bench.command(old)
        bench.pass_ms(10)
    assert bench.loop.connected and bench.arm.connections == 2
    assert len(bench.readings) > count
    assert len(bench.arm.written) == written, "not one command of the old pose reached it"


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
    target = bench.arm.position + 0.04
    assert bench.command(target) == ""
    bench.pass_ms(20)
    bench.arm.present = Health(Level.ERROR, "elbow_flex is at 70 degrees C")
    bench.pass_ms(600)
    assert bench.loop.fault == "elbow_flex is at 70 degrees C"
    assert np.array_equal(bench.arm.written[-1][:5], bench.arm.position[:5])
    count = len(bench.arm.written)
    assert "70 degrees" in bench.command(target)
    bench.pass_ms(100)
    assert len(bench.arm.written) == count
    bench.arm.present = Health()
    bench.pass_ms(600)
    assert bench.loop.fault == ""
    assert "arm again" in bench.command(target)
    assert bench.command(bench.arm.position, "second") == ""


def test_an_arm_that_is_held_again_and_again_does_not_sink():
    bench = Bench().connected()
    start = bench.arm.position.copy()
    target, sag = start.copy(), np.array([0.0, -0.06, -0.06, 0.0, 0.0, 0.0])
    bench.arm.position = start + sag
    for cycle in range(10):
        goal = target if cycle == 0 else bench.arm.written[-1]
        for _ in range(60):
            bench.command(goal, f"arming {cycle}")
            bench.pass_ms(10)
        bench.pass_ms(500)  # commands cease: the driver holds
        bench.arm.position = bench.arm.written[-1] + sag
    assert bench.loop.counters.holds == 10
    assert np.abs(bench.arm.position - start - sag).max() < 1e-9


PARKED = ROBOT.rest_position + np.array([0.3, -0.2, 0.1, 0.0, 0.0, 0.5])


def parking() -> Bench:
    return Bench(LoopConfig(retry_s=0.001, park_pose=PARKED, park_speed=0.25)).connected()


def test_an_arm_is_parked_slowly_before_it_is_let_go():
    bench = parking()
    seen, writing = [], bench.arm.write

    def follow(positions) -> None:
        assert not bench.arm.closed
        seen.append((bench.now, np.array(positions)))
        bench.arm.position = np.array(positions)
        writing(positions)

    bench.arm.write = follow
    start = bench.arm.position.copy()
    bench.loop.close()
    assert bench.arm.closed
    goal = PARKED.copy()
    goal[5] = start[5]  # a gripper keeps what it has
    assert np.allclose(bench.arm.position, goal, atol=1e-9)
    times, targets = np.array([t for t, _ in seen]) * 1e-9, np.array([target for _, target in seen])
    speeds = np.abs(np.diff(targets, axis=0)) / np.diff(times)[:, None]
    assert np.all(speeds <= 0.26 * ROBOT.limits.velocity)
    assert np.abs(targets[0] - start).max() < 0.01


@pytest.mark.parametrize("what", ["e-stop", "fault", "silence", "guided"])
def test_whatever_speaks_against_motion_ends_parking_where_the_arm_is(what: str):
    bench = parking()
    writing, count = bench.arm.write, []

    def interrupted(positions) -> None:
        writing(positions)
        count.append(positions)
        if len(count) == 20:
            if what == "e-stop":
                bench.loop.e_stop(True)
            elif what == "fault":
                bench.arm.present = Health(Level.ERROR, "hot")
            elif what == "guided":
                bench.loop.guide(True)
            else:
                bench.arm.answers = False

    bench.arm.write = interrupted
    bench.loop.close()
    assert bench.arm.closed
    assert len(count) < 75, "a fault is seen within half a second"


def test_an_arm_that_is_not_there_is_let_go_without_parking():
    bench = Bench(LoopConfig(retry_s=0.001, park_pose=PARKED))
    bench.loop.close()
    assert bench.arm.closed and not bench.arm.written


@pytest.mark.parametrize(
    ("pose", "hint"),
    [([1.0, 2.0], "must have 6 positions"), ([9.0, 0.0, 0.0, 0.0, 0.0, 0.0], "has 9 for shoulder_pan")],
)
def test_a_parking_pose_that_cannot_be_is_refused(pose: list[float], hint: str):
    with pytest.raises(ValueError, match=hint):
        checked_pose(ROBOT, pose)
    assert checked_pose(ROBOT, [0.0]) is None


def test_a_missing_hardware_package_is_one_line_with_its_install_line():
    with pytest.raises(MissingPackageError) as caught:
        hardware_package("no_such_sdk", "so101", "The SDK")
    assert str(caught.value) == "The SDK is not installed: pip install '.[so101]' in the checkout"


def test_what_the_arm_did_not_let_go_of_at_the_end_is_kept_for_the_owner():
    bench = Bench().connected()

    def close() -> None:
        raise DriverError("wrist_roll kept torque")

    bench.arm.close = close
    thread = DriverThread(bench.loop)
    thread.start()
    thread.close()
    assert (thread.kept, thread.failure, bench.loop.connected) == ("wrist_roll kept torque", None, False)
