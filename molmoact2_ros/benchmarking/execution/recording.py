"""Records a chunk for every frame of the simulated SO-101 cell: the policy on its checkpoint, the executor on the arm.

Time stands still while the policy thinks, so the recording is the same on every machine: the arm follows every sixth
chunk, `DELAY_FRAMES` after its image, as it would in real time; the chunks of the frames between are only kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.execution.streams import save
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.executor import Executor, ExecutorConfig

Array = NDArray[np.float64]

ROBOT = embodiment("so101")
TASK = "pick up the red cube"
EPISODES = 3
SEED = 3000
FRAMES = 300
DELAY_FRAMES = 6
TICKS = 3
"""Set-points a frame."""
START_NS = 1_000_000_000_000


def record(path: Path) -> int:
    """Run the episodes, write the chunks to `path` and return how many there are. Takes about a minute on two cores."""
    from molmoact2_ros.policy import open_policy
    from molmoact2_ros.share import bundled_checkpoint
    from molmoact2_ros.simulation.cell import So101Cell

    policy = open_policy(bundled_checkpoint(ROBOT.family), ROBOT, ROBOT.norm_tag, backend="torch", device="cpu")
    cell = So101Cell(seed=SEED)
    try:
        episodes = []
        for number in range(EPISODES):
            policy.reset()
            cell.reset(number)
            episodes.append(_episode(policy, cell))
            outcome = "picked" if cell.episode.success else "not picked"
            print(f"episode {number + 1}/{EPISODES}: {len(episodes[-1])} chunks, cube {outcome}", file=sys.stderr)
    finally:
        cell.close()
    save(path, ROBOT, episodes)
    return sum(len(rows) for rows in episodes)


def _episode(policy, cell) -> Array:  # type: ignore[no-untyped-def]  # both belong to rooms imported late
    """Chunks (n, h, dof) of one episode, to a second after its success or for `FRAMES`."""
    from molmoact2_ros.policy import Observation

    frame_ns = round(1e9 / ROBOT.rate_hz)
    executor = Executor(ROBOT, ExecutorConfig(rate_hz=ROBOT.rate_hz * TICKS))
    times = [(i + 1) / ROBOT.rate_hz for i in range(ROBOT.horizon)]
    executor.configured()
    kept: list[Array] = []
    won_at = FRAMES
    now_ns = START_NS
    for frame in range(FRAMES):
        joints, _ = cell.joints()
        if frame == 0:  # an arm that has stood there for a while
            for before_ns in (400_000_000, 200_000_000, 100_000_000):
                executor.on_joint_state(ROBOT.joint_names, joints, now_ns - before_ns)
        executor.on_joint_state(ROBOT.joint_names, joints, now_ns)
        if frame == 0:
            executor.arm(now_ns)
        images = {name: cell.render(name) for name in cell.cameras}
        stamps = dict.fromkeys(images, now_ns)
        kept.append(policy.infer(Observation(images, stamps, joints, now_ns, TASK)).chunk_joints)
        late = frame - DELAY_FRAMES
        if late >= 0 and late % DELAY_FRAMES == 0:
            stamp = START_NS + late * frame_ns
            executor.on_chunk(ChunkMessage(stamp, ROBOT.joint_names, kept[late].tolist(), times), now_ns)
        for tick in range(1, TICKS + 1):
            moment = now_ns + tick * frame_ns // TICKS
            setpoint = executor.tick(moment)
            if setpoint is not None:
                cell.command(setpoint)
            cell.advance(1.0 / (ROBOT.rate_hz * TICKS))
            executor.on_joint_state(ROBOT.joint_names, cell.joints()[0], moment)
        now_ns += frame_ns
        if cell.episode.success:
            won_at = min(won_at, frame)
        if frame >= won_at + ROBOT.rate_hz:
            break
    return np.stack(kept)
