"""A policy server in this process for tests, over a tiny random checkpoint, and what its clients send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.policy import Observation, Policy, RTCOptions, open_policy
from molmoact2_ros.policy.model_policy import ModelPolicy
from molmoact2_ros.serving.observations import Settings
from molmoact2_ros.serving.running import PolicyServer, ServeOptions
from molmoact2_ros.serving.sessions import Sessions

SECOND = 1_000_000_000
TASK = "pick up the red cube"


def local_policy(directory: Path, rtc: RTCOptions | None = None) -> ModelPolicy:
    """The policy of a robot that has it on its own machine."""
    policy: Policy = open_policy(directory, ROBOT, ROBOT.norm_tag, backend="torch", device="cpu", threads=1, rtc=rtc)
    assert isinstance(policy, ModelPolicy)
    return policy


def served(directory: Path, settings: Settings | None = None, **how: Any) -> Sessions:
    return Sessions(local_policy(directory), ROBOT, settings, **how)


def server(sessions: Sessions, **options: Any) -> PolicyServer:
    return PolicyServer(sessions, ServeOptions(port=0, **options))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def scene(seed: int, step: int) -> np.ndarray:
    """A picture of robot `seed` in which a corner differs from step to step."""
    image = picture(seed).copy()
    image[:20, :20] = picture(1000 * seed + step)[:20, :20]
    return image


def observe(seed: int, step: int = 0, stamp_ns: int = 0, task: str = TASK) -> Observation:
    """What robot `seed` sees at its step `step`."""
    stamp_ns = stamp_ns or (10 + step) * SECOND // 10
    joints = ROBOT.rest_position + 0.01 * step + 0.02 * seed
    stamps = {"front": stamp_ns, "wrist": stamp_ns + 5}
    return Observation(
        {"front": scene(seed, step), "wrist": scene(seed + 50, step)}, stamps, joints, stamp_ns + 9, task
    )


def state_of(observation: Observation) -> np.ndarray:
    """Its joints as others' clients send them."""
    return ROBOT.model_from_joints(observation.joints).astype(np.float32)


__all__ = ["ROBOT", "make_checkpoint"]
