"""The policy behind `backend: remote:...`: what the user says here must be what the server does, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.checkpoint import CheckpointError, Choices
from molmoact2_ros.policy.options import InferenceOptions, RemoteOptions
from molmoact2_ros.policy.remote.policy import RemotePolicy

PREFIX = "remote:"


def open_remote(
    backend: str,
    robot: Embodiment,
    *,
    checkpoint: str,
    norm_tag: str,
    choices: Choices,
    options: InferenceOptions,
    here: dict[str, tuple[Any, Any]],
    remote: RemoteOptions,
    log: Callable[[str], None],
    **rest: Any,
) -> RemotePolicy:
    """A client of the server that `backend` names, as remote:ws://host:port or remote:http://host:port/act.

    Args:
        here: what is said of this machine's model, and what says nothing: (value, default) by name.
        rest: rtc, seed, max_gap_s and now_ns of `RemotePolicy`.

    Raises:
        ValueError: something is set here that only the server can do, or the address is none.
        RemoteError: nobody answers.
        CheckpointError: what is served there does not fit the robot.
    """
    default = InferenceOptions()
    said = [name for name, (value, nothing) in here.items() if value != nothing]
    said += [name for name, value in vars(options).items() if value != getattr(default, name)]
    said += ["checkpoint"] if checkpoint else []
    said += [name for name in ("cameras", "base") if getattr(choices, name)]
    said += ["joint_frame"] if choices.joint_frame != "auto" else []
    if said:
        raise ValueError(
            f"backend {backend}: {', '.join(said)} must be said to molmoact2 serve on the other machine; leave out here"
        )
    policy = RemotePolicy(backend.removeprefix(PREFIX), robot, remote, log=log, **rest)
    found = policy.checkpoint
    absent = [
        name for name in dict.fromkeys(found.cameras) if choices.cell_cameras and name not in choices.cell_cameras
    ]
    try:
        if norm_tag and norm_tag != found.norm_tag:
            raise CheckpointError(f"{backend}: it scales by norm tag {found.norm_tag!r}, {norm_tag!r} is asked for")
        if absent:
            raise CheckpointError(
                f"{backend}: it wants the cameras {', '.join(found.cameras)}, the cell has "
                f"{', '.join(choices.cell_cameras)}; start it with --cameras and a camera of this cell for each picture"
            )
    except CheckpointError:
        policy.close()
        raise
    return policy
