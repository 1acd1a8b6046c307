"""Rolling pieces as Jazzy's JointTrajectoryController plays them: no seam, no refusal, and rest when they cease.

The player here does what that controller is documented to do: a new trajectory replaces the old one, one that is over
or ends in motion is refused, time points must increase, between points it interpolates with quintic splines, and before
the first point from where it is.
"""

from __future__ import annotations

import numpy as np
import pytest

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.limits import Limiter
from molmoact2_ros.execution.motion import Motion
from molmoact2_ros.execution.rolling_piece import TAIL, RollingPiece

FR3 = embodiment("franka")
PERIOD, LEAD = 0.01, 0.01
ARM = np.arange(7)
START_NS = 1_700_000_000_000_000_000


class Player:
    """The controller: `receive` a piece, `sample` the set-point (n,) at a time."""

    def __init__(self, position: np.ndarray) -> None:
        self.state = position
        self.points: tuple[np.ndarray, ...] | None = None
        self.before_first = 0

    def receive(self, piece: RollingPiece, now_ns: int) -> None:
        times = piece.start_ns + piece.times_ns
        assert np.all(np.diff(times) > 0), "time between points is not strictly increasing"
        assert times[-1] > now_ns, "a trajectory that ends in the past is refused"
        assert not piece.velocities[-1].any(), "velocity of the last point is not zero"
        self.points = times, piece.positions.copy(), piece.velocities.copy(), piece.accelerations.copy()

    def sample(self, now_ns: int) -> np.ndarray:
        assert self.points is not None
        times, p, v, a = self.points
        if now_ns < times[0]:
            self.before_first += 1
            return self.state
        if now_ns >= times[-1]:
            self.state = p[-1]
            return self.state
        i = int(np.searchsorted(times, now_ns, side="right")) - 1
        d, x = (times[i + 1] - times[i]) * 1e-9, (now_ns - times[i]) * 1e-9
        left = p[i] + v[i] * x + a[i] * x**2 / 2
        e0 = p[i + 1] - (p[i] + v[i] * d + a[i] * d**2 / 2)
        e1 = (v[i + 1] - (v[i] + a[i] * d)) * d
        e2 = (a[i + 1] - a[i]) * d**2
        s = x / d
        bend = (10 * e0 - 4 * e1 + e2 / 2) * s**3 + (-15 * e0 + 7 * e1 - e2) * s**4 + (6 * e0 - 3 * e1 + e2 / 2) * s**5
        self.state = left + bend
        return self.state


def play(delay_s: float, jitter_s: float = 0.0, ticks: int = 150, cease: int = 10_000) -> tuple[np.ndarray, ...]:
    """Commands (n, 7) a tick, what the controller samples at 1 kHz (m, 7), and how often it was before a piece."""
    rng = np.random.default_rng(2)
    limiter = Limiter(FR3.limits, [list(range(7)), [7]], PERIOD, FR3.velocity_bounds)
    limiter.reset(FR3.rest_position)
    piece = RollingPiece(FR3.limits, ARM, PERIOD, LEAD)
    player = Player(FR3.rest_position[:7])
    commands, samples, waiting = [], [], []
    for tick in range(ticks):
        now = START_NS + tick * 10_000_000
        if tick < cease:
            t = tick * PERIOD
            wanted = FR3.rest_position + 0.3 * (1 - np.cos(2 * t))
            speed, bend = 0.6 * np.sin(2 * t), 1.2 * np.cos(2 * t)
            limiter.step(
                lambda s, p=wanted, v=speed, a=bend: Motion(p + v * s, np.full(8, v + a * s), np.full(8, a)),
                [False, True],
            )
            commands.append(limiter.motion.position[:7])
            piece.update(limiter.motion, now)
            snapshot = RollingPiece(FR3.limits, ARM, PERIOD, LEAD)
            for name in ("positions", "velocities", "accelerations", "times_ns"):
                getattr(snapshot, name)[:] = getattr(piece, name)
            snapshot.start_ns = piece.start_ns
            arrival = now + round((delay_s + rng.uniform(0, jitter_s)) * 1e9)
            waiting.append((max([arrival, *(due for due, _ in waiting)]), snapshot))  # in the order of sending
        for ms in range(10):
            moment = now + ms * 1_000_000
            for _, message in [entry for entry in waiting if entry[0] <= moment]:
                player.receive(message, moment)
            waiting = [entry for entry in waiting if entry[0] > moment]
            samples.append(player.sample(moment) if player.points is not None else player.state)
    return np.array(commands), np.array(samples), np.array(player.before_first)


@pytest.mark.parametrize(("delay_s", "jitter_s"), [(0.0, 0.0), (0.004, 0.0), (0.004, 0.006)])
def test_the_controller_plays_the_commands_without_a_seam(delay_s: float, jitter_s: float) -> None:
    commands, samples, before_first = play(delay_s, jitter_s)
    due = samples[20::10][: len(commands) - 2]  # every command is due two periods after its tick
    np.testing.assert_allclose(due, commands[: len(due)], atol=1e-9)
    limits = FR3.limits
    acceleration = np.diff(samples, n=2, axis=0) / 1e-6
    assert np.abs(acceleration / limits.acceleration[:7]).max() <= 1.01
    assert before_first <= 3, "but for the very first piece the controller is inside each piece that it gets"


def test_when_the_pieces_cease_the_arm_comes_to_rest_within_its_limits() -> None:
    commands, samples, _ = play(0.004, ticks=200, cease=60)
    assert np.abs(np.diff(commands, axis=0))[-1].max() > 1e-3, "it was moving"
    np.testing.assert_array_equal(samples[-1], samples[-100])
    assert np.abs(np.diff(samples, n=2, axis=0) / 1e-6 / FR3.limits.acceleration[:7]).max() <= 1.05


def test_a_piece_has_a_fixed_size_and_starts_no_later_than_its_tick() -> None:
    piece = RollingPiece(FR3.limits, ARM, PERIOD, LEAD)
    piece.update(Motion.at_rest(FR3.rest_position), START_NS)
    assert piece.history == 3
    assert piece.positions.shape == (3 + TAIL, 7)
    assert piece.start_ns == START_NS + 20_000_000 - 2 * 10_000_000
    np.testing.assert_array_equal(piece.positions, np.tile(FR3.rest_position[:7], (3 + TAIL, 1)))
    assert np.all(np.diff(piece.times_ns) > 0)


def test_after_a_pause_a_piece_does_not_remember_where_the_arm_was() -> None:
    piece = RollingPiece(FR3.limits, ARM, PERIOD, LEAD)
    piece.update(Motion.at_rest(FR3.rest_position), START_NS)
    piece.update(Motion.at_rest(FR3.rest_position + 0.3), START_NS + 5_000_000_000)
    np.testing.assert_array_equal(piece.positions, np.tile(FR3.rest_position[:7] + 0.3, (3 + TAIL, 1)))
