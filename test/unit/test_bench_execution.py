"""The execution benchmark: the streams, what is measured, and lerobot's players as they really are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from molmoact2_ros.benchmarking.execution.follower import follow
from molmoact2_ros.benchmarking.execution.measures import differences, measures_of
from molmoact2_ros.benchmarking.execution.players import OURS, OurPlayer, Replay, play
from molmoact2_ros.benchmarking.execution.report import FAULTS, LOOP, TICK, assemble, fault_section
from molmoact2_ros.benchmarking.execution.streams import DELAYS, Link, Stream, recorded, save, synthetic
from molmoact2_ros.embodiments import embodiment

SO101 = embodiment("so101")


def ours(stream: Stream, link: Link, multiple: int = 3) -> Replay:
    player = OurPlayer(stream.robot, stream.rows[0, 0], stream.rate_hz * multiple)
    return play(player, stream, link, multiple, seed=1)


class Plays:
    """A player that is told what to command."""

    name = "script"
    stalled = False

    def __init__(self, commands: np.ndarray, seam: int) -> None:
        self._commands, self._seam = commands, seam
        self.began = False

    def wants(self, now_s):
        return True

    def ask(self, now_s):
        return None

    def receive(self, rows, captured_s, asked, now_s):
        return True

    def lose(self, asked):
        pass

    def step(self, tick, now_s):
        self.began = tick in (1, self._seam)
        return self._commands[tick]


def test_the_recording_is_of_the_cells_policy_and_small() -> None:
    streams = recorded()
    assert len(streams) == 3
    for stream in streams:
        assert stream.robot is SO101 and stream.rows.shape[1:] == (30, 6) and len(stream.rows) > 100
        assert np.all(stream.rows >= SO101.limits.lower - 0.05) and np.all(stream.rows <= SO101.limits.upper + 0.05)


def test_a_recording_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    rows = synthetic(SO101, "steady", 1.0, 3).rows
    save(tmp_path / "chunks.npz", SO101, [rows, rows[:5]])
    first, second = recorded(tmp_path / "chunks.npz")
    np.testing.assert_allclose(first.rows, rows, atol=0.6e-4)
    assert len(second.rows) == 5


def test_a_step_at_a_seam_is_measured_as_what_it_is() -> None:
    stream = synthetic(SO101, "steady", 2.0, 1)
    commands = np.tile(stream.rows[0, 0], (1000, 1))
    commands[100:, 1] += 0.01
    found = measures_of(play(Plays(commands, 100), stream, DELAYS[0], 3, 1))
    assert found.seams == 1
    assert found.step == pytest.approx(0.01)
    assert found.velocity == pytest.approx(0.01 * 90)
    assert found.jerk == pytest.approx(2 * 0.01 * 90**3)
    assert found.violations == 3  # acceleration and jerk of a step, forth and back


@pytest.mark.parametrize("late_s", [0.0, 0.12])
@pytest.mark.parametrize("name", ["so101", "franka", "yam"])
def test_the_lag_of_a_player_without_opinions_is_how_late_it_is(name: str, late_s: float) -> None:
    """Opinions grow along a chunk: who evens them out is nearer to an earlier part of it, and yet not behind."""
    robot, found = embodiment(name), []
    for seed in (1, 2, 3):
        stream, plain = (synthetic(robot, "undecided", 10.0, seed, opinion) for opinion in (1.0, 0.0))
        replay = play(Plays(np.tile(stream.rows[0, 0], (10_000, 1)), 50), stream, DELAYS[2], 2, seed)
        asked = zip(replay.frames, replay.times_s - late_s, strict=True)
        replay.setpoints[:] = [plain.sampled(max(0, int(frame)), np.array([time_s]))[0] for frame, time_s in asked]
        found.append(measures_of(replay).lag_s)
    assert np.median(found) == pytest.approx(late_s, abs=0.02)


def test_chunks_share_the_mean_of_the_rows_that_are_due() -> None:
    rows = np.zeros((3, SO101.horizon, SO101.dof))
    rows[:, :, 0] = np.array([0.1, 0.2, 0.6])[:, None]
    stream = Stream("three opinions", SO101, rows)
    at = stream.shared(np.array([0.0, 1.0, 2.0, 3.0, 4.0]) / stream.rate_hz)[:, 0]
    assert at.tolist() == pytest.approx([0.1, 0.1, 0.15, 0.3, 0.3])


def test_an_arm_keeps_its_limits_whatever_it_is_sent_and_follows_what_is_within_them() -> None:
    sent = np.tile(SO101.rest_position, (300, 1))
    sent[50:, :5] += 0.3  # a jump
    arm = follow(SO101, sent, 90.0, 3)
    for values, limit in zip(
        differences(arm, 90.0), (SO101.limits.velocity, SO101.limits.acceleration, SO101.limits.jerk), strict=True
    ):
        assert (np.abs(values[:, :5]) <= limit[:5] * (1 + 1e-6)).all()
    np.testing.assert_allclose(arm[-1], sent[-1], atol=1e-6)
    smooth = ours(synthetic(SO101, "steady", 4.0, 1), DELAYS[2]).setpoints
    assert np.abs(follow(SO101, smooth, 90.0, 3) - smooth)[:, :5].max() < 0.03


def test_differences_begin_from_rest() -> None:
    velocity, acceleration, jerk = differences(np.array([[0.0], [1.0], [1.0]]), 10.0)
    assert velocity.ravel().tolist() == [0.0, 10.0, 0.0]
    assert acceleration.ravel().tolist() == pytest.approx([0.0, 100.0, -100.0])
    assert jerk.ravel().tolist() == pytest.approx([0.0, 1000.0, -2000.0])


@pytest.mark.parametrize("robot, multiple", [("so101", 3), ("franka", 16), ("yam", 8)])
def test_ours_neither_stalls_nor_leaves_a_limit(robot: str, multiple: int) -> None:
    found = measures_of(ours(synthetic(embodiment(robot), "undecided", 3.0, 1), DELAYS[2], multiple))
    assert found.violations == 0
    assert found.stalls_covered == 0 and found.stall_share == 0.0
    assert found.seams > 5


@pytest.mark.slow
def test_lerobots_players_are_its_own_and_ours_has_a_tenth_of_their_jerk() -> None:
    from molmoact2_ros.benchmarking.execution.lerobot_players import AGGREGATES, lerobot_players

    stream = recorded()[0]
    players = lerobot_players(SO101, stream.rows[0, 0], 3)
    assert len(players) == 2 * (len(AGGREGATES) + 2) and set(AGGREGATES) >= {"latest_only", "weighted_average"}
    found = {player.name: measures_of(play(player, stream, DELAYS[2], 3, 1)) for player in players}
    found[OURS] = measures_of(ours(stream, DELAYS[2]))
    # The synchronous one waits for every chunk; the aggregate functions tell the asynchronous ones apart.
    assert found["lerobot select_action"].stall_share > 0.1
    assert found["lerobot async latest_only"].jerk > found["lerobot async conservative"].jerk
    assert found["lerobot RTC queue"].stall_share < 0.02
    best = min(m.jerk for name, m in found.items() if name != OURS)
    assert best > 10.0 * found[OURS].jerk


def test_a_renewed_section_leaves_the_others_alone() -> None:
    page = assemble("", {TICK: "old ticks", LOOP: "the loop"}, {"Machine": "m"}, "2026-01-01")
    page = assemble(page, {TICK: "new ticks"}, {"Machine": "m"}, "2026-01-02")
    assert "new ticks" in page and "old ticks" not in page and "the loop" in page
    assert page.index(TICK) < page.index(LOOP)
    assert "2026-01-01" in page and "2026-01-02" in page


def test_the_fault_table_is_read_and_a_missing_report_says_how_to_make_it(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    with pytest.raises(FileNotFoundError, match="MOLMOACT2_FAULT_REPORT"):
        fault_section(report)
    row = {"fault": "a", "state": "FAULT", "reason": "x | y", "movement_rad": None, "passed": True}
    report.write_text(json.dumps({"robot": "so101", "rate_hz": 100.0, "faults": [row]}))
    text, count = fault_section(report)
    assert count == 1 and "| 1 | a | FAULT | x / y | goes on |" in text and FAULTS not in text
