"""`norm_stats.json` of the three robots in the released format, from published facts alone, and its refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import CheckpointError, open_checkpoint

Stats = dict[str, Any]
ROBOTS = ("franka", "so101", "yam")
SO_SWAPPED = ("shoulder_lift", "shoulder_pan", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
YAM_NAMES = [f"{side}_{j}" for side in ("left", "right") for j in (*(f"joint{i}" for i in range(1, 7)), "gripper")]
# Published quantiles of YAM and SO. DROID's are not published on the page of facts: a plausible set, inside the limits,
# with the gripper over its whole stroke.
QUANTILES: dict[str, dict[str, list[float]]] = {
    "yam": {
        "q01": [-0.66, 0.004, 0.014, -1.374, -0.359, -0.93, 0.051, -0.494, 0.005, 0.017, -1.424, -0.974, -0.472, 0.033],
        "q50": [-0.073, 1.449, 1.283, -0.802, 0.113, -0.222, 0.733, 0.082, 1.542, 1.252, -0.682, -0.129, 0.192, 0.697],
        "q99": [0.47, 2.244, 2.008, 0.134, 0.883, 0.334, 0.987, 0.738, 2.285, 2.061, 0.24, 0.53, 0.962, 0.995],
    },
    "so101": {
        "q01": [-41.9, 43.7, 38.4, 5.7, -63.5, 0.9],
        "q50": [3.1, 123.2, 124.4, 57.9, -11.0, 9.2],
        "q99": [48.3, 185.3, 173.1, 91.8, 42.9, 44.1],
    },
    "franka": {
        "q01": [-0.8, -0.9, -0.7, -2.7, -1.0, 1.0, -1.5, 0.0],
        "q50": [0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.0, 0.05],
        "q99": [0.8, 1.1, 0.7, -0.9, 1.0, 3.4, 1.6, 1.0],
    },
}
NAMES = {"yam": YAM_NAMES, "so101": None, "franka": None}
SETUPS = {
    "franka": ("franka_droid", "single franka robotic arm in droid", 15, False, 8, ("exterior", "wrist")),
    "so101": (
        "so100_so101_molmoact2",
        "single so100/so101 robotic arm in molmoact2",
        30,
        True,
        6,
        ("front", "wrist"),
    ),
    "yam": ("yam_dual_molmoact2", "bimanual yam robotic arms in molmoact2", 30, False, 14, ("top", "left", "right")),
}
"""Tag, setup_type, horizon, normalize_gripper, dimensions and cameras as the checkpoints were released."""


def released(robot: str) -> Stats:
    """The metadata of a tag in the released format, from the published facts alone."""
    _, setup, horizon, scaled, dof, cameras = SETUPS[robot]
    mask = [True] * dof
    for g in (6, 13) if robot == "yam" else (dof - 1,):
        mask[g] = scaled
    stats = {**QUANTILES[robot], "mask": mask, "count": 1000}
    if NAMES[robot]:
        stats["names"] = NAMES[robot]
    return {
        "action_key": "action",
        "state_keys": ["observation.state"],
        "camera_keys": [f"observation.images.{name}" for name in cameras],
        "normalize_gripper": scaled,
        "action_horizon": horizon,
        "n_action_steps": horizon,
        "setup_type": setup,
        "control_mode": "absolute joint pose",
        "action_stats": dict(stats),
        "state_stats": dict(stats),
    }


def write(directory: Path, robot: str, change: Callable[[Stats], None] = lambda stats: None) -> str:
    """Put the released statistics of `robot`, changed by `change`, beside the model; returns the tag."""
    metadata = released(robot)
    change(metadata)
    tag = SETUPS[robot][0]
    content = {"format": "molmoact2_norm_stats.v1", "norm_mode": "q01_q99", "metadata_by_tag": {tag: metadata}}
    (directory / "norm_stats.json").write_text(json.dumps(content))
    (directory / "policy_preprocessor.json").unlink(missing_ok=True)
    return tag


def refusal(directory: Path, robot: str, tag: str, cameras: tuple[str, ...] | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(directory, embodiment(robot), tag, cameras)
    return str(error.value)


def both(key: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Stats], None]:
    """Change one list in the statistics of states and actions."""

    def edit(metadata: Stats) -> None:
        for kind in ("state_stats", "action_stats"):
            metadata[kind][key] = change(list(metadata[kind][key]))

    return edit


def marked(text: str) -> set[str]:
    """Names of the rows of the table in `text` that are marked as different."""
    return {line.split("  ")[1].strip() for line in text.splitlines() if line.startswith("  ") and " != " in line}
