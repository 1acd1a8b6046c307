"""What every test needs: this source tree's ROS environment, and a ROS domain that no other run hears."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before anything imports rclpy: these are read once.
from molmoact2_ros.processes import node_environment

os.environ.update(node_environment())
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))


_status = 0


def pytest_sessionfinish(session: object, exitstatus: int) -> None:
    global _status
    _status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End here: at interpreter exit ruckig's binding prints a page about leaks over pytest's closing line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
