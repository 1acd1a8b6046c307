"""`molmoact2 bench robots`: real drivers on their emulated buses, a minute of motion, then every fault switch."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.unasked_report import unasked_table
from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.processes import ProcessGroup, node_environment
from molmoact2_ros.bringup.session import SessionError, orderly_signals
from molmoact2_ros.bringup.specs import NodeSpec, Value, nodes

LIMIT_S = 400.0


@dataclass(frozen=True)
class Case:
    """One fault switch: what it is, which state the executor must reach, and within how many seconds."""

    fault: str
    expected: str
    deadline_s: float
    meaning: str


@dataclass(frozen=True)
class Plan:
    """How one robot is drilled: the driver and bus in words, amplitudes (dof,) of the motion, and the fault cases."""

    driver: str
    amplitudes: tuple[float, ...]
    cases: tuple[Case, ...]


SO101_CASES = (
    Case("corrupt 0.02", "TRACKING", 5.0, "2 of 100 answers lose a bit: ridden out"),
    Case("delay 0.01", "TRACKING", 5.0, "every answer 10 ms late: ridden out"),
    Case("silent 3", "HOLDING", 1.0, "a servo does not answer"),
    Case("corrupt 1", "HOLDING", 1.0, "every answer loses a bit"),
    Case("delay 0.15", "HOLDING", 1.0, "every answer 150 ms late"),
    Case("unplug", "HOLDING", 1.0, "the USB cable is pulled out, and put back"),
    Case("frozen 1", "FAULT", 6.0, "an encoder repeats its last value"),
    Case("hot 3", "FAULT", 1.5, "a servo reports 68 degrees C"),
    Case("limp 2", "FAULT", 1.5, "a servo switches off its torque"),
)
YAM_CASES = (
    Case("lost 0.001", "TRACKING", 5.0, "1 of 1000 frames gets lost: i2rt asks again"),
    Case("silent 3", "HOLDING", 1.0, "a motor of the left arm does not answer"),
    Case("lost 1", "HOLDING", 1.0, "every frame of the left bus gets lost"),
    Case("delay 0.02", "HOLDING", 1.0, "every answer on the left bus 20 ms late"),
    Case("unplug", "HOLDING", 1.0, "the left CAN adapter is pulled out, and put back"),
    Case("frozen 1", "FAULT", 6.0, "an encoder of the left arm repeats its last value"),
    Case("hot 4", "FAULT", 1.5, "a motor of the left arm is at 85 degrees C"),
    Case("overheat 4", "HOLDING", 1.5, "a motor of the left arm switches itself off at 105 degrees C"),
)
FRANKA_CASES = (
    Case("lost 0.02", "TRACKING", 5.0, "2 of 100 packets get lost"),
    Case("silent", "HOLDING", 1.0, "the control box sends no state"),
    Case("unplug", "HOLDING", 1.0, "the control box leaves the network, and comes back"),
    Case("frozen", "FAULT", 8.0, "the encoders repeat their last value"),
    Case("reflex", "FAULT", 1.5, "the robot stops itself by reflex; driver/recover"),
    Case("user_stop", "ESTOPPED", 1.0, "the user stop is pressed, and released"),
)
PLANS = {
    "so101": Plan(
        "lerobot `SO101Follower` on a pseudo-terminal with six STS3215 servos",
        (0.4, 0.15, 0.15, 0.2, 0.4, 0.2),
        SO101_CASES,
    ),
    "yam": Plan(
        "i2rt on two emulated CAN buses with seven Damiao motors each",
        (0.4, 0.1, 0.1, 0.15, 0.2, 0.3, 0.01) * 2,
        YAM_CASES,
    ),
    "franka": Plan(
        "pylibfranka on an emulated control box (FCI version 10) with a Franka Hand",
        (0.3, 0.1, 0.1, 0.15, 0.2, 0.2, 0.3, 0.0),
        FRANKA_CASES,
    ),
}


def specs_for(
    robot: str, report: Path, motion_s: float, parameters: Mapping[str, Value], node: str, executor: Mapping[str, Value]
) -> list[NodeSpec]:
    """The nodes of a drill: simulated cell behind the bus, driver, executor with parameters of its own, and the drill
    itself, which is `node`."""
    options = Options(
        robot=robot, emulated=True, policy="expert", visualize=False, link_prefix=f"molmoact2_{time.time_ns()}"
    )
    wanted = ("sim_node", f"{robot}_driver_node", "executor_node")
    found = [spec for spec in nodes(options) if spec.executable in wanted]
    # The images are not looked at here; rendering them would only take time from the bus.
    changed: dict[str, Mapping[str, Value]] = {"sim_node": {"camera_rate_hz": 1.0}, "executor_node": executor}
    found = [
        replace(spec, parameters=MappingProxyType({**spec.parameters, **changed.get(spec.executable, {})}))
        for spec in found
    ]
    drill = NodeSpec(
        executable=node,
        name="drill",
        namespace=found[0].namespace,
        configs=found[0].configs,
        parameters=MappingProxyType(
            {
                "robot": robot,
                "allow_motion": True,
                "report": str(report),
                "motion_s": motion_s,
                "amplitudes": list(PLANS[robot].amplitudes),
                **parameters,
            }
        ),
        environment=MappingProxyType({"OMP_NUM_THREADS": "1"}),
    )
    return [*found, drill]


def drill(robot: str, out: Path, motion_s: float) -> dict[str, Any]:
    """Run one robot's minute of motion and its faults; see `run_drill`."""
    faults: list[str] = [f"{case.fault}|{case.expected}|{case.deadline_s}" for case in PLANS[robot].cases]
    return run_drill(robot, out, motion_s, {"faults": faults})


def run_drill(
    robot: str,
    out: Path,
    motion_s: float,
    parameters: Mapping[str, Value],
    node: str = "drill_node",
    **executor: Value,
) -> dict[str, Any]:
    """Run one robot's drill and return its report.

    Raises:
        SessionError: the drill did not get to its end. NodeEndedError: a node ended on the way.
    """
    with tempfile.TemporaryDirectory() as folder, orderly_signals():
        report = Path(folder) / "drill.json"
        with ProcessGroup(
            specs_for(robot, report, motion_s, parameters, node, executor), out / "log" / robot, node_environment()
        ) as running:
            process = running.processes["drill"]
            deadline = time.monotonic() + LIMIT_S + motion_s
            while process.popen.poll() is None:
                running.check(expected=("drill",))
                if time.monotonic() > deadline:
                    raise SessionError(f"the drill of {robot} did not end; its log ends with\n{process.tail()}")
                time.sleep(0.1)
        found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {"error": process.tail()}
    if found["error"]:
        raise SessionError(f"the drill of {robot} stopped: {found['error']} (logs: {out / 'log' / robot})")
    return found


def bench_robots(robots: list[str], out: Path, page: Path, motion_s: float) -> tuple[Path, dict[str, Any]]:
    """Drill `robots`, put their tables into `page` (those of other robots stay), and return the page and the reports.

    Raises:
        ValueError: a robot has no plan.
    """
    check_robots(robots)
    today = date.today().isoformat()
    reports = {robot: {"date": today, **drill(robot, out, motion_s)} for robot in robots}
    keep(page, reports)
    return page, reports


def check_robots(robots: list[str]) -> None:
    """Raise ValueError for a robot without a plan."""
    for robot in robots:
        if robot not in PLANS:
            raise ValueError(f"no drill for {robot!r}; there is one for: {', '.join(PLANS)}")


def keep(page: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what was measured beside what was measured of these and of other robots before, and write the page."""
    kept = page.with_suffix(".json")
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    for robot, report in reports.items():
        known[robot] = {**known.get(robot, {}), **report}
    page.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(known, indent=1) + "\n")
    page.write_text(render(known))


def render(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for the reports of some robots."""
    lines = [
        "# Robots on their emulated buses",
        "",
        "Written by `molmoact2 bench robots` (figures: `robots.json`): executor, the real driver node, the emulated",
        "bus and MuJoCo behind it, all on one machine over ROS 2. Chunks come from the drill, not from a policy.",
        "",
        *(f"- {name}: {value}" for name, value in machine().items()),
        "",
    ]
    for robot, report in sorted(reports.items()):
        lines += [f"## {robot}", "", f"{PLANS[robot].driver}.", ""]
        if "motion" in report:
            lines += [f"Measured on {report['date']}.", "", *_motion(report["motion"]), ""]
            lines += _faults(report["faults"], {case.fault: case.meaning for case in PLANS[robot].cases})
        if "unasked" in report:
            lines += [f"Measured on {report['unasked_date']}.", "", *unasked_table(report["unasked"])]
    return "\n".join(lines) + "\n"


def _motion(motion: Mapping[str, Any]) -> list[str]:
    lags = motion["lag_ms"]
    shown = ", ".join(f"{name} {value:.0f}" for name, value in lags.items())
    lines = [
        f"{motion['seconds']:.0f} s of motion; the joint that moved most travelled {motion['travel']:.1f} rad.",
        "",
        f"Command to encoder, ms (the shift with the least error, servo included): {shown}.",
        "",
        "| ms | samples | p50 | p99 | worst |",
        "|---|---|---|---|---|",
    ]
    names = {
        "command_period_ms": "time between two commands (their stamps)",
        "reading_period_ms": "time between two readings (their stamps)",
        "reading_age_ms": "age of a reading when a subscriber gets it",
    }
    for key, name in names.items():
        row = motion[key]
        lines.append(f"| {name} | {row['count']} | {row['p50']:.2f} | {row['p99']:.2f} | {row['worst']:.2f} |")
    own = motion["executor"]
    if "period_p50_ms" in own:
        worst = (own["period_p50_ms"], own["period_p99_ms"], own["period_worst_ms"])
        lines.append("| period of the command loop, by itself | | " + " | ".join(f"{v:.2f}" for v in worst) + " |")
    return lines


def _faults(faults: list[Mapping[str, Any]], meanings: Mapping[str, str]) -> list[str]:
    lines = [
        "| fault | what happens | executor | after s | deadline s | back to TRACKING, s | as expected |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in faults:
        after = "stays" if row["expected"] == "TRACKING" else f"{row['after_s']:.2f}"
        back = f"{row['recovered_s']:.2f}, {row['recovery']}"
        cells = (
            f"`{row['fault']}`",
            meanings.get(row["fault"], ""),
            row["state"],
            after,
            f"{row['deadline_s']:g}",
            back,
        )
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['ok'] else 'NO'} |")
    reasons = [f"- `{row['fault']}`: {row['reason']}" for row in faults if row["expected"] != "TRACKING"]
    return [*lines, "", "What the executor said:", "", *reasons, ""]
