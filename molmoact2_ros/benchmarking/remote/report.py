"""The page of `molmoact2 bench remote`."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import date

import numpy as np

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.remote.calls import NOISE, SIZE, Took, middle
from molmoact2_ros.benchmarking.remote.install import Installed

TARGET_MS = 6.0


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        local: ms of the policy in this process. ways: by way. bytes: of the pictures of a call, by way.
        networks: median ms of a call beyond the model by network, with JPEG and raw.
        clients: of each number of clients their calls. seconds: how long each number was served.
        stolen: share of processor time that a hypervisor took meanwhile.
        load: of the machine in the minute before the run and in its last one.
    """

    local: np.ndarray
    ways: dict[str, Took]
    bytes: dict[str, int]
    networks: dict[str, tuple[float, float]]
    clients: dict[int, list[Took]]
    seconds: float
    install: Installed | None
    rounds: int
    stolen: float
    load: tuple[float, float]


def render(figures: Figures) -> str:
    """Return the page."""
    usual = middle(figures.local)
    parts = [
        ["# A policy on another machine"],
        _text(
            f"Written by `molmoact2 bench remote` on {date.today().isoformat()}. Server and clients are processes of "
            f"one machine, over loopback; two pictures of {SIZE[0]} x {SIZE[1]} (of the simulated cell, enlarged, with "
            f"noise of {NOISE:g} levels), the cell's checkpoint of 3.4 M parameters on one CPU thread. "
            f"{figures.rounds} rounds, in each of them one call by every way. A hypervisor took "
            f"{100 * figures.stolen:.1f} % of the time; the load of the machine was {figures.load[0]:.1f} when the run "
            f"began and {figures.load[1]:.1f} when it ended (the run's own is about 1.5)."
        ),
        [f"- {name}: {value}" for name, value in machine().items()],
        ["## One call"],
        _text(
            f"The local policy: {usual[0]:.1f} ms (median), {usual[1]:.1f} ms (p90). What a call takes beyond the "
            "model is the packing of pictures on the robot's side, the way there and back, unpacking, and waiting for "
            f"the worker; the target was {TARGET_MS:g} ms with JPEG."
        ),
        _ways(figures, usual[0]),
        ["## Slower networks"],
        _text(
            "Through a TCP proxy of the benchmark that delays each way and bounds the rate; it loses nothing, and has "
            "no other traffic. What a websocket call takes beyond the model, median of 15."
        ),
        [
            "| network | JPEG 90 | raw |",
            "|---|---|---|",
            *(f"| {name} | {packed:.0f} ms | {raw:.0f} ms |" for name, (packed, raw) in figures.networks.items()),
        ],
        ["## Several robots, one worker"],
        _text(
            f"Each client asks again as soon as it has its answer, for {figures.seconds:g} s, by websocket with JPEG "
            "90, from a process of its own on the same cores as the server."
        ),
        _clients(figures),
    ]
    found = figures.install
    if found is not None:
        parts += [
            ["## The robot's own computer"],
            _text(
                f"`requirements/robot.txt` in an environment of its own: {found.robot_mb:.0f} MB in {found.packages} "
                "packages, ROS 2's wheels included, no torch. The environment of this repository: "
                f"{found.here_mb:,.0f} MB. The policy node "
                f"{'imports there' if found.works else '**does not import there**'}."
            ),
        ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _text(words: str) -> list[str]:
    return textwrap.wrap(words, 118, break_on_hyphens=False, break_long_words=False)


def _ways(figures: Figures, local: float) -> list[str]:
    lines = [
        "| way | pictures, bytes a call | call, median / p90 | over a local call, median "
        "| beyond the model, median / p90 | of it packing |",
        "|---|---|---|---|---|---|",
    ]
    for name, took in figures.ways.items():
        total, beyond, encode = middle(took.total), middle(took.beyond), middle(took.encode)
        lines.append(
            f"| {name} | {figures.bytes[name]:,} | {total[0]:.1f} / {total[1]:.1f} ms | {total[0] - local:+.1f} ms "
            f"| {beyond[0]:.1f} / {beyond[1]:.1f} ms | {encode[0]:.1f} ms |"
        )
    return lines


def _clients(figures: Figures) -> list[str]:
    lines = [
        "| clients | calls a second, together | one call, median / p90 | fewest and most calls of a client |",
        "|---|---|---|---|",
    ]
    for count, each in figures.clients.items():
        total = middle(np.concatenate([took.total for took in each]))
        calls = [len(took.total) for took in each]
        lines.append(
            f"| {count} | {sum(calls) / figures.seconds:.1f} | {total[0]:.1f} / {total[1]:.1f} ms "
            f"| {min(calls)}, {max(calls)} |"
        )
    return lines
