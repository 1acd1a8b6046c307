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
    "full": SmallModel(
        image_size=378,
        vit_width=1152,
        vit_layers=27,
        vit_heads=16,
        vit_mlp=4304,
        vit_features=(-3, -9),
        adapter_mlp=9728,
        text_width=2560,
        text_layers=36,
        text_heads=32,
        text_kv_heads=8,
        text_head_dim=128,
        text_mlp=9728,
        rope_theta=5e6,
        max_positions=16384,
        added_tokens=128,
        action_width=768,
        action_heads=8,
        action_mlp_ratio=4.0,
        action_ffn_multiple=256,
        timestep_width=256,
        num_depth_codes=100,
        depth_gate=True,
        depth_gate_per_layer=True,
    ),
}
"""The cell's own size with the released depth grid; 1024 wide with 16 layers; and the released size."""
FULL_VOCABULARY = 154_624
"""Rows of the full-size embedding and head. The prompts are those of the small tokenizer."""
FULL_BYTES = 16 * 10**9
"""GPU memory that the full-size model must find free."""


def end_depth_at_once(model: Any) -> None:
    """Make `<depth_end>` win wherever the whole vocabulary is asked, as it does after training.

    One channel of the residual stream is kept constant, and only the row of `<depth_end>` reads it. The rows of the
    depth codes stay random, so the codes still depend on the image.
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


def random_model(config: Any, device: Any, dtype: Any, seed: int = 0) -> Any:
    """A random reference model for `config`, made on `device` in `dtype`, whose depth sequences end.

    For sizes that do not fit into the host's memory twice: nothing is made anywhere else and copied.
    """
    import torch

    from molmoact2_ros.policy.loading import empty_model

    model = empty_model(config.to_dict()).to(dtype).to_empty(device=device)
    random = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif "embedding" in name.rsplit(".", 1)[-1]:
                parameter.normal_(0.0, 0.5, generator=random)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=random)
        for name, parameter in model.named_parameters():
            if name.endswith(("attn_out.weight", "ff_out.weight", "wo.weight", "w2.weight", "down_proj.weight")):
                parameter.mul_((2 * int(config.text_config.num_hidden_layers)) ** -0.5)
        for block in model.model.action_expert.blocks:
            # Nine chunks: shift, scale and gate of self-attention, cross-attention and MLP. Every gate is open.
            block.modulation.linear.weight.mul_(0.2)
            block.modulation.linear.bias.view(3, 3, -1)[:, 2] = 1.0
        rotary = model.model.transformer.rotary_emb
        # Computed, not drawn; and never stored in half precision.
        rotary.register_buffer("inv_freq", rotary.rope_init_fn(config.text_config, device)[0], persistent=True)
        rotary.register_buffer("_pos_sin_cache", torch.empty(0, device=device), persistent=False)
        rotary.register_buffer("_pos_cos_cache", torch.empty(0, device=device), persistent=False)
        model.model.reset_action_expert_depth_gate_parameters()
    end_depth_at_once(model)
    return model.requires_grad_(False).eval()


def write_random_checkpoint(
    directory: Path,
    size: str,
    robot: Embodiment,
    task: str,
    seed: int = 0,
    horizon: int = 0,
    weights: bool = True,
    dtype: Any = None,
) -> Path:
    """Write a random checkpoint of `size` for `robot` into `directory` and return it; its depth sequences end.

    Args:
        horizon: rows of a chunk, 0 for what the size says.
        dtype: that weights are stored in; None: bfloat16.
        weights: False writes one empty tensor in their place: `random_model` makes them where they are needed.

    Raises:
        ValueError: unknown size.
    """
    import torch
    from safetensors.torch import save_file

    from molmoact2_ros.training.checkpoint import (
        build_processor,
        new_model,
        norm_stats,
        write_checkpoint,
        write_settings,
    )

    sizes, tokenizer, config = _described(size, robot, task)
    stats = norm_stats(robot.norm_tag, _metadata(robot, horizon or min(sizes.horizon, robot.horizon)))
    processor = build_processor(sizes, tokenizer)
    if not weights:
        write_settings(directory, config, processor, stats, "bfloat16")
        save_file({"lm_head.weight": torch.zeros(1)}, str(directory / "model.safetensors"))
        return directory
    model = new_model(config, seed)
    end_depth_at_once(model)
    write_checkpoint(directory, model, processor, stats, dtype or torch.bfloat16)
    return directory


def random_config(size: str, robot: Embodiment, task: str) -> Any:
    """The reference configuration of `size`.

    Raises:
        ValueError: unknown size.
    """
    return _described(size, robot, task)[2]


def _described(size: str, robot: Embodiment, task: str) -> tuple[SmallModel, Any, Any]:
    from molmoact2_ros.training.checkpoint import build_config
    from molmoact2_ros.training.tokenizer import build_tokenizer, prompt_texts

    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; use one of {', '.join(SIZES)}")
    tokenizer, vocabulary = build_tokenizer(prompt_texts([task], robot.setup_type, robot.control_mode))
    rows = max(FULL_VOCABULARY, vocabulary) if size == "full" else vocabulary
    return SIZES[size], tokenizer, build_config(SIZES[size], tokenizer, rows)


def _metadata(robot: Embodiment, horizon: int) -> dict[str, Any]:
    """What `norm_stats.json` says about `robot`: chunks of `horizon` rows, ranges about its rest position, and the
    whole stroke of its grippers."""
    import numpy as np

    limits, grippers = robot.limits, list(robot.gripper_indices)
    reach = 0.1 * (limits.upper - limits.lower)
    ends = np.clip(np.stack((robot.rest_position - reach, robot.rest_position + reach)), limits.lower, limits.upper)
    ends[:, grippers] = np.stack((limits.lower, limits.upper))[:, grippers]
    vectors = np.asarray(robot.model_from_joints(ends), dtype=np.float64)
    mask = [index not in grippers or robot.normalize_gripper for index in range(robot.dof)]
    stats = {
        "names": list(robot.joint_names),
        "q01": vectors.min(axis=0).tolist(),
        "q50": np.asarray(robot.model_from_joints(robot.rest_position)).tolist(),
        "q99": vectors.max(axis=0).tolist(),
        "mask": mask,
    }
    return {
        "action_key": "action",
        "state_key": "observation.state",
        "camera_keys": [f"observation.images.{name}" for name in robot.camera_names],
        "normalize_gripper": robot.normalize_gripper,
        "action_horizon": horizon,
        "n_action_steps": horizon,
        "setup_type": robot.setup_type,
        "control_mode": robot.control_mode,
        "action_stats": stats,
        "state_stats": stats,
    }
