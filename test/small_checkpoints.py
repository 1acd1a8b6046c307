"""Small random checkpoints for tests, in the released format: they load and run like the real ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.training.checkpoint import (
    SmallModel,
    build_config,
    build_processor,
    new_model,
    norm_stats,
    write_checkpoint,
)
from molmoact2_ros.training.random_model import end_depth_at_once
from molmoact2_ros.training.tokenizer import build_tokenizer, prompt_texts

TINY = SmallModel(
    image_size=28,
    vit_width=32,
    vit_layers=1,
    vit_heads=2,
    vit_mlp=64,
    adapter_mlp=32,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_kv_heads=1,
    text_head_dim=16,
    text_mlp=64,
    action_width=32,
    action_heads=2,
    action_ffn_multiple=16,
    timestep_width=16,
    num_depth_codes=9,
)
"""About 150 thousand parameters; a call takes tens of milliseconds."""

ROBOT = embodiment("so101")
_SO_STATS: dict[str, Any] = {
    "names": list(ROBOT.joint_names),
    "q01": [-41.9, 43.7, 38.4, 5.7, -63.5, 0.9],
    "q50": [3.1, 123.2, 124.4, 57.9, -11.0, 9.2],
    "q99": [48.3, 185.3, 173.1, 91.8, 42.9, 44.1],
    "mask": [True] * 6,
}


def so101_metadata(cameras: tuple[str, ...] = ("front", "wrist")) -> dict[str, Any]:
    """What `norm_stats.json` says about the SO-101, with the published quantiles."""
    return {
        "action_key": "action",
        "state_key": "observation.state",
        "camera_keys": [f"observation.images.{name}" for name in cameras],
        "normalize_gripper": True,
        "action_horizon": 30,
        "n_action_steps": 30,
        "setup_type": ROBOT.setup_type,
        "control_mode": ROBOT.control_mode,
        "action_stats": dict(_SO_STATS),
        "state_stats": dict(_SO_STATS),
    }


@cache
def _tokenizer(num_action_tokens: int = 0) -> Any:
    texts = prompt_texts(["pick up the red cube"], ROBOT.setup_type, ROBOT.control_mode)
    return build_tokenizer(texts, num_action_tokens=num_action_tokens)


def make_checkpoint(
    directory: Path, seed: int = 0, metadata: dict[str, Any] | None = None, dtype: Any = None, **sizes: Any
) -> Path:
    """Write a tiny random checkpoint for the SO-101 into `directory` and return it; `sizes` override `TINY`."""
    small = replace(TINY, **sizes)
    tokenizer, vocabulary = _tokenizer(small.num_action_tokens)
    model = new_model(build_config(small, tokenizer, vocabulary), seed)
    end_depth_at_once(model)
    stats = norm_stats(ROBOT.norm_tag, metadata or so101_metadata())
    write_checkpoint(directory, model, build_processor(small, tokenizer), stats, dtype)
    return directory
