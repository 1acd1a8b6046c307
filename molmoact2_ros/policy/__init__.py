"""From an observation to an action chunk: checkpoint, model, prediction. Importing this room loads numpy only."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.checkpoint import Checkpoint, CheckpointError, Choices, open_checkpoint
from molmoact2_ros.policy.interface import Observation, Policy, Prediction
from molmoact2_ros.policy.options import MAX_GAP_S, BackendMissingError, InferenceOptions, RemoteOptions
from molmoact2_ros.policy.rtc import RTCOptions

BACKENDS = ("auto", "torch", "onnxruntime", "tensorrt", "reference")
"""torch, onnxruntime, tensorrt: the reference's weights in stages, with the same codes and actions; reference: its own
`predict_action`; auto: onnxruntime on a CPU where the checkpoint is compiled for it, else torch (docs/backends.md).
And `remote:` with an address: another machine's (docs/remote.md)."""
REMOTE_NEEDS = ("msgpack", "websockets", "httpx", "cv2")


def open_policy(
    checkpoint: str | Path,
    robot: Embodiment,
    norm_tag: str,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    seed: int = 0,
    cameras: tuple[str, ...] | None = None,
    choices: Choices | None = None,
    options: InferenceOptions | None = None,
    rtc: RTCOptions | None = None,
    max_gap_s: float = MAX_GAP_S,
    remote: RemoteOptions | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    log: Callable[[str], None] | None = None,
) -> Policy:
    """Open a checkpoint and return the policy that runs it.

    Args:
        checkpoint: a directory (released, or written by `lerobot-train`), the name of a bundled checkpoint, or a
            Hugging Face id or address, with `@revision` if need be.
        robot: the embodiment that will execute the chunks; checked against the checkpoint.
        backend: one of `BACKENDS`, or remote:ws://host:port or remote:http://host:port/act, where the checkpoint, what
            runs it and how is said on the other machine.
        norm_tag: tag in `norm_stats.json`, always explicit: another tag is another robot's scaling. Of a checkpoint
            that `lerobot-train` wrote, which has one scaling and no tags, the robot's own or none.
        device: `cpu`, `cuda`, `cuda:N`, or `auto` (a GPU when there is one).
        dtype: `float32`, `bfloat16`, `float16`, `mixed` (bfloat16 matrices; action expert, norms and rotary positions
            in float32), or `auto` (float32 on a CPU, mixed on a GPU), whatever the file holds. Backends other than
            torch take bfloat16 for mixed.
        threads: CPU threads of torch in this process, 0 for its default.
        seed: of the flow's noise.
        cameras: those of `choices`, for short.
        choices: what the user says of cameras, base and joint frame, where the checkpoint leaves it open.
        options: kind of actions and how depth is predicted; backend reference has the default ones only.
        rtc: guidance by the last chunk (off by default); not with backend reference.
        max_gap_s: depth that is older is not replayed, s.
        remote: how another machine is spoken to.
        now_ns: the clock of the observations' stamps, ns; latencies are measured with it.
        log: takes one line for the user when something changes that the prediction cannot show.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or made for something else.
        ValueError: unknown backend, device or dtype, or options that do not go together.
        RemoteError: the other machine does not answer.
    """
    if backend.startswith("remote:"):
        missing = [name for name in REMOTE_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendMissingError(
                f"backend remote needs {', '.join(missing)}: pip install -r requirements/robot.txt"
            )
        from molmoact2_ros.policy.remote.opening import open_remote

        return open_remote(
            backend,
            robot,
            checkpoint=str(checkpoint),
            norm_tag=norm_tag,
            choices=replace(choices or Choices(), cameras=cameras) if cameras else choices or Choices(),
            options=options or InferenceOptions(),
            here={"device": (device, "auto"), "dtype": (dtype, "auto"), "threads": (threads, 0)},
            remote=remote or RemoteOptions(),
            rtc=rtc,
            seed=seed,
            max_gap_s=max_gap_s,
            now_ns=now_ns,
            log=log or logging.getLogger(__name__).warning,
        )
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; this version has: {', '.join(BACKENDS)}, remote:ws://...")
    options, rtc = options or InferenceOptions(), rtc or RTCOptions()
    _check(backend, options, rtc)
    opened = open_checkpoint(checkpoint, robot, norm_tag, cameras, options.action_mode, choices)
    say = log or logging.getLogger(__name__).warning
    for note in opened.notes:
        say(note)
    if backend != "reference":
        from molmoact2_ros.policy.staged_policy import StagedPolicy

        return StagedPolicy(
            opened,
            robot,
            device=device,
            dtype=dtype,
            threads=threads,
            seed=seed,
            log=say,
            options=options,
            rtc=rtc,
            max_gap_s=max_gap_s,
            now_ns=now_ns,
            backend=backend,
        )
    from molmoact2_ros.policy.reference_policy import ReferencePolicy

    return ReferencePolicy(
        opened, robot, device=device, dtype=dtype, threads=threads, seed=seed, log=say, max_gap_s=max_gap_s
    )


def _check(backend: str, options: InferenceOptions, rtc: RTCOptions) -> None:
    default = InferenceOptions()
    changed = [name for name, value in vars(options).items() if value != getattr(default, name)]
    changed += ["rtc.enabled"] if rtc.enabled else []
    if backend == "reference" and changed:
        raise ValueError(f"{', '.join(changed)}: needs backend torch; the reference has its own way only")
    if rtc.enabled and options.action_mode == "discrete":
        raise ValueError("rtc guides the flow, which action_mode discrete has not; switch one of them off")


__all__ = [
    "BACKENDS",
    "Checkpoint",
    "CheckpointError",
    "Choices",
    "InferenceOptions",
    "Observation",
    "Policy",
    "Prediction",
    "RTCOptions",
    "RemoteOptions",
    "open_checkpoint",
    "open_policy",
]
