"""`molmoact2 bench redraft`: forwards of the language model by what is drafted after a wrong code.

Frames of the simulated cell while its expert picks the cube, and random scenes for models with random weights. The
codes are the same whatever is drafted; only the forwards differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.policy.calls import TASK, answer, calls
from molmoact2_ros.benchmarking.policy.report import put_section
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import Checkpoint, open_checkpoint
from molmoact2_ros.policy.options import REDRAFTS, InferenceOptions
from molmoact2_ros.training.random_model import write_random_checkpoint

TITLE = "## Forwards by what is drafted after a wrong code"
ROW_COSTS = {"free": 0.0, "CPU": None}
"""Blocks as long as they come (a GPU), or as long as they are worth it (a CPU)."""
FRAME_S = 0.2

Frame = tuple[list[NDArray[np.uint8]], NDArray[np.float64]]


@dataclass(frozen=True)
class Count:
    """Mean over frames (the first of an episode left out): forwards, cells asked and drafts corrected."""

    model: str
    mode: str
    blocks: str
    redraft: str
    forwards: float
    cells: float
    corrections: float
    frames: int


def bench_redraft(page: Path, episodes: int, frames: int, seed: int) -> Path:
    """Count on the cell's checkpoint and on a random model, and put a section into `page`."""
    robot = embodiment("so101")
    trained = open_checkpoint("so101_cell", robot, robot.norm_tag)
    shown = [list(cell_frames(trained.cameras, number, frames, seed)) for number in range(episodes)]
    rows = [row for mode in ("adaptive", "full") for row in on_frames("so101_cell", trained, shown, mode)]
    with tempfile.TemporaryDirectory() as scratch:
        written = write_random_checkpoint(Path(scratch), "small", robot, TASK)
        drawn = open_checkpoint(written, robot, robot.norm_tag)
        for share in (0.1, 0.25, 0.5):
            rows += on_drafts(drawn, share, frames)
    put_section(page, TITLE, _lines(rows, episodes))
    return page


def cell_frames(cameras: Sequence[str], number: int, frames: int, seed: int) -> Iterator[Frame]:
    """Pictures and measured joints (rad) of an episode of the simulated SO-101, `FRAME_S` apart, driven by its
    expert."""
    from molmoact2_ros.simulation.cell import So101Cell
    from molmoact2_ros.simulation.expert import expert_chunk

    cell = So101Cell(seed=seed)
    step = 1.0 / 30.0
    try:
        cell.reset(number)
        for _ in range(frames):
            joints = cell.joints()[0]
            yield [cell.render(name).copy() for name in cameras], joints
            chunk = expert_chunk(joints, cell.object_pose()[0])
            for row in range(round(FRAME_S / step)):
                cell.command(chunk[row])
                cell.advance(step)
    finally:
        cell.close()


def on_frames(name: str, opened: Checkpoint, shown: Sequence[Sequence[Frame]], mode: str) -> Iterator[Count]:
    """Count on episodes of frames, each call with the cache and draft of the one before."""
    import torch

    robot = embodiment("so101")
    for blocks, redraft, model in _models(opened, mode):
        seen: list[tuple[int, int, int]] = []
        for episode in shown:
            model.reset()
            cache = None
            for images, joints in episode:
                state = robot.model_from_joints(joints, opened.frame)
                found = model.predict(images, TASK, state, depth_cache=cache, generator=torch.Generator())
                if cache is not None:
                    seen.append((found.forwards, int(found.depth_updated.sum()), model.corrections))
                cache = found.depth_cache
        yield _count(name, mode, blocks, redraft, seen)


def on_drafts(opened: Checkpoint, share: float, frames: int) -> Iterator[Count]:
    """Count on a random model whose draft is wrong in every second of a share of changed cells."""
    robot = embodiment("so101")
    state = robot.model_from_joints(robot.rest_position)
    made = None
    for blocks, redraft, model in _models(opened, "adaptive"):
        made = made or calls(model, state, np.random.default_rng(0), len(opened.cameras), share, frames)
        seen = []
        for call in made:
            found = answer(model, call)
            seen.append((found.forwards, int(found.depth_updated.sum()), model.corrections))
        yield _count(f"random, {share:.0%} changed", "adaptive", blocks, redraft, seen)


def _models(opened: Checkpoint, mode: str) -> Iterator[tuple[str, str, Any]]:
    import torch

    from molmoact2_ros.policy.staged_model import StagedModel

    first = None
    for blocks, cost in ROW_COSTS.items():
        for redraft in REDRAFTS:
            options = InferenceOptions(depth_mode=mode, redraft=redraft)
            options = replace(options, row_cost=cost)
            first = StagedModel(
                opened,
                torch.device("cpu"),
                torch.float32,
                lambda text: None,
                options,
                loaded=getattr(first, "model", None),
            )
            yield blocks, redraft, first


def _count(model: str, mode: str, blocks: str, redraft: str, seen: Sequence[tuple[int, int, int]]) -> Count:
    means = np.mean(np.array(seen, dtype=float), axis=0)
    return Count(model, mode, blocks, redraft, float(means[0]), float(means[1]), float(means[2]), len(seen))


def _lines(rows: Sequence[Count], episodes: int) -> list[str]:
    lines = [
        TITLE,
        "",
        f"- Date: {date.today().isoformat()}",
        *(f"- {key}: {value}" for key, value in machine().items()),
        f"- so101_cell: {episodes} episodes of the simulated cell driven by its expert, a frame every "
        f"{FRAME_S * 1e3:.0f} ms. random: small size, made drafts.",
        "- Mean a frame. prev: the last frame's codes again; jacobi: the verifying forward's own argmax; auto: what",
        "  has been right more often. Blocks: free as on a GPU, or in windows that are worth their rows on a CPU.",
        "",
        "| model | depth mode | blocks | redraft | forwards | cells asked | drafts corrected | frames |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row.model} | {row.mode} | {row.blocks} | {row.redraft} | {row.forwards:.2f} | {row.cells:.1f} | "
        f"{row.corrections:.2f} | {row.frames} |"
        for row in rows
    ]
