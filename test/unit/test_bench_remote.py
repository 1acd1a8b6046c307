"""The benchmark of the policy server: a small run writes its page, and the slow network is as slow as it says."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from molmoact2_ros.benchmarking.remote import bench
from molmoact2_ros.benchmarking.remote.slow_network import SlowNetwork


def test_the_network_is_as_slow_as_it_says() -> None:
    size, delay_s, rate = 200_000, 0.05, 1e6
    with socket.create_server(("127.0.0.1", 0)) as far:

        def echo() -> None:
            link, _ = far.accept()
            with link:
                got = b""
                while len(got) < size:
                    got += link.recv(65536)
                link.sendall(got[:1])

        thread = threading.Thread(target=echo)
        thread.start()
        with (
            SlowNetwork(far.getsockname()[1], delay_s, rate) as network,
            socket.create_connection(("127.0.0.1", network.port)) as near,
        ):
            begun = time.monotonic()
            near.sendall(bytes(size))
            assert near.recv(1) == b"\0"
            assert time.monotonic() - begun >= size / rate + 2 * delay_s
        thread.join()


@pytest.mark.slow
def test_a_run_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [
        ({name: np.full((48, 64, 3), 9 * step, np.uint8) for name in ("front", "wrist")}, np.zeros(6))
        for step in range(3)
    ]
    monkeypatch.setattr(bench, "cell_pictures", lambda count, seed: frames)  # needs a renderer
    monkeypatch.setattr(bench, "CLIENTS", (1, 2))
    monkeypatch.setattr(bench, "NETWORKS", {"quick": (0.001, 1e8)})
    page, figures = bench.bench_remote(tmp_path / "remote.md", 3, 1.0, 1, install=False)
    text = page.read_text()
    assert {len(took.total) for took in figures.ways.values()} == {3}
    assert figures.bytes["websocket, raw"] == 2 * 48 * 64 * 3 > figures.bytes["websocket, JPEG 90"] > 0
    assert all(took.beyond.min() > 0.0 for took in figures.ways.values())
    assert {count: len(each) for count, each in figures.clients.items()} == {1: 1, 2: 2}
    assert "websocket, JPEG 90" in text and "quick" in text and "robot's own computer" not in text
