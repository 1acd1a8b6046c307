"""What a server says of the checkpoint that it runs, and what the client makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from molmoact2_ros.embodiments import Embodiment, ModelFrame
from molmoact2_ros.policy.checkpoint import CheckpointError
from molmoact2_ros.policy.interface import Description

SERVER = "molmoact2_ros"
PROTOCOL = 1
"""Grows when a client of before could misunderstand a server of now."""


@dataclass(frozen=True)
class RemoteCheckpoint:
    """The checkpoint that another machine runs; a `Description`. `metadata` has `state_stats`."""

    name: str
    layout: str
    norm_tag: str
    cameras: tuple[str, ...]
    metadata: Mapping[str, Any]
    frame: ModelFrame
    horizon: int
    rate_hz: float
    depth_side: int | None


def describe(checkpoint: Description, robot: Embodiment) -> dict[str, Any]:
    """What a client must know of `checkpoint`, as plain values."""
    stats = {key: _plain(value) for key, value in dict(checkpoint.metadata["state_stats"]).items()}
    return {
        "server": SERVER,
        "protocol": PROTOCOL,
        "robot": robot.family,
        "name": checkpoint.name,
        "layout": checkpoint.layout,
        "norm_tag": checkpoint.norm_tag,
        "cameras": list(checkpoint.cameras),
        "frame": checkpoint.frame.value,
        "horizon": checkpoint.horizon,
        "rate_hz": checkpoint.rate_hz,
        "depth_side": checkpoint.depth_side,
        "state_stats": stats,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def read(found: Mapping[str, Any], robot: Embodiment, address: str) -> RemoteCheckpoint:
    """The description in what the server at `address` said, held against `robot`.

    Raises:
        CheckpointError: it is no server of this package, of another version, or for another robot.
    """
    if found.get("server") != SERVER:
        raise CheckpointError(
            f"{address} answers, but is no server of molmoact2 serve: it does not say which checkpoint, cameras and "
            "units it has, and a robot that guesses them may move the wrong way"
        )
    if found.get("protocol") != PROTOCOL:
        raise CheckpointError(
            f"{address} speaks protocol {found.get('protocol')!r}, this version {PROTOCOL}; install the same version "
            "of molmoact2_ros on both machines"
        )
    if found.get("robot") != robot.family:
        raise CheckpointError(
            f"{address} serves a robot {found.get('robot')!r}, this one is {robot.family!r}; start there molmoact2 "
            f"serve --robot {robot.name}"
        )
    try:
        cameras = _names(found["cameras"])
        side = found["depth_side"]
        read = RemoteCheckpoint(
            name=str(found["name"]),
            layout=str(found["layout"]),
            norm_tag=str(found["norm_tag"]),
            cameras=cameras,
            metadata={"state_stats": dict(found["state_stats"])},
            frame=ModelFrame(found["frame"]),
            horizon=int(found["horizon"]),
            rate_hz=float(found["rate_hz"]),
            depth_side=None if side is None else int(side),
        )
        sound = 1 <= read.horizon <= robot.horizon and read.rate_hz == robot.rate_hz
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{address}: what it says of its checkpoint cannot be used: {error!r}") from error
    if not sound:
        raise CheckpointError(
            f"{address}: {read.horizon} rows at {read.rate_hz:g} Hz, {robot.name} takes up to {robot.horizon} at "
            f"{robot.rate_hz:g}"
        )
    return read


def _names(found: object) -> tuple[str, ...]:
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ValueError(f"cameras must be a list of names, got {found!r:.80}")
    return tuple(str(name) for name in found)
