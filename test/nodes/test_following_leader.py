"""A leader with motors goes where the arm is while it does not drive, and lets go when it does. In a module of its own:
the cell of the other tests publishes joint states, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fault_cell import ARM, PATIENCE, FaultCell
from ros_process import Companion, NodeProcess, ros_arguments, wait_until
from teleop_cell import Person, TeleopCell, teleop_process

EXECUTOR = "molmoact2_ros.nodes.executor_node"
START_S = 90.0


@pytest.mark.slow
def test_a_leader_with_motors_follows_the_arm_and_lets_go_when_it_drives(tmp_path: Path) -> None:
    parameters = {**PATIENCE, "leader_timeout_s": 0.5, "leader_match_rad": 0.1}
    with (
        Person(tmp_path / "leader") as person,
        Companion() as companion,
        NodeProcess(EXECUTOR, ros_arguments(parameters), tmp_path / "executor.log") as executor,
        teleop_process(tmp_path, person, follow=True) as node,
    ):
        cell = FaultCell(companion)
        teleop = TeleopCell(cell)
        wait_until(lambda: cell.state == "DISARMED", lambda: f"the executor; it wrote\n{executor.output}", START_S)
        cell.begin()
        cell.track()

        def together() -> bool:
            return bool(teleop.leads) and bool(np.abs(teleop.leads[-1] - cell.sent()[-1])[ARM].max() < 0.15)

        wait_until(together, lambda: f"the leader to come; it wrote\n{node.output}", 20.0)
        assert person.rig.holds
        teleop.take_over()
        wait_until(lambda: not person.rig.holds, lambda: f"the leader to let go; it wrote\n{node.output}")
        person.wants = teleop.leads[-1].copy()
        person.sway(1.5)
        teleop.give_back()
        wait_until(lambda: person.rig.holds, lambda: f"the leader to follow; it wrote\n{node.output}")
        cell.await_state("TRACKING", "following the policy")
        assert cell.within_limits()
