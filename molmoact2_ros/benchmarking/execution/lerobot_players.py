"""lerobot 0.6.1's own ways to play chunks, driven on simulated time: its classes, without network, threads or sleep.

Each player pops one action a row, as lerobot's loops do at the rate of the policy, and holds it until the next (the
servo gets steps); the variants with `interpolated` in their name go through lerobot's `ActionInterpolator` at the same
command rate as ours. Importing this takes ten seconds: lerobot loads every policy and robot it has.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.execution.players import Player
from molmoact2_ros.embodiments import Embodiment

Array = NDArray[np.float64]


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """lerobot's client makes a folder for its log where it is imported and takes over the root logger."""
    here, root = os.getcwd(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
            for handler in list(root.handlers):
                if handler not in handlers:
                    root.removeHandler(handler)
                    handler.close()
            for handler in handlers:
                if handler not in root.handlers:
                    root.addHandler(handler)
            root.setLevel(level)


def _without_a_broken_realsense() -> None:
    """A replay has no camera: where pyrealsense2 is installed without its libusb, lerobot is told it is not there."""
    from lerobot.utils import import_utils

    try:
        import pyrealsense2  # noqa: F401
    except ImportError:
        import_utils._pyrealsense2_available = False


with _elsewhere():
    _without_a_broken_realsense()
    from lerobot.async_inference.configs import AGGREGATE_FUNCTIONS, RobotClientConfig
    from lerobot.async_inference.helpers import TimedAction, TimedObservation
    from lerobot.async_inference.robot_client import RobotClient
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy
    from lerobot.policies.rtc import ActionInterpolator, ActionQueue, RTCConfig
    from lerobot.transport import services_pb2

    from molmoact2_ros.benchmarking.execution.replayarm import ReplayArmConfig

for _name in ("robot_client", "lerobot.policies.rtc.action_queue"):
    logging.getLogger(_name).setLevel(logging.ERROR)

AGGREGATES = tuple(AGGREGATE_FUNCTIONS)
RTC_QUEUE_THRESHOLD = 30
"""lerobot's default: with a horizon of 30 rows or fewer it asks all the time."""
CHUNK_SIZE_THRESHOLD = 0.5
"""lerobot's default of the asynchronous client: it asks when half of the chunk is used up."""


class RowPlayer:
    """What the three have in common: one action a row, held or interpolated in between. Subclasses give `_next`."""

    def __init__(self, name: str, robot: Embodiment, start: Array, multiple: int, interpolated: bool) -> None:
        self.name = f"{name}, interpolated" if interpolated else name
        self._robot, self._multiple = robot, multiple
        self._held = start.copy()
        self._interpolator = ActionInterpolator(multiple) if interpolated else None
        if self._interpolator is not None:
            self._interpolator.add(torch.from_numpy(start))  # the arm is known to stand there
            self._interpolator.get()
        self.stalled = False
        self.began = False
        self._fresh = False

    def lose(self, asked: Any) -> None:
        """Nothing to do but ask again."""

    def _next(self, now_s: float) -> Array | None:
        """The next action (dof,), or None when there is nothing to play."""
        raise NotImplementedError

    def step(self, tick: int, now_s: float) -> Array:
        """The set-point of this tick; without an action the last one stays."""
        self.began = False
        if self._interpolator is not None:
            if self._interpolator.needs_new_action():
                action = self._next(now_s) if tick % self._multiple == 0 else None
                self._take(action)
                if action is not None:
                    self._interpolator.add(torch.from_numpy(action))
            between = self._interpolator.get()
            if between is not None:
                self._held = between.numpy().copy()
        elif tick % self._multiple == 0:
            action = self._next(now_s)
            self._take(action)
            if action is not None:
                self._held = action
        return self._held

    def _take(self, action: Array | None) -> None:
        self.stalled = action is None
        self.began = action is not None and self._fresh
        self._fresh = self._fresh and action is None


class SynchronousPlayer(RowPlayer):
    """`select_action` of lerobot's MolmoAct2 policy: a chunk is played to its end, then the arm waits for the next."""

    def __init__(self, robot: Embodiment, start: Array, multiple: int, interpolated: bool = False) -> None:
        super().__init__("lerobot select_action", robot, start, multiple, interpolated)
        self._answer: Array | None = None
        self._waiting = False
        # The policy's own method runs on what it reads of `self`: its queue, and an answer that is there.
        self._policy = SimpleNamespace(
            config=SimpleNamespace(n_action_steps=robot.horizon),
            _action_queue=deque(maxlen=robot.horizon),
            _rtc_enabled=lambda: False,
            eval=lambda: None,
            predict_action_chunk=self._predict,
        )

    def _predict(self, batch: Any) -> torch.Tensor:
        assert self._answer is not None
        answer, self._answer = self._answer, None
        self._fresh = True
        return torch.from_numpy(answer)[None]

    def wants(self, now_s: float) -> bool:
        """When its queue is empty; then it waits for that one answer."""
        return not (self._policy._action_queue or self._waiting or self._answer is not None)

    def ask(self, now_s: float) -> None:
        """It waits from now on."""
        self._waiting = True

    def receive(self, rows: Array, captured_s: float, asked: Any, now_s: float) -> bool:
        """The call of the policy returns."""
        self._waiting, self._answer = False, rows
        return True

    def lose(self, asked: Any) -> None:
        """The call has failed; the loop calls again."""
        self._waiting = False

    def _next(self, now_s: float) -> Array | None:
        if not self._policy._action_queue and self._answer is None:
            return None
        action: Array = MolmoAct2Policy.select_action(self._policy, {})[0].numpy().copy()  # type: ignore[arg-type]
        return action


class _Wire:
    """In place of the client's gRPC stub: keeps what was sent, answers with what it was given."""

    def __init__(self, client: RobotClient) -> None:
        self._client = client
        self.sent: TimedObservation | None = None
        self.answer: bytes = b""

    def SendObservations(self, parts: Iterable[Any]) -> None:  # noqa: N802  # the name is the protocol's
        self.sent = pickle.loads(b"".join(part.data for part in parts))

    def GetActions(self, _: Any) -> Any:  # noqa: N802
        self._client.shutdown_event.set()  # one answer a call: the client's loop ends after it
        return services_pb2.Actions(data=self.answer)


class AsynchronousPlayer(RowPlayer):
    """lerobot's `RobotClient` with one of its aggregate functions; what it sends and receives goes over a `_Wire`.

    The server's filters, which leave out observations much like the last, are not applied: they only add delay.
    """

    def __init__(
        self, aggregate: str, robot: Embodiment, start: Array, multiple: int, interpolated: bool = False
    ) -> None:
        super().__init__(f"lerobot async {aggregate}", robot, start, multiple, interpolated)
        self._folder = tempfile.TemporaryDirectory()
        arm = ReplayArmConfig(
            id="replay", calibration_dir=Path(self._folder.name), joints=list(robot.joint_names), start=start.tolist()
        )
        # The address is never called: gRPC connects when it is first used, and the stub is replaced before that.
        config = RobotClientConfig(
            policy_type="molmoact2",
            pretrained_name_or_path="replay",
            robot=arm,
            actions_per_chunk=robot.horizon,
            chunk_size_threshold=CHUNK_SIZE_THRESHOLD,
            fps=round(robot.rate_hz),
            aggregate_fn_name=aggregate,
        )
        self._client = RobotClient(config)
        self._wire = _Wire(self._client)
        self._client.stub = self._wire
        self._client.start_barrier = threading.Barrier(1)
        self._row = 1.0 / robot.rate_hz

    def wants(self, now_s: float) -> bool:
        """When its own rule says so; it looks once a row, as its loop does."""
        on_row = abs(now_s / self._row - round(now_s / self._row)) < 1e-6
        return on_row and bool(self._client._ready_to_send_observation())

    def ask(self, now_s: float) -> int:
        """Send an observation; remembers the time step that the client gave it."""
        self._client.shutdown_event.clear()
        self._client.control_loop_observation("replay")
        sent = self._wire.sent
        if sent is None:
            raise RuntimeError("lerobot's client sent no observation; has its protocol changed?")
        self._wire.sent = None
        return int(sent.get_timestep())

    def receive(self, rows: Array, captured_s: float, asked: Any, now_s: float) -> bool:
        """The server numbers the actions from the time step of the observation; the client merges them."""
        actions = [
            TimedAction(timestamp=captured_s + i * self._row, timestep=asked + i, action=torch.from_numpy(row))
            for i, row in enumerate(rows)
        ]
        self._wire.answer = pickle.dumps(actions)
        self._client.shutdown_event.clear()
        self._client.receive_actions()
        self._fresh = True
        return True

    def _next(self, now_s: float) -> Array | None:
        if not self._client.actions_available():
            return None
        with contextlib.suppress(Empty):
            self._client.control_loop_action()
            position: Array = self._client.robot.position.copy()
            return position
        return None


class RtcPlayer(RowPlayer):
    """lerobot's RTC `ActionQueue`, filled as its inference engine does: rows counted by the latency are left out.

    The guidance that RTC adds inside the policy cannot be replayed; the chunks are the same for every player.
    """

    def __init__(self, robot: Embodiment, start: Array, multiple: int, interpolated: bool = False) -> None:
        super().__init__("lerobot RTC queue", robot, start, multiple, interpolated)
        self._queue = ActionQueue(RTCConfig(enabled=True))

    def wants(self, now_s: float) -> bool:
        """When no more than the threshold is left."""
        return bool(self._queue.qsize() <= RTC_QUEUE_THRESHOLD)

    def ask(self, now_s: float) -> tuple[float, int]:
        """When it asked and where its queue stood."""
        return now_s, self._queue.get_action_index()

    def receive(self, rows: Array, captured_s: float, asked: Any, now_s: float) -> bool:
        """Replace the queue by the rows that the latency has not used up."""
        began, index = asked
        delay = math.ceil((now_s - began) * self._robot.rate_hz - 1e-9)
        actions = torch.from_numpy(rows)
        self._queue.merge(actions, actions, delay, index)
        self._fresh = True
        return True

    def _next(self, now_s: float) -> Array | None:
        action = self._queue.get()
        return None if action is None else action.numpy()


def lerobot_players(robot: Embodiment, start: Array, multiple: int) -> list[Player]:
    """Every player of lerobot, with steps and interpolated, standing at `start` (dof,)."""
    out: list[Player] = []
    for interpolated in (False, True):
        out.append(SynchronousPlayer(robot, start, multiple, interpolated))
        out += [AsynchronousPlayer(name, robot, start, multiple, interpolated) for name in AGGREGATES]
        out.append(RtcPlayer(robot, start, multiple, interpolated))
    return out
