"""What every test needs: this source tree's ROS environment, and a ROS domain that no other run hears."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports rclpy: these are read once.
from molmoact2_ros.bringup.processes import node_environment

os.environ.update(node_environment())
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parent))

from heartbeat import Heartbeat, told
from ros_process import NodeProcess

REAL_TIME = ("drivers", "faults", "nodes")
"""Folders of tests that run on real clocks, as do those marked `realtime`."""
_heartbeat = Heartbeat()
_begun = 0.0
_status = 0


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test on real clocks that fails while the machine is away is tried again, twice at most, and reported."""
    again = pytest.mark.flaky(reruns=2, condition=lambda: bool(_heartbeat.away(_begun)))
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in REAL_TIME or item.get_closest_marker("realtime"):
            item.add_marker(pytest.mark.realtime)
            item.add_marker(again)


def pytest_sessionstart() -> None:
    _heartbeat.begin()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    global _begun
    _begun = time.monotonic()
    NodeProcess.started.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("The machine", f"{told(_heartbeat.away(_begun))} during this test."))
        report.sections.extend(("A node", process.tail) for process in NodeProcess.started)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried again, with why, so that a fault which only such a moment shows is not passed over."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.write_line(f"TRIED AGAIN {report.nodeid}: {dict(report.sections)['The machine']}")
        for line in report.longreprtext.splitlines():
            if line.startswith("E  "):
                terminalreporter.write_line(f"    {line}")
    terminalreporter.write_line(f"In the whole run {told(_heartbeat.away())}.")


def pytest_sessionfinish(session: object, exitstatus: int) -> None:
    global _status
    _status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End here: at interpreter exit ruckig's binding prints a page about leaks over pytest's closing line."""
    _heartbeat.end()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
