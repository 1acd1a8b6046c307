"""A small MolmoAct2 in the released format: sizes -> config -> model with fan-in initialisation -> checkpoint files.

The directory loads unchanged with `molmoact2_ros.policy`, lerobot's MolmoAct2 policy and its processor loader. The
reference class's bare `from_pretrained` must not be trusted with it (nor with any other checkpoint): with
transformers 5.5 it draws most weights anew after loading them. Read weights back with
`molmoact2_ros.policy.loading.load_model`.
Usage:

    tokenizer, vocab_size = build_tokenizer(prompt_texts(tasks, robot.setup_type, robot.control_mode))
    sizes = SmallModel(num_depth_codes=25)
    model = new_model(build_config(sizes, tokenizer, vocab_size), seed=0)
    processor = build_processor(sizes, tokenizer)
    ...train...
    write_checkpoint(directory, model, processor, norm_stats(robot.norm_tag, metadata), dtype=torch.bfloat16)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molmoact2_ros.training.tokenizer import IMAGE_TOKENS, NUM_DEPTH_TOKENS, NUM_STATE_TOKENS

if TYPE_CHECKING:
    import torch
    from lerobot.policies.molmoact2.molmoact2_hf_model.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2ForConditionalGeneration
    from lerobot.policies.molmoact2.molmoact2_hf_model.processing_molmoact2 import MolmoAct2Processor
    from transformers import Qwen2Tokenizer

NORM_STATS_FORMAT = "molmoact2_norm_stats.v1"


@dataclass(frozen=True)
class SmallModel:
    """Sizes of a small model. Depth codes must be a square number: the grid is sqrt(num_depth_codes) on a side."""

    image_size: int = 112
    patch_size: int = 14
    pooling: int = 2
    vit_width: int = 128
    vit_layers: int = 3
    vit_heads: int = 4
    vit_mlp: int = 384
    vit_features: tuple[int, ...] = (-1,)
    """Layers of the vision encoder that the pooling reads, counted from the end."""
    adapter_mlp: int = 256
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_head_dim: int = 32
    text_mlp: int = 384
    rope_theta: float = 1e4
    qk_norm_type: str | None = "qwen3"
    max_positions: int = 1024
    added_tokens: int = len(IMAGE_TOKENS)
    """Rows of the embedding for image tokens, above the vocabulary."""
    action_width: int = 128
    action_heads: int = 4
    action_mlp_ratio: float = 8.0 / 3.0
    action_ffn_multiple: int = 32
    timestep_width: int = 64
    horizon: int = 30
    max_action_dim: int = 32
    """lerobot's own policy insists on 32, the width of the released checkpoints."""
    flow_steps: int = 10
    action_mode: str = "continuous"
    num_action_tokens: int = 0
    num_depth_codes: int = 25
    depth_reasoning: bool = True
    depth_gate: bool = False
    depth_gate_per_layer: bool = False

    def __post_init__(self) -> None:
        if math.isqrt(self.num_depth_codes) ** 2 != self.num_depth_codes:
            raise ValueError(f"num_depth_codes must be a square number, got {self.num_depth_codes}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.vit_width % self.vit_heads or self.action_width % self.action_heads:
            raise ValueError("vit_width and action_width must be multiples of their numbers of heads")
        if self.action_mode in {"discrete", "both"} and self.num_action_tokens < 1:
            raise ValueError(f"action_mode {self.action_mode!r} needs num_action_tokens >= 1")


def build_config(sizes: SmallModel, tokenizer: Qwen2Tokenizer, vocab_size: int) -> MolmoAct2Config:
    """The reference configuration for `sizes` with the token ids of `tokenizer` (both from `build_tokenizer`)."""
    from molmoact2_ros.policy.loading import reference_module

    classes = reference_module("configuration_molmoact2")

    def token(name: str) -> int:
        index = tokenizer.convert_tokens_to_ids(name)
        if index is None or (index == tokenizer.unk_token_id and name != tokenizer.unk_token):
            raise ValueError(f"the tokenizer has no {name}; build it with build_tokenizer(..., num_action_tokens=...)")
        return int(index)

    patches = sizes.image_size // sizes.patch_size
    head = sizes.vit_width // sizes.vit_heads
    vision = {
        "hidden_size": sizes.vit_width,
        "num_attention_heads": sizes.vit_heads,
        "num_key_value_heads": sizes.vit_heads,
        "head_dim": head,
        "float32_attention": True,
        "attn_implementation": "sdpa",
    }
    return classes.MolmoAct2Config(
        architectures=["MolmoAct2ForConditionalGeneration"],
        vit_config=classes.MolmoAct2VitConfig(
            **vision,
            intermediate_size=sizes.vit_mlp,
            num_hidden_layers=sizes.vit_layers,
            image_default_input_size=(sizes.image_size, sizes.image_size),
            image_patch_size=sizes.patch_size,
            image_num_pos=patches * patches,
        ),
        adapter_config=classes.MolmoAct2AdapterConfig(
            **vision,
            vit_layers=tuple(sizes.vit_features),
            pooling_attention_mask=True,
            intermediate_size=sizes.adapter_mlp,
            text_hidden_size=sizes.text_width,
        ),
        text_config=classes.MolmoAct2TextConfig(
            hidden_size=sizes.text_width,
            num_attention_heads=sizes.text_heads,
            num_key_value_heads=sizes.text_kv_heads,
            head_dim=sizes.text_head_dim,
            vocab_size=vocab_size,
            additional_vocab_size=sizes.added_tokens,
            qkv_bias=False,
            num_hidden_layers=sizes.text_layers,
            intermediate_size=sizes.text_mlp,
            max_position_embeddings=sizes.max_positions,
            rope_theta=sizes.rope_theta,
            use_qk_norm=sizes.qk_norm_type is not None,
            qk_norm_type=sizes.qk_norm_type or "qwen3",
            attn_implementation="sdpa",
        ),
        action_expert_config=classes.MolmoAct2ActionExpertConfig(
            hidden_size=sizes.action_width,
            num_layers=sizes.text_layers,
            num_heads=sizes.action_heads,
            mlp_ratio=sizes.action_mlp_ratio,
            ffn_multiple_of=sizes.action_ffn_multiple,
            timestep_embed_dim=sizes.timestep_width,
        ),
        image_start_token_id=token("<im_start>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
        image_end_token_id=token("<im_end>"),
        image_low_res_id=token("<im_low>"),
        image_patch_id=token("<im_patch>"),
        image_col_id=token("<im_col>"),
        frame_start_token_id=token("<frame_start>"),
        frame_end_token_id=token("<frame_end>"),
        max_action_dim=sizes.max_action_dim,
        max_action_horizon=sizes.horizon,
        n_obs_steps=1,
        action_mode=sizes.action_mode,
        flow_matching_num_steps=sizes.flow_steps,
        enable_depth_reasoning=sizes.depth_reasoning,
        num_depth_codes=sizes.num_depth_codes,
        action_expert_depth_gate=sizes.depth_gate,
        action_expert_depth_gate_per_layer=sizes.depth_gate_per_layer,
        action_output_token_id=token("<action_output>"),
        action_start_token_id=token("<action_start>"),
        action_end_token_id=token("<action_end>"),
        action_token_start_id=token("<action_0>") if sizes.num_action_tokens else None,
        num_action_tokens=sizes.num_action_tokens,
        depth_output_token_id=token("<depth_output>"),
        depth_start_token_id=token("<depth_start>"),
        depth_end_token_id=token("<depth_end>"),
        depth_token_start_id=token("<depth_0>"),
        num_depth_tokens=NUM_DEPTH_TOKENS,
        state_start_token_id=token("<state_start>"),
        state_end_token_id=token("<state_end>"),
        state_token_start_id=token("<state_0>"),
        num_state_tokens=NUM_STATE_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


def new_model(config: MolmoAct2Config, seed: int) -> MolmoAct2ForConditionalGeneration:
    """A float32 model on the CPU with fan-in initialisation, the same for the same `seed`.

    Every matrix starts at std 1/sqrt(fan-in), matrices that write into a residual stream at 1/sqrt(2 layers) of that.
    The class's own std of 0.02 is far too small at these widths, and its closed action gates (zero modulation) would
    take a short training most of its time to open: here every gate starts at one, a plain transformer.
    """
    import torch
    from torch import nn

    from molmoact2_ros.policy.loading import modeling

    classes = modeling()
    model = classes.MolmoAct2ForConditionalGeneration(config)
    random = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=random) * std)

    into_residual = {
        "attn_out": len(model.model.transformer.blocks),
        "ff_out": len(model.model.transformer.blocks),
        "wo": len(model.model.vision_backbone.image_vit.transformer.resblocks),
        "w2": len(model.model.vision_backbone.image_vit.transformer.resblocks),
        "out_proj": len(model.model.action_expert.blocks),
        "down_proj": len(model.model.action_expert.blocks),
    }
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, classes.MolmoAct2Embedding):
                normal(module.embedding, 0.5)
                normal(module.new_embedding, 0.5)
            elif isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                leaf = name.rsplit(".", 1)[-1]
                if "blocks." in name and leaf in into_residual:
                    std *= (2 * into_residual[leaf]) ** -0.5
                elif "modulation" in name:
                    std *= 0.2
                normal(module.weight, std)
                if module.bias is not None:
                    module.bias.zero_()
        normal(model.model.vision_backbone.image_vit.positional_embedding, 0.3)
        expert = model.model.action_expert
        for block in expert.blocks:
            # Nine chunks: shift, scale and gate of self-attention, cross-attention and MLP.
            block.modulation.linear.bias.view(3, 3, -1)[:, 2] = 1.0
        model.model.reset_action_expert_depth_gate_parameters()
    return model.eval()


def build_processor(sizes: SmallModel, tokenizer: Qwen2Tokenizer) -> MolmoAct2Processor:
    """The reference processor for `sizes`: one crop an image, resized; no column tokens."""
    from molmoact2_ros.policy.loading import reference_module

    image = reference_module("image_processing_molmoact2").MolmoAct2ImageProcessor
    video = reference_module("video_processing_molmoact2").MolmoAct2VideoProcessor
    return reference_module("processing_molmoact2").MolmoAct2Processor(
        image_processor=image(**_image_options(sizes)),
        video_processor=video(**_video_options(sizes)),
        tokenizer=tokenizer,
        image_use_col_tokens=False,
        use_single_crop_col_tokens=False,
        use_single_crop_start_token=False,
    )


def norm_stats(tag: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `norm_stats.json` for one tag; `metadata` as in the released files."""
    return {"format": NORM_STATS_FORMAT, "norm_mode": "q01_q99", "metadata_by_tag": {tag: dict(metadata)}}


def write_checkpoint(
    directory: Path,
    model: MolmoAct2ForConditionalGeneration,
    processor: MolmoAct2Processor,
    stats: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint directory in the released format; weights are stored in `dtype` (default: as they are).

    The model stays as it is. Rotary frequencies stay float32: rounded ones would turn every position by another angle.
    """
    from safetensors.torch import save_file

    stored = dtype or model.dtype
    write_settings(directory, model.config, processor, stats, str(stored).removeprefix("torch."))
    weights = {
        name: tensor.detach().cpu().to(tensor.dtype if dtype is None or "inv_freq" in name else dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, str(Path(directory) / "model.safetensors"), metadata={"format": "pt"})
    (Path(directory) / "model.safetensors").chmod(0o644)


def write_settings(
    directory: Path,
    config: MolmoAct2Config,
    processor: MolmoAct2Processor,
    stats: Mapping[str, Any],
    dtype: str,
) -> None:
    """Write every file of a checkpoint but its weights, which are said to be stored as `dtype`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    processor.tokenizer.save_pretrained(directory)
    image = _plain(processor.image_processor.to_dict())
    video = _plain(processor.video_processor.to_dict())
    _write_json(directory / "preprocessor_config.json", image)
    _write_json(directory / "video_preprocessor_config.json", video)
    _write_json(
        directory / "processor_config.json",
        {
            "processor_class": "MolmoAct2Processor",
            "image_processor": image,
            "video_processor": video,
            "image_use_col_tokens": processor.image_use_col_tokens,
            "use_single_crop_col_tokens": processor.use_single_crop_col_tokens,
            "use_single_crop_start_token": processor.use_single_crop_start_token,
            "video_use_col_tokens": processor.video_use_col_tokens,
            "use_frame_special_tokens": processor.use_frame_special_tokens,
        },
    )
    _write_json(directory / "config.json", {**config.to_dict(), "dtype": dtype})
    _write_json(directory / config.norm_stats_filename, dict(stats))


def _image_options(sizes: SmallModel) -> dict[str, Any]:
    return {
        "size": {"height": sizes.image_size, "width": sizes.image_size},
        "crop_mode": "resize",
        "max_crops": 1,
        "patch_size": sizes.patch_size,
        "pooling_size": [sizes.pooling, sizes.pooling],
    }


def _video_options(sizes: SmallModel) -> dict[str, Any]:
    return {
        "size": {"height": sizes.image_size, "width": sizes.image_size},
        "patch_size": sizes.patch_size,
        "pooling_size": [sizes.pooling, sizes.pooling],
    }


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: enums by value, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bool, float)) or value is None:
        return value
    return int(value) if isinstance(value, int) else str(value)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
