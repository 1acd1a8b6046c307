"""The policy of another machine behind `infer` and `reset`.

Times are the robot's: a chunk's stamp is the capture stamp that went out with its observation, so that the two clocks
need not agree. What a call really took from the picture on goes out with the next one, where it sets the delay of
real-time chunking.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.interface import Observation, Prediction, UnendedSequenceError
from molmoact2_ros.policy.options import MAX_GAP_S, RemoteOptions
from molmoact2_ros.policy.remote.description import RemoteCheckpoint, read
from molmoact2_ros.policy.remote.links import Link, RemoteError, open_link, read_token
from molmoact2_ros.policy.remote.pictures import encode
from molmoact2_ros.policy.rtc import RTCOptions

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0
"""Between attempts to connect; each pause is twice the one before."""

FIRST_CALL_S = 30.0
"""For the first call: the server may have to prepare for pictures of this size."""


class RemotePolicy:
    """A `Policy` whose model runs elsewhere. One call is in flight at a time.

    Invariant: what is given out answers the observation that was handed in: it carries its stamp, and a link whose
    answer was late, damaged or another's is closed.
    """

    def __init__(
        self,
        address: str,
        robot: Embodiment,
        options: RemoteOptions,
        *,
        rtc: RTCOptions | None = None,
        seed: int = 0,
        max_gap_s: float = MAX_GAP_S,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Connect to the server at `address` (see `open_link`).

        Raises:
            ValueError: no such address, or the token file cannot be used.
            RemoteError: nobody answers.
            CheckpointError: the server is for another robot, or none of this package.
        """
        self._address, self._robot, self._options = address, robot, options
        self._token = read_token(options.token_file)
        self._now_ns, self._monotonic, self._log = now_ns, monotonic, log
        # The server keeps an episode under this name, also when the connection is lost.
        self._session = uuid.uuid4().hex
        self._settings = {"rtc": asdict(rtc or RTCOptions()), "seed": seed, "max_gap_s": max_gap_s}
        self._reset = True
        self._latency_s: float | None = None
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self._lost = ""
        self._deadline_s = FIRST_CALL_S
        self.bytes_sent = 0
        """Of the pictures of the last call."""
        self._link: Link | None = open_link(address, self._token, options.deadline_s)
        self._checkpoint = read(self._link.describe(), robot, address)

    @property
    def checkpoint(self) -> RemoteCheckpoint:
        """What the server runs."""
        return self._checkpoint

    def reset(self) -> None:
        """Begin an episode; the server hears of it with the next call."""
        self._reset = True

    def close(self) -> None:
        """Give the connection back."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def infer(self, observation: Observation) -> Prediction:
        """Ask the server; see `Policy.infer`.

        Raises:
            RemoteError: it cannot be reached (the next attempt waits a little longer), is late, or refuses.
        """
        begun = time.perf_counter()
        message = self._message(observation)
        encoded = time.perf_counter()
        link = self._connected()
        try:
            answer = link.call(message, self._deadline_s)
            prediction = self._prediction(answer, observation)
        except RemoteError as error:
            self._drop(str(error))
            if "UnendedSequenceError" in str(error):
                raise UnendedSequenceError(str(error)) from error
            raise
        done = time.perf_counter()
        self._reset, self._deadline_s = False, self._options.deadline_s
        self._latency_s = (self._now_ns() - observation.stamp_ns) * 1e-9
        server = answer.get("server_timing")
        said = server.items() if isinstance(server, Mapping) else ()
        stages = {str(key): float(value) for key, value in said if isinstance(value, int | float)}
        inside = stages.get("total_ms", 0.0)
        timings = {key.removesuffix("_ms"): value for key, value in stages.items() if key != "total_ms"}
        timings |= {
            "encode": 1e3 * (encoded - begun),
            "server": inside,
            "network": max(1e3 * (done - encoded) - inside, 0.0),
            "total": 1e3 * (done - begun),
        }
        return replace(prediction, timings_ms=timings)

    def _message(self, observation: Observation) -> dict[str, Any]:
        wanted, got = dict.fromkeys(self._checkpoint.cameras), set(observation.images)
        if got != set(wanted):
            raise ValueError(
                f"the checkpoint needs the cameras {', '.join(wanted)}, got {', '.join(sorted(got)) or 'none'}; "
                "start the missing ones and leave out the others"
            )
        quality = self._options.jpeg_quality
        images: dict[str, bytes | NDArray[np.uint8]] = {}
        for name in wanted:
            image = np.ascontiguousarray(observation.images[name])
            images[name] = encode(image, quality) if quality else image
        self.bytes_sent = sum(len(image) if isinstance(image, bytes) else image.nbytes for image in images.values())
        state = self._robot.model_from_joints(observation.joints, self._checkpoint.frame)
        return {
            "images": images,
            "state": state,
            "instruction": observation.task,
            "stamps_ns": {**observation.image_stamps_ns, "state": observation.joints_stamp_ns},
            "session": self._session,
            "settings": self._settings,
            "reset": self._reset,
            # Below zero: not known yet.
            "latency_s": -1.0 if self._latency_s is None else self._latency_s,
        }

    def _connected(self) -> Link:
        if self._link is not None:
            return self._link
        now = self._monotonic()
        if now < self._not_before:
            raise RemoteError(self._lost or "not connected")
        try:
            link = open_link(self._address, self._token, self._options.deadline_s)
        except RemoteError as error:
            self._lost = str(error)
            self._not_before = self._monotonic() + self._pause_s
            self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
            raise
        found = read(link.describe(), self._robot, self._address)
        if found != self._checkpoint:
            link.close()
            raise RemoteError(
                f"{self._address} runs {found.name} now, where it ran {self._checkpoint.name}, or with other settings; "
                "start the policy node again if that is meant"
            )
        self._log(f"connected again to {self._address}")
        self._link, self._pause_s = link, FIRST_PAUSE_S
        return link

    def _drop(self, reason: str) -> None:
        self._lost = reason
        # At once where the server may only have been restarted, or refused what it was sent.
        self._not_before = self._monotonic()
        self.close()

    def _prediction(self, answer: Mapping[str, Any], observation: Observation) -> Prediction:
        """What `answer` holds, looked at before it is believed."""
        actions, size = answer.get("actions"), (self._checkpoint.horizon, self._robot.dof)
        if not isinstance(actions, np.ndarray) or actions.shape != size or actions.dtype.kind != "f":
            raise RemoteError(f"{self._address}: expected actions {size}, got {_shown(actions)}")
        if not np.all(np.isfinite(actions)):
            raise RemoteError(f"{self._address}: actions that are not finite")
        if answer.get("stamp_ns") != observation.stamp_ns:
            raise RemoteError(
                f"{self._address}: an answer to another observation; is there a proxy that keeps answers?"
            )
        side = self._checkpoint.depth_side
        codes, updated = answer.get("depth_codes"), answer.get("depth_updated")
        if side is not None and not all(_is_grid(value, side) for value in (codes, updated)):
            raise RemoteError(f"{self._address}: expected depth of {side} x {side}, got {_shown(codes)}")
        forwards, guided = answer.get("forwards"), answer.get("guided_rows", 0)
        return Prediction(
            stamp_ns=observation.stamp_ns,
            chunk_model=actions.astype(np.float32),
            chunk_joints=self._robot.joints_from_model(actions.astype(np.float64), self._checkpoint.frame),
            rate_hz=self._checkpoint.rate_hz,
            depth_codes=None if side is None else np.asarray(codes).astype(np.uint8),
            depth_updated=None if side is None else np.asarray(updated).astype(bool),
            timings_ms={},
            forwards=forwards if isinstance(forwards, int) else None,
            guided_rows=guided if isinstance(guided, int) else 0,
        )


def _is_grid(value: object, side: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape == (side, side)


def _shown(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
