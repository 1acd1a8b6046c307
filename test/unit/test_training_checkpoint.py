"""A small checkpoint is what the released ones are: same tokens in the same order, same files, same loaders.

Pins: every word of the prompt is one token (sequence length is training time); image tokens lie above the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import ROBOT, TINY, make_checkpoint

from molmoact2_ros.policy.loading import load_processor, reference_module
from molmoact2_ros.training.checkpoint import SmallModel, build_config, new_model
from molmoact2_ros.training.tokenizer import IMAGE_TOKENS, build_tokenizer, prompt_texts, special_tokens

TASK = "pick up the red cube"


@pytest.fixture(scope="module")
def built() -> tuple[Any, int]:
    return build_tokenizer(prompt_texts([TASK], ROBOT.setup_type, ROBOT.control_mode))


def prompt(style: str) -> str:
    reference = reference_module("modeling_molmoact2")
    return reference._build_robot_text(
        task=TASK,
        style=style,
        discrete_state_string=reference._build_discrete_state_string(np.zeros(6), 256),
        setup_type=ROBOT.setup_type,
        control_mode=ROBOT.control_mode,
        add_setup_tokens=True,
        add_control_tokens=True,
        num_images=2,
    )


@pytest.mark.parametrize("style", ["robot_depth_action", "robot_action"])
def test_every_word_of_the_prompt_is_one_token(built: tuple[Any, int], style: str) -> None:
    tokenizer, _ = built
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prompt(style))]
    assert len(words) > 40
    vocabulary = tokenizer.get_vocab()
    texts = prompt_texts([TASK], ROBOT.setup_type, ROBOT.control_mode)
    for text in texts:
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert len(tokenizer(text)["input_ids"]) == len(pieces)
        assert all(piece in vocabulary for piece, _ in pieces)
    assert len(tokenizer(prompt(style))["input_ids"]) <= 110


def test_unknown_words_survive_as_bytes(built: tuple[Any, int]) -> None:
    tokenizer, _ = built
    text = "grüne Würfel zuerst 42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_in_the_released_order(built: tuple[Any, int]) -> None:
    tokenizer, size = built
    ids = tokenizer.convert_tokens_to_ids(list(special_tokens()))
    assert ids[3:] == list(range(ids[3], ids[3] + len(ids) - 3)) and sorted(ids[:3]) == list(range(ids[3] - 3, ids[3]))
    assert size % 64 == 0 and ids[-1] < size
    assert tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS)) == list(range(size, size + len(IMAGE_TOKENS)))
    assert tokenizer.bos_token == tokenizer.eos_token == "<|im_end|>"
    assert all(len(tokenizer.tokenize(token)) == 1 for token in (*special_tokens(), *IMAGE_TOKENS))


def test_tokenizer_survives_its_files(tmp_path: Path, built: tuple[Any, int]) -> None:
    make_checkpoint(tmp_path)
    read = load_processor(tmp_path).tokenizer
    for style in ("robot_depth_action", "robot_action"):
        assert read(prompt(style))["input_ids"] == built[0](prompt(style))["input_ids"]
    assert read.bos_token_id == built[0].bos_token_id


def test_stored_weights_are_the_models(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=5, dtype=torch.bfloat16)
    make_checkpoint(tmp_path / "whole", seed=5)
    half, whole = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert set(half) == set(whole)
    for name, value in whole.items():
        frequencies = "inv_freq" in name
        assert half[name].dtype == (torch.float32 if frequencies else torch.bfloat16)
        assert torch.equal(half[name], value if frequencies else value.to(torch.bfloat16))


def test_start_is_fan_in_and_repeatable(built: tuple[Any, int]) -> None:
    tokenizer, size = built
    sizes = SmallModel()
    config = build_config(sizes, tokenizer, size)
    model, again, other = new_model(config, 0), new_model(config, 0), new_model(config, 1)
    pairs = list(zip(model.state_dict().items(), again.state_dict().values(), strict=True))
    assert all(torch.equal(value, second) for (_, value), second in pairs)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    expert = model.model.action_expert
    for linear in (model.lm_head, expert.action_embed, expert.final_layer.linear, expert.blocks[0].mlp.up_proj):
        assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.1)
    gates = expert.blocks[0].modulation.linear.bias.view(3, 3, -1)
    assert torch.all(gates[:, 2] == 1) and torch.all(gates[:, :2] == 0)
    assert sum(value.numel() for value in model.parameters()) < 4_000_000


def test_lerobots_policy_loads_it(tmp_path: Path) -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy

    make_checkpoint(tmp_path)
    config = MolmoAct2Config(
        checkpoint_path=str(tmp_path),
        action_mode="continuous",
        norm_tag=ROBOT.norm_tag,
        device="cpu",
        input_features={
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 240, 320)),
            "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 240, 320)),
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    policy = MolmoAct2Policy(config)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = policy._hf_model().state_dict()
    assert all(
        torch.equal(loaded[name].float(), value.to(loaded[name].dtype).float()) for name, value in stored.items()
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"num_depth_codes": 10}, "square number"),
        ({"image_size": 100}, "multiple of patch_size"),
        ({"vit_heads": 3}, "multiples of their numbers of heads"),
        ({"action_mode": "both"}, "needs num_action_tokens"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        SmallModel(**options)


def test_a_tokenizer_without_the_action_family_is_refused(built: tuple[Any, int]) -> None:
    from dataclasses import replace

    sizes = replace(TINY, action_mode="both", num_action_tokens=16)
    with pytest.raises(ValueError, match="no <action_0>"):
        build_config(sizes, *built)
