"""Calls to a server in a process of its own, and what they took."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import Observation, RemoteOptions, open_policy

ROBOT, TASK = "so101", "pick up the red cube"
SIZE = (640, 480)
NOISE = 3.0
"""Of a pixel, as a small camera's; without it a rendered picture would be packed into too few bytes."""

Frames = list[tuple[dict[str, NDArray[np.uint8]], NDArray[np.float64]]]
"""Pictures by camera, and joints (rad)."""


@dataclass(frozen=True)
class Took:
    """Times of calls, ms: the whole, the model's share, and packing pictures on the robot's side."""

    total: NDArray[np.float64]
    infer: NDArray[np.float64]
    encode: NDArray[np.float64]

    @property
    def beyond(self) -> NDArray[np.float64]:
        """What a call took beyond the model's time."""
        return self.total - self.infer


class ServerProcess:
    """`molmoact2 serve` on a free port of this machine, within `with`."""

    def __init__(self, checkpoint: str, threads: int) -> None:
        self._command = [sys.executable, "-m", "molmoact2_ros.cli", "serve", "--port", "0", "--robot", ROBOT]
        self._command += ["--threads", str(threads), "--backend", "torch", "--device", "cpu"]
        self._command += ["--checkpoint", checkpoint] if checkpoint else []
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                return self
        raise RuntimeError(f"molmoact2 serve ended: {''.join(said[-3:]).strip()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()


def cell_pictures(count: int, seed: int) -> Frames:
    """`count` moments of an episode of the simulated cell, enlarged to `SIZE`, with a camera's noise."""
    import cv2

    from molmoact2_ros.benchmarking.policy.redraft import cell_frames

    random, names, found = np.random.default_rng(seed), ("front", "wrist"), []
    for pictures, joints in cell_frames(names, 0, count, seed):
        large = [cv2.resize(picture, SIZE, interpolation=cv2.INTER_CUBIC) for picture in pictures]
        noisy = [np.clip(picture + random.normal(0.0, NOISE, picture.shape), 0, 255) for picture in large]
        found.append((dict(zip(names, (picture.astype(np.uint8) for picture in noisy), strict=True)), joints))
    return found


def observation(frames: Frames, step: int) -> Observation:
    """The moment `step`, as of now."""
    images, joints = frames[step % len(frames)]
    now = time.time_ns()
    return Observation(images, dict.fromkeys(images, now), joints, now, TASK)


class Client:
    """A robot's side of one way to a server."""

    def __init__(self, address: str, quality: int, deadline_s: float = 30.0) -> None:
        options = RemoteOptions(jpeg_quality=quality, deadline_s=deadline_s)
        self._policy = open_policy("", embodiment(ROBOT), "", backend=f"remote:{address}", remote=options)
        self._rows: list[tuple[float, float, float]] = []

    def ask(self, seen: Observation, kept: bool = True) -> None:
        """One call; `kept` ones count."""
        begun = time.perf_counter()
        timings = self._policy.infer(seen).timings_ms
        row = 1e3 * (time.perf_counter() - begun), timings["infer"], timings["encode"]
        if kept:
            self._rows.append(row)

    @property
    def took(self) -> Took:
        """Of the calls that count."""
        return Took(*np.array(self._rows).T)

    @property
    def picture_bytes(self) -> int:
        """Of the last call."""
        return int(getattr(self._policy, "bytes_sent", 0))

    def close(self) -> None:
        """Give the connection back."""
        self._policy.close()


def drive(address: str, seconds: float, frames: Frames) -> Took:
    """Call as fast as answers come. For a process of its own: a client must not wait for another's interpreter."""
    client = Client(address, 90)
    for step in range(3):
        client.ask(observation(frames, step), kept=False)
    end, step = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        client.ask(observation(frames, step))
        step += 1
    client.close()
    return client.took


def middle(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """Median and ninth decile."""
    low, high = np.percentile(np.asarray(values, dtype=np.float64), (50, 90))
    return float(low), float(high)
