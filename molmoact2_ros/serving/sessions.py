"""Sessions: what the server keeps of each robot between its calls, and one policy behind them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy import Choices, InferenceOptions, Observation, Prediction, open_policy
from molmoact2_ros.policy.interface import Description, UnendedSequenceError
from molmoact2_ros.policy.model_policy import ModelPolicy
from molmoact2_ros.serving.observations import Call, RequestError, Settings
from molmoact2_ros.serving.turns import BusyError, Turns
from molmoact2_ros.share import bundled_checkpoint

MOST_SESSIONS = 64
WARM_UP_SIZE = (240, 320, 3)


@dataclass
class _Session:
    policy: ModelPolicy
    settings: Settings
    used: float
    asking: int = 0


class Sessions:
    """Answers calls, each in its session. Thread-safe.

    Invariant: depth cache, draft, last chunk and noise belong to one session; only the worker thread calls the policy.

    Args:
        policy: its weights serve every session.
        settings: of a session whose client does not choose.
        idle_s: a session that is not used for so long ends.
    """

    def __init__(
        self,
        policy: ModelPolicy,
        robot: Embodiment,
        settings: Settings | None = None,
        *,
        idle_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.robot = robot
        self._policy, self._settings, self._idle_s = policy, settings or Settings(), idle_s
        self._monotonic, self._log = monotonic, log
        self._turns = Turns()
        self._lock = threading.Lock()
        self._open: dict[str, _Session] = {}

    @property
    def checkpoint(self) -> Description:
        """What is being served."""
        return self._policy.checkpoint

    @property
    def steps(self) -> int | None:
        """Steps of the flow, where the checkpoint says it."""
        steps = self._policy.checkpoint.config.get("flow_matching_num_steps")
        return steps if isinstance(steps, int) else None

    def __len__(self) -> int:
        return len(self._open)

    def warm_up(self) -> None:
        """Run once on a black image: the first call is slow, and a checkpoint that cannot run is refused here."""
        cameras, now = tuple(dict.fromkeys(self.checkpoint.cameras)), time.time_ns()
        images = {name: np.zeros(WARM_UP_SIZE, np.uint8) for name in cameras}
        seen = Observation(images, dict.fromkeys(cameras, now), self.robot.rest_position, now, "hold still")
        try:
            self._turns.submit("", lambda: self._policy.infer(seen)).result()
        except UnendedSequenceError as error:
            # What the model makes of a black image is no fault of the checkpoint.
            self._log(f"on a black image: {error}")

    def ask(self, name: str, call: Call) -> Future[tuple[Prediction | None, float, float]]:
        """Have `call` answered in the session `name`: a prediction (None for a reset alone), and how long it waited for
        its turn and took, ms.

        Raises:
            BusyError: too many sessions, or too many calls of this one.
        """
        session = self._session(name, call.settings)
        begun = time.perf_counter()

        def answer() -> tuple[Prediction | None, float, float]:
            started = time.perf_counter()
            policy = session.policy
            if call.reset:
                policy.reset()
            found = None
            if call.observation is not None:
                # A client's own stamps say nothing of how long its calls take: it measures that, too.
                latency = -1.0 if call.own_clock and call.latency_s is None else call.latency_s
                found = policy.infer(call.observation, latency)
            return found, 1e3 * (started - begun), 1e3 * (time.perf_counter() - started)

        try:
            future = self._turns.submit(name, answer)
        except BusyError:
            self._done(session)
            raise
        future.add_done_callback(lambda _: self._done(session))
        return future

    def end(self, name: str) -> None:
        """Forget a session."""
        with self._lock:
            self._open.pop(name, None)

    def sweep(self) -> None:
        """End the sessions that nobody uses any more."""
        now = self._monotonic()
        with self._lock:
            over = [
                name for name, session in self._open.items() if not session.asking and now - session.used > self._idle_s
            ]
            for name in over:
                del self._open[name]

    def close(self) -> None:
        """End the worker after its present call."""
        self._turns.close()

    def _session(self, name: str, settings: Settings | None) -> _Session:
        self.sweep()
        with self._lock:
            session = self._open.get(name)
            settings = settings or (self._settings if session is None else session.settings)
            if session is None or session.settings != settings:
                if session is None and len(self._open) >= MOST_SESSIONS:
                    self._make_room()
                made = self._policy.beside(
                    seed=settings.seed, rtc=settings.rtc, max_gap_s=settings.max_gap_s, log=self._log
                )
                session = self._open[name] = _Session(made, settings, self._monotonic())
            session.asking += 1
            return session

    def _make_room(self) -> None:
        idle = [(session.used, name) for name, session in self._open.items() if not session.asking]
        if not idle:
            raise BusyError(f"{len(self._open)} clients are being served; no more are taken")
        del self._open[min(idle)[1]]

    def _done(self, session: _Session) -> None:
        with self._lock:
            session.asking -= 1
            session.used = self._monotonic()


def open_served(
    checkpoint: str,
    robot: Embodiment,
    norm_tag: str = "",
    *,
    base: str = "",
    joint_frame: str = "auto",
    cameras: tuple[str, ...] = (),
    action_mode: str = "continuous",
    depth_mode: str = "adaptive",
    backend: str = "auto",
    log: Callable[[str], None],
    **how: Any,
) -> ModelPolicy:
    """The policy that sessions share; see `open_policy` for the arguments.

    Args:
        checkpoint: empty: the simulated cell's own. norm_tag: empty: the robot's.
        how: device, dtype and threads.

    Raises:
        CheckpointError, ValueError: as `open_policy` has them.
    """
    own = bundled_checkpoint(robot.family)
    if not checkpoint and not (own / "config.json").is_file():
        raise ValueError(
            f"there is no trained checkpoint of the simulated {robot.name} cell; name one with --checkpoint (molmoact2 "
            "models lists the public ones)"
        )
    if backend.startswith("remote:"):
        raise ValueError(
            f"--backend {backend}: a server runs its model on this machine; use auto, torch, onnxruntime ..."
        )
    policy = open_policy(
        checkpoint or str(own),
        robot,
        norm_tag or robot.norm_tag,
        choices=Choices(cameras=cameras, base=base, joint_frame=joint_frame),
        options=InferenceOptions(action_mode=action_mode, depth_mode=depth_mode),
        backend=backend,
        log=log,
        **how,
    )
    assert isinstance(policy, ModelPolicy)
    return policy


def answer_of(
    prediction: Prediction | None, call: Call, waited_ms: float, took_ms: float, decoded_ms: float
) -> dict[str, Any]:
    """What the client gets: `actions` (rows, dof) float32 in the checkpoint's units, and how they came about."""
    timing = {"decode_ms": decoded_ms, "queue_ms": waited_ms, "infer_ms": took_ms}
    answer: dict[str, Any] = {"dt_ms": took_ms, "server_timing": timing}
    if prediction is None:
        answer["reset"] = True
    else:
        timing |= {f"{stage}_ms": value for stage, value in prediction.timings_ms.items() if stage != "total"}
        answer |= {
            "actions": prediction.chunk_model,
            "action_horizon": len(prediction.chunk_model),
            "stamp_ns": prediction.stamp_ns,
            "guided_rows": prediction.guided_rows,
            "forwards": prediction.forwards,
        }
        if prediction.depth_codes is not None and prediction.depth_updated is not None:
            answer |= {"depth_codes": prediction.depth_codes, "depth_updated": prediction.depth_updated}
    if call.timestamp is not None:
        answer["timestamp"] = call.timestamp
    timing["total_ms"] = decoded_ms + waited_ms + took_ms
    return answer


__all__ = ["BusyError", "RequestError", "Sessions", "answer_of"]
