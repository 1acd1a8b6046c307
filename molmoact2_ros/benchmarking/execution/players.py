"""Replays a stream through a player on simulated time: who asks when, what arrives when, what is commanded.

A player is asked for a set-point at every tick of the command rate, which is a whole multiple of the rate of the rows,
since that is what lerobot's interpolation needs. Nothing here waits: a replay of 20 s takes a second or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.execution.streams import Link, Stream
from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.executor import Executor, ExecutorConfig
from molmoact2_ros.execution.supervisor import State

Array = NDArray[np.float64]

START_NS = 1_000_000_000_000
"""ROS time at which a replay begins."""
OURS = "molmoact2_ros"


class Player(Protocol):
    """One way to turn chunks into set-points. Times are s since the start of the replay, rows (h, dof) rad."""

    name: str

    def wants(self, now_s: float) -> bool:
        """Tell whether it asks for a chunk now."""

    def ask(self, now_s: float) -> Any:
        """It has asked; what it returns comes back with the answer."""

    def receive(self, rows: Array, captured_s: float, asked: Any, now_s: float) -> bool:
        """An answer has arrived; False when it is refused and changes nothing."""

    def lose(self, asked: Any) -> None:
        """An answer will never come, and who waits for it is told, as by an exception of the call."""

    def step(self, tick: int, now_s: float) -> Array:
        """The set-point (dof,) of this tick."""

    @property
    def stalled(self) -> bool:
        """True when the last set-point repeats an old one because there is nothing to play."""

    @property
    def began(self) -> bool:
        """True when the last set-point is the first of another chunk: a seam."""


@dataclass
class Replay:
    """What a player did.

    Attributes:
        setpoints: (n, dof), one a tick. stalled, began: (n,), see `Player`. covered: (n,), some chunk that it has taken
            covers this tick. frames: (n,), the frame of the newest chunk that it has taken, -1 before.
        refused: how many chunks the player refused; they cover nothing.
    """

    player: str
    stream: Stream
    link: Link
    rate_hz: float
    setpoints: Array
    stalled: NDArray[np.bool_]
    began: NDArray[np.bool_]
    covered: NDArray[np.bool_]
    frames: NDArray[np.int_]
    refused: int = 0

    @property
    def moving(self) -> NDArray[np.bool_]:
        """(n,) True from the first chunk on."""
        return np.asarray(self.frames >= 0)

    @property
    def times_s(self) -> Array:
        """Time of each tick."""
        return np.asarray(np.arange(len(self.setpoints)) / self.rate_hz)


def play(player: Player, stream: Stream, link: Link, multiple: int, seed: int) -> Replay:
    """Replay `stream` behind `link` through `player`, with `multiple` ticks a row.

    A tick goes: answers arrive, the set-point is taken, then the player may ask. That is the order of lerobot's loop.
    """
    rate = stream.rate_hz * multiple
    count = (len(stream.rows) - 1) * multiple
    delays, lost = link.delays(len(stream.rows) * 4, seed)
    dof = stream.robot.dof
    setpoints = np.zeros((count, dof))
    flags = np.zeros((3, count), dtype=bool)
    frames = np.full(count, -1)
    under_way: list[tuple[float, int, Any]] = []
    asked, refused, last_ask, covered_until, newest = 0, 0, -np.inf, -np.inf, -1
    spacing = link.delay_s / link.workers
    for tick in range(count):
        now = tick / rate
        for entry in sorted(entry for entry in under_way if entry[0] <= now + 1e-9):
            under_way.remove(entry)
            _, _, ticket = entry
            frame, was_lost, token = ticket
            if was_lost:
                player.lose(token)
                continue
            captured = frame / stream.rate_hz
            if not player.receive(stream.rows[frame], captured, token, now):
                refused += 1
                continue
            covered_until = max(covered_until, captured + stream.robot.horizon / stream.rate_hz)
            newest = max(newest, frame)
        setpoints[tick] = player.step(tick, now)
        flags[:, tick] = player.stalled, player.began, now < covered_until - 1e-9
        frames[tick] = newest
        spaced = link.workers == 1 or now - last_ask >= spacing - 1e-9
        if len(under_way) < link.workers and spaced and player.wants(now):
            frame = int(now * stream.rate_hz + 1e-6)
            # A real call takes time even where the link takes none: its answer counts from the next tick.
            arrival = now + max(delays[asked % len(delays)], 0.5 / rate)
            under_way.append((arrival, asked, (frame, bool(lost[asked % len(lost)]), player.ask(now))))
            asked, last_ask = asked + 1, now
    stalled, began, covered = flags
    return Replay(player.name, stream, link, rate, setpoints, stalled, began, covered, frames, refused)


class OurPlayer:
    """The executor as it is, ticked on simulated time; the arm is where its last command was."""

    def __init__(self, robot: Embodiment, start: Array, rate_hz: float) -> None:
        self.name = OURS
        self.executor = Executor(robot, ExecutorConfig(rate_hz=rate_hz))
        self._robot, self._position = robot, start
        self._times = [(i + 1) / robot.rate_hz for i in range(robot.horizon)]
        self._accepted = 0
        self._chunks = 0
        self.began = False
        self.executor.configured()
        for before_s in (0.4, 0.2, 0.1, 0.0):  # an arm that has stood there for a while
            self._read(self._ns(-before_s))
        armed, why = self.executor.arm(START_NS)
        if not armed:
            raise RuntimeError(f"the executor would not arm at the start of the stream: {why}")

    @staticmethod
    def _ns(now_s: float) -> int:
        return START_NS + round(now_s * 1e9)

    def _read(self, now_ns: int) -> None:
        self.executor.on_joint_state(self._robot.joint_names, self._position.tolist(), now_ns)

    def wants(self, now_s: float) -> bool:
        """As fast as possible."""
        return True

    def ask(self, now_s: float) -> None:
        """Nothing to remember: the chunk says when it was captured."""

    def receive(self, rows: Array, captured_s: float, asked: Any, now_s: float) -> bool:
        """As the node does with a message."""
        message = ChunkMessage(self._ns(captured_s), self._robot.joint_names, rows.tolist(), self._times)
        return self.executor.on_chunk(message, self._ns(now_s)) is None

    def lose(self, asked: Any) -> None:
        """Nothing to do: the present chunk lasts."""

    def step(self, tick: int, now_s: float) -> Array:
        """One tick of the executor."""
        setpoint = self.executor.tick(self._ns(now_s) + 1)
        if setpoint is None:
            raise RuntimeError(f"the executor is {self.executor.state.value}: {self.executor.reason}")
        self._position = setpoint.copy()
        self._read(self._ns(now_s) + 1)
        accepted = self.executor.counters.chunks_accepted
        self.began, self._accepted = accepted > self._accepted, accepted
        return self._position

    @property
    def stalled(self) -> bool:
        """True while it holds: it has no chunk left to follow."""
        return self.executor.state not in (State.TRACKING, State.STOPPING)
