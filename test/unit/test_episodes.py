"""The run of episodes: nobody but the cell declares success, and every deadline names what is missing."""

import pytest

from molmoact2_ros.simulation.episode_driver import (
    ARM_S,
    SECOND,
    CellReport,
    EpisodeDriver,
    Figures,
    Phase,
    Request,
    RunError,
)


class Cell:
    """Answers a driver by hand; time moves 50 ms a step."""

    def __init__(self, **arguments):
        self.driver = EpisodeDriver(**{"episodes": 1, "episode_timeout_s": 2.0, **arguments})
        self.now = SECOND
        self.episode = 0

    def step(self, missing: str = "") -> Request | None:
        self.now += SECOND // 20
        return self.driver.step(self.now, missing)

    def until(self, wanted: Request | Phase, steps: int = 2000) -> None:
        for _ in range(steps):
            request = self.step()
            if request is wanted or self.driver.phase is wanted:
                return
        raise AssertionError(f"{wanted} never came; the driver is in {self.driver.phase}")

    def answer(self, request: Request, ok: bool = True, message: str = "") -> None:
        self.driver.answered(request, ok, message, self.now)

    def report(self, state: str, episode: int | None = None, reached: bool = False) -> None:
        number = self.episode if episode is None else episode
        self.driver.heard_cell(CellReport(state, number, 1.0, 0.05, 0.01, reached, state == "success"))

    def run_up(self) -> None:
        self.until(Request.DISARM)
        self.answer(Request.DISARM)
        self.until(Request.RESET)
        self.answer(Request.RESET, message=str(self.episode))
        self.until(Request.TASK)
        self.now += SECOND // 20
        self.driver.heard_chunk(self.now, self.now + 80_000_000)
        self.until(Request.ARM)
        self.answer(Request.ARM)


def test_an_episode_disarms_resets_tells_the_task_and_arms_in_this_order():
    cell = Cell()
    cell.run_up()
    assert cell.driver.phase is Phase.RUNNING
    cell.report("success", reached=True)
    cell.until(Request.DISARM)
    cell.answer(Request.DISARM)
    assert cell.driver.phase is Phase.DONE
    assert [result.outcome for result in cell.driver.results] == ["success"]
    assert (cell.driver.successes, cell.driver.reached) == (1, 1)


def test_success_of_another_episode_does_not_count():
    cell = Cell()
    cell.run_up()
    cell.report("success", episode=7)
    cell.until(Request.DISARM)
    assert cell.driver.results[0].outcome == "timeout"
    assert cell.driver.successes == 0


def test_a_chunk_from_before_the_task_does_not_arm():
    cell = Cell(start_timeout_s=3.0)
    cell.until(Request.DISARM)
    cell.answer(Request.DISARM)
    cell.until(Request.RESET)
    cell.answer(Request.RESET, message="0")
    before = cell.now
    cell.until(Request.TASK)
    cell.driver.heard_chunk(before, cell.now)
    with pytest.raises(RunError, match="no action chunk"):
        cell.until(Request.ARM)


def test_a_fault_of_the_executor_ends_the_episode_with_its_reason():
    cell = Cell()
    cell.run_up()
    cell.driver.heard_executor("FAULT", "stale joint state")
    cell.until(Request.DISARM)
    assert cell.driver.results[0].outcome == "fault"
    assert "stale joint state" in cell.driver.results[0].reason


def test_an_e_stop_ends_the_episode_and_the_next_one_waits_for_its_reset():
    cell = Cell(episodes=2)
    cell.run_up()
    cell.driver.heard_executor("ESTOPPED", "e-stop pressed")
    cell.until(Phase.STOPPED)
    assert [result.outcome for result in cell.driver.results] == ["fault"]
    for _ in range(20 * 3600):  # an hour
        assert cell.step() is None
    cell.driver.heard_executor("DISARMED", "e-stop reset")
    cell.until(Request.DISARM)
    cell.driver.heard_executor("TRACKING", "")  # pressed again meanwhile, and only the answer says so
    cell.answer(Request.DISARM, ok=False, message="cannot disarm while ESTOPPED: e-stop pressed")
    assert cell.driver.phase is Phase.STOPPED
    cell.driver.heard_executor("DISARMED", "e-stop reset")
    cell.episode = 1
    cell.run_up()
    cell.driver.heard_executor("ESTOPPED", "e-stop pressed")
    cell.until(Phase.DONE)  # nothing is left to wait for


def test_a_refusal_to_disarm_for_another_reason_ends_the_run():
    cell = Cell()
    cell.until(Request.DISARM)
    with pytest.raises(RunError, match="refused to disarm: cannot disarm while UNCONFIGURED"):
        cell.answer(Request.DISARM, ok=False, message="cannot disarm while UNCONFIGURED: not configured")


def test_refused_arming_is_tried_again_and_then_counts_as_a_fault():
    cell = Cell()
    cell.until(Request.DISARM)
    cell.answer(Request.DISARM)
    cell.until(Request.RESET)
    cell.answer(Request.RESET, message="0")
    cell.until(Request.TASK)
    cell.driver.heard_chunk(cell.now + 1, cell.now + 1)
    tries = 0
    while cell.driver.phase is not Phase.DISARMING:
        if cell.step() is Request.ARM:
            tries += 1
            cell.answer(Request.ARM, ok=False, message="no fresh joint state")
    assert tries > ARM_S
    assert cell.driver.results[0].outcome == "fault"


def test_missing_nodes_and_a_silent_cell_are_named_after_their_deadline():
    cell = Cell(start_timeout_s=1.0)
    with pytest.raises(RunError, match=r"there is no executor \(/so101/executor/state\)"):
        for _ in range(100):
            cell.step(missing="executor (/so101/executor/state)")
    cell = Cell()
    cell.until(Request.DISARM)
    cell.answer(Request.DISARM)
    with pytest.raises(RunError, match="does not answer on sim/reset"):
        cell.until(Request.TASK)


def test_an_answer_after_its_deadline_changes_nothing():
    cell = Cell()
    cell.run_up()
    cell.answer(Request.RESET, message="5")
    assert cell.driver.phase is Phase.RUNNING


def test_figures_are_taken_while_running_only():
    cell = Cell()
    cell.driver.heard_chunk(cell.now, cell.now + 50_000_000)
    cell.driver.heard_executor("TRACKING", "", 90.0)
    cell.driver.heard_stages({"vision": 5.0})
    cell.run_up()
    assert cell.driver.figures == Figures()
    cell.driver.heard_chunk(cell.now, cell.now + 60_000_000)
    cell.driver.heard_executor("TRACKING", "", 110.0)
    cell.driver.heard_executor("HOLDING", "", 500.0)
    assert Figures.percentiles(cell.driver.figures.policy_latency) == {"p50": 60.0, "p90": 60.0, "p99": 60.0}
    assert cell.driver.figures.chunk_age == [110.0]
    assert Figures.percentiles([]) is None


def test_a_report_without_its_values_is_refused_by_name():
    with pytest.raises(ValueError, match="'elapsed_s'; it has episode"):
        CellReport.parse("running", {"episode": "1"})
