"""An arm whose own calibrated range is narrower than the robot's limits is not driven into its stops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from so101_rig import ROBOT, Rig

from molmoact2_ros.diagnostics import Level

LIFT = 1
LOW, HIGH = 966, 3128  # 95 degrees about tick 2047, to either side
GOAL = 42


def goal(rig: Rig) -> int:
    """What the lift's servo was told last, ticks."""
    rig.driver.read()  # commands are not answered; what is asked after one is answered after it
    return int.from_bytes(bytes(rig.bus.servos[LIFT + 1].registers[GOAL : GOAL + 2]), "little")


def test_goals_beyond_its_own_range_end_there_and_are_counted_and_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    entries = json.loads(rig.path.read_text())
    entries["shoulder_lift"] |= {"range_min": LOW, "range_max": HIGH}
    rig.path.write_text(json.dumps(entries))
    registers = rig.bus.servos[LIFT + 1].registers
    registers[9:11], registers[11:13] = LOW.to_bytes(2, "little"), HIGH.to_bytes(2, "little")
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
