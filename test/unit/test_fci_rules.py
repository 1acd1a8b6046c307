"""The emulated control box is driven directly, by its own protocol: each way to break its rules is its own reflex."""

from __future__ import annotations

import os
import socket
import struct

import numpy as np
import pytest

from molmoact2_ros.embodiments.franka_droid import FER_ARM, FR3_ARM, FRANKA
from molmoact2_ros.simulation.emulators.fci import ControlBox
from molmoact2_ros.simulation.emulators.fci_link import Fault, FciLink
from molmoact2_ros.simulation.emulators.fci_rules import STEP_S, MotionRules, velocity_limits
from molmoact2_ros.simulation.emulators.fci_wire import COMMAND, ERRORS, HEADER, ROBOT_PORT, STATE, Mode

START = FRANKA.rest_position[:7]


class Client:
    """A client without libfranka, in the box's own thread: a step of the box, a state, a command."""

    def __init__(self, start: np.ndarray = START) -> None:
        name = f"test_rules_{os.getpid()}"
        self.link = FciLink(name, create=True)
        self.link.positions[:7] = self.link.targets[:7] = start
        address = f"127.{60 + os.getpid() % 60}.{os.getpid() // 60 % 250}.9"
        self.box = ControlBox(address, self.link, patience_s=0.0)
        self.tcp = socket.create_connection((address, ROBOT_PORT))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("", 0))
        self.udp.setblocking(False)
        self.tcp.settimeout(5.0)
        self.to = self.box.udp.getsockname()
        self.ask(0, struct.pack("<HH", 10, self.udp.getsockname()[1]))
        self.tick = 0

    def ask(self, command: int, payload: bytes) -> int:
        """Send a command of TCP; returns the status of its answer."""
        self.tcp.sendall(HEADER.pack(command, 7, HEADER.size + len(payload)) + payload)
        self.box.step()
        return self.answer()

    def answer(self) -> int:
        """The status of the next answer of TCP."""
        size = HEADER.unpack(self.tcp.recv(HEADER.size))[2]
        return self.tcp.recv(size - HEADER.size)[0]

    def begin(self) -> None:
        """Start a motion by joint positions."""
        assert self.ask(1, struct.pack("<II", 1, 0) + bytes(64)) == 1
        self.state()

    def state(self) -> tuple:
        """The newest state."""
        state = ()
        while True:
            try:
                state = STATE.unpack(self.udp.recv(4096))
            except BlockingIOError:
                break
        if state:
            self.tick = state[0]
        return state

    def command(self, position: np.ndarray) -> None:
        """Answer the newest state, and let the box take its step."""
        values = [0.0] * 38
        values[:7] = position.tolist()
        self.udp.sendto(COMMAND.pack(self.tick, *values, False, False, *[0.0] * 7, False), self.to)
        self.box.step()
        self.state()

    def miss(self, count: int) -> None:
        """Leave so many states without an answer."""
        for _ in range(count):
            self.box.step()
            self.state()

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()
        self.box.close()
        self.link.close()


@pytest.fixture
def client():
    one = Client()
    yield one
    one.close()


def smooth(seconds: float, distance: float) -> np.ndarray:
    """Way (n,) from 0 to `distance` with rest at both ends, one value a millisecond."""
    share = np.arange(1, round(seconds / STEP_S) + 1) * STEP_S / seconds
    return distance * (10 * share**3 - 15 * share**4 + 6 * share**5)


def reflex(client: Client) -> str:
    return client.box.error if client.box.mode is Mode.REFLEX else ""


def test_a_smooth_motion_is_followed_and_its_figures_are_seen(client: Client):
    client.begin()
    for way in smooth(0.5, 0.1):
        client.command(START + way)
    assert reflex(client) == ""
    assert np.allclose(client.link.targets[:7], START + 0.1)
    share, bend, jerk, commands, missed, longest, waits = client.link.seen
    assert commands == 500 and missed == longest == waits == 0
    assert 0.1 < share < 0.2 and 2.0 < bend < 3.0 and 40.0 < jerk < 5000.0


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (0.002, "joint_position_motion_generator_start_pose_invalid"),
        (0.9e-3, "joint_motion_generator_velocity_discontinuity"),
        (0.9e-5, "joint_motion_generator_acceleration_discontinuity"),
        (0.9 * 5e-6, ""),
    ],
)
def test_a_first_command_away_from_where_the_robot_stands_is_refused(client: Client, first: float, error: str):
    client.begin()
    client.command(START + first)
    assert reflex(client) == error
    assert not error or client.link.reflexes[ERRORS[error]] == 1
    assert not error or client.answer() == 8  # the motion was aborted by reflex


def test_an_acceleration_or_a_jerk_too_much_is_a_discontinuity_of_its_own(client: Client):
    client.begin()
    at, speed, bend = START.copy(), 0.0, 0.0
    while reflex(client) == "":  # 4900 rad/s3 until 10 rad/s2 are passed
        bend += 4900.0 * STEP_S
        speed += bend * STEP_S
        at = at + speed * STEP_S
        client.command(at)
    assert reflex(client) == "joint_motion_generator_velocity_discontinuity"
    assert 9.0 < client.link.seen[1] <= 10.0


def test_too_fast_is_a_reflex_of_its_own():
    rules = MotionRules(FR3_ARM, START)
    error, bend, speed = "", 0.0, np.zeros(7)
    while not error:
        bend = min(bend + 4.0, 9.0)
        speed = speed + bend * STEP_S * np.eye(7)[0]
        error = rules.take(rules.position + speed * STEP_S)
    assert error == "joint_motion_generator_velocity_limits_violation"
    assert abs(speed[0] - FR3_ARM.velocity[0]) < 0.02


def test_near_the_end_of_a_joint_less_speed_is_allowed_and_beyond_it_nothing():
    near = START.copy()
    near[0] = FR3_ARM.upper[0] - 0.2
    low, high = velocity_limits(FR3_ARM, near)
    assert high[0] == pytest.approx(np.sqrt(2 * 6.0 * 0.2) - 0.6599) and low[0] == -FR3_ARM.velocity[0]
    assert velocity_limits(FER_ARM, near)[1][0] == FER_ARM.velocity[0]
    for arm, error in (
        (FR3_ARM, "joint_motion_generator_velocity_limits_violation"),
        (FER_ARM, "joint_motion_generator_position_limits_violation"),
    ):
        start = np.clip(START, arm.lower, arm.upper)
        start[0] = arm.upper[0] - 0.05
        rules = MotionRules(arm, start)
        found = [rules.take(start + way * np.eye(7)[0]) for way in smooth(1.0, 0.08)]
        assert next(filter(None, found)) == error
    beyond = MotionRules(FR3_ARM, FR3_ARM.upper - 1e-9)
    assert beyond.take(FR3_ARM.upper + 1e-9) == "joint_motion_generator_position_limits_violation"


def test_nineteen_missing_packets_are_ridden_out_at_the_last_acceleration_and_the_twentieth_stops(client: Client):
    client.begin()
    way = smooth(1.0, 0.2)
    for at in way[:250]:
        client.command(START + at)
    rules = client.box.rules
    speed, bend = rules.velocity[0], rules.acceleration[0]
    before = rules.position[0]
    client.miss(19)
    assert reflex(client) == "" and rules.missed == rules.longest == 19
    assert rules.velocity[0] == pytest.approx(speed + 19 * bend * STEP_S)
    assert rules.position[0] == pytest.approx(before + 19 * speed * STEP_S + 190 * bend * STEP_S**2)
    client.command(rules.position + STEP_S * (rules.velocity + STEP_S * rules.acceleration))
    assert reflex(client) == "" and rules.in_a_row == 0
    client.miss(20)
    assert reflex(client) == "communication_constraints_violation" and client.answer() == 8
    client.miss(300)
    assert rules.rests and np.allclose(client.link.targets[:7], rules.position), "the box brakes by itself"


def test_going_on_with_ones_own_curve_after_a_lost_packet_is_a_discontinuity(client: Client):
    """Why the driver goes on from what the box says that it wants, not from what it sent last."""
    client.begin()
    way = smooth(0.3, 0.3)
    for at in way[:40]:
        client.command(START + at)
    client.miss(3)
    client.command(START + way[40])
    assert reflex(client) == "joint_motion_generator_velocity_discontinuity"


def test_a_command_that_answers_an_old_state_has_come_too_late(client: Client):
    client.begin()
    client.command(START)
    old = client.tick
    client.miss(1)
    client.tick = old
    client.command(START)
    assert client.box.rules.missed == 2


@pytest.mark.parametrize(
    ("fault", "mode", "status"),
    [(Fault.USER_STOP, Mode.USER_STOPPED, 4), (Fault.GUIDING, Mode.GUIDING, 5), (Fault.REFUSED, Mode.IDLE, 5)],
)
def test_a_robot_that_is_stopped_guided_or_busy_takes_no_motion(client: Client, fault, mode, status):
    client.link.fault = fault, 0.0
    client.box.step()
    assert client.box.mode is mode
    assert client.ask(1, struct.pack("<II", 1, 0) + bytes(64)) == status
    client.link.fault = Fault.NONE, 0.0
    client.box.step()
    client.begin()


def test_a_reflex_is_recovered_from_where_the_robot_has_stopped(client: Client):
    client.begin()
    for at in smooth(0.5, 0.2)[:250]:
        client.command(START + at)
    client.link.fault = Fault.REFLEX, 0.0
    client.miss(1)
    assert reflex(client) == "joint_reflex" and client.answer() == 8
    client.miss(400)
    assert client.ask(10, b"") == 2
    client.link.fault = Fault.NONE, 0.0
    assert client.ask(10, b"") == 0 and client.box.mode is Mode.IDLE
    client.begin()
    client.command(client.box.rules.position)
    assert reflex(client) == ""
