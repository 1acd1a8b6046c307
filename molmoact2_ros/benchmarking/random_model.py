"""Checkpoints with random weights, to measure the policy where no trained one of that size is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.training.checkpoint import SmallModel

SIZES: dict[str, SmallModel] = {
    "small": SmallModel(num_depth_codes=100),
    "mid": SmallModel(
        image_size=378,
        vit_width=512,
        vit_layers=8,
        vit_heads=8,
        vit_mlp=2048,
        vit_features=(-1, -3),
        adapter_mlp=2048,
        text_width=1024,
        text_layers=16,
        text_heads=16,
        text_kv_heads=4,
        text_head_dim=64,
        text_mlp=3072,
        rope_theta=5e6,
        max_positions=2048,
        action_width=512,
        action_heads=8,
        timestep_width=256,
        num_depth_codes=100,
    ),
}
"""The cell's own size with the released depth grid, and 1024 wide with 16 layers."""


def end_depth_at_once(model: Any) -> None:
    """Make `<depth_end>` win wherever the whole vocabulary is asked, as it does after training.

    One channel of the residual stream is kept constant, and only the row of `<depth_end>` reads it. The rows of the
    depth codes stay random, so the codes still depend on the picture.
    """
    import torch

    text = model.model.transformer
    with torch.no_grad():
        text.wte.embedding[:, 0] = 1.0
        text.wte.new_embedding[:, 0] = 1.0
        model.model.vision_backbone.image_projector.w2.weight[0] = 0.0
        for block in text.blocks:
            block.self_attn.attn_out.weight[0] = 0.0
            block.mlp.ff_out.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        end = model.lm_head.weight[model.config.depth_end_token_id]
        end.zero_()
        end[0] = 1e3


def write_random_checkpoint(directory: Path, size: str, robot: Embodiment, task: str, seed: int = 0) -> Path:
    """Write a random checkpoint of `size` for `robot` into `directory` and return it; its depth sequences end.

    Raises:
        ValueError: unknown size.
    """
    import numpy as np
    import torch

    from molmoact2_ros.training.checkpoint import (
        build_config,
        build_processor,
        new_model,
        norm_stats,
        write_checkpoint,
    )
    from molmoact2_ros.training.tokenizer import build_tokenizer, prompt_texts

    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; use one of {', '.join(SIZES)}")
    sizes = SIZES[size]
    tokenizer, vocabulary = build_tokenizer(prompt_texts([task], robot.setup_type, robot.control_mode))
    model = new_model(build_config(sizes, tokenizer, vocabulary), seed)
    end_depth_at_once(model)
    middle = np.asarray(robot.model_from_joints(robot.rest_position), dtype=np.float64)
    stats = {
        "names": list(robot.joint_names),
        "q01": (middle - 5.0).tolist(),
        "q50": middle.tolist(),
        "q99": (middle + 5.0).tolist(),
        "mask": [True] * robot.dof,
    }
    metadata = {
        "action_key": "action",
        "state_key": "observation.state",
        "camera_keys": [f"observation.images.{name}" for name in robot.camera_names],
        "normalize_gripper": True,
        "action_horizon": sizes.horizon,
        "n_action_steps": sizes.horizon,
        "setup_type": robot.setup_type,
        "control_mode": robot.control_mode,
        "action_stats": stats,
        "state_stats": stats,
    }
    processor = build_processor(sizes, tokenizer)
    write_checkpoint(directory, model, processor, norm_stats(robot.norm_tag, metadata), torch.bfloat16)
    return directory
