"""The lag that the robots' benchmark reports."""

import numpy as np
import pytest

from molmoact2_ros.execution.motion_lag import lag_s


@pytest.mark.parametrize("delay", [0.0, 0.037, 0.12])
def test_a_known_delay_is_found(delay: float):
    commands = np.arange(0.0, 20.0, 0.01)
    readings = np.arange(0.0, 20.0, 0.0117)
    found = lag_s(commands, np.sin(2 * commands), readings, np.sin(2 * (readings - delay)))
    assert found == pytest.approx(delay, abs=0.0015)


def test_a_joint_that_rests_and_streams_that_do_not_overlap_are_refused():
    times = np.arange(0.0, 20.0, 0.01)
    with pytest.raises(ValueError, match="not moved"):
        lag_s(times, np.zeros_like(times), times, np.zeros_like(times))
    with pytest.raises(ValueError, match="overlap"):
        lag_s(times, np.sin(times), times + 19.5, np.sin(times))
