"""`molmoact2 bench remote`: latency of a server over a local call, bytes, clients, networks, the robot's installation.

Server and clients are processes of one machine. Each round asks the local policy and the server by every way once, one
after another, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from molmoact2_ros.benchmarking.machine import StolenTime
from molmoact2_ros.benchmarking.remote.calls import (
    ROBOT,
    Client,
    Frames,
    ServerProcess,
    Took,
    cell_pictures,
    drive,
    observation,
)
from molmoact2_ros.benchmarking.remote.install import measure
from molmoact2_ros.benchmarking.remote.report import Figures, render
from molmoact2_ros.benchmarking.remote.slow_network import SlowNetwork
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import open_policy
from molmoact2_ros.share import bundled_checkpoint

WAYS = {
    "websocket, JPEG 90": ("ws://127.0.0.1:{port}", 90),
    "websocket, raw": ("ws://127.0.0.1:{port}", 0),
    "`/act`, JPEG 90": ("http://127.0.0.1:{port}/act", 90),
    "`/act`, raw": ("http://127.0.0.1:{port}/act", 0),
}
NETWORKS = {
    "cable: 0.2 ms, 1 Gbit/s": (0.0002, 125e6),
    "Wi-Fi: 3 ms, 100 Mbit/s": (0.003, 12.5e6),
    "VPN: 20 ms, 20 Mbit/s": (0.02, 2.5e6),
}
CLIENTS = (1, 2, 4)
WARM_UP = 5


def bench_remote(page: Path, rounds: int, seconds: float, seed: int, install: bool) -> tuple[Path, Figures]:
    """Measure, write `page` (Markdown) and return its path with the figures.

    Args:
        rounds: calls by each way. seconds: for each number of clients. seed: of the pictures.
        install: also install and weigh the robot's packages.
    """
    load, stolen, frames = os.getloadavg()[0], StolenTime(), cell_pictures(12, seed)
    with ServerProcess("", 1) as server:
        local, ways, sent = _rounds(server.port, frames, rounds)
        networks = {name: _by_network(server.port, frames, *network) for name, network in NETWORKS.items()}
        clients = {count: _clients(server.port, frames, count, seconds) for count in CLIENTS}
    found = measure() if install else None
    figures = Figures(
        local, ways, sent, networks, clients, seconds, found, rounds, stolen.share(), (load, os.getloadavg()[0])
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(figures))
    return page, figures


def _rounds(port: int, frames: Frames, rounds: int) -> tuple[np.ndarray, dict[str, Took], dict[str, int]]:
    robot = embodiment(ROBOT)
    # As the server has it.
    here = open_policy(
        bundled_checkpoint(ROBOT),
        robot,
        robot.norm_tag,
        backend="torch",
        device="cpu",
        threads=1,
        log=lambda line: None,
    )
    clients = {name: Client(address.format(port=port), quality) for name, (address, quality) in WAYS.items()}
    local = []
    for number in range(WARM_UP + rounds):
        begun = perf_counter()
        here.infer(observation(frames, number))
        if number >= WARM_UP:
            local.append(1e3 * (perf_counter() - begun))
        for client in clients.values():
            client.ask(observation(frames, number), kept=number >= WARM_UP)
    for client in clients.values():
        client.close()
    took = {name: client.took for name, client in clients.items()}
    return np.array(local), took, {name: client.picture_bytes for name, client in clients.items()}


def _by_network(port: int, frames: Frames, delay_s: float, rate: float) -> tuple[float, float]:
    with SlowNetwork(port, delay_s, rate) as network:
        medians = []
        for quality in (90, 0):
            client = Client(f"ws://127.0.0.1:{network.port}", quality)
            for number in range(3 + 15):
                client.ask(observation(frames, number), kept=number >= 3)
            client.close()
            medians.append(float(np.median(client.took.beyond)))
    return medians[0], medians[1]


def _clients(port: int, frames: Frames, count: int, seconds: float) -> list[Took]:
    address = f"ws://127.0.0.1:{port}"
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(drive, address, seconds, frames) for _ in range(count)]]


__all__ = ["CLIENTS", "Figures", "bench_remote"]
