"""The backend `torch` answers like the reference: tokens, codes, masks and caches exactly, actions within 1e-4.

Pins: a rejected draft never reaches the flow; what is kept from the last call (draft, features, keys and values) never
changes an answer.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, TASK, TOLERANCE, Reference, checkpoint, counting, frames, hold, scaled

from molmoact2_ros.policy import Checkpoint, open_checkpoint
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.staged_model import InferenceOptions, StagedModel

SEQUENCE = "n=scpnwd=c"


def fast(opened: Checkpoint, **options: Any) -> tuple[StagedModel, list[str]]:
    said: list[str] = []
    return StagedModel(opened, CPU, torch.float32, said.append, InferenceOptions(**options)), said


CASES: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (1, {"num_depth_codes": 16, "depth_gate": True}),
    (3, {"num_depth_codes": 16, "image_size": 56, "depth_gate": True, "depth_gate_per_layer": True}),
    (2, {"qk_norm_type": "olmo", "text_heads": 4, "text_kv_heads": 2, "image_size": 42}),
    (2, {"qk_norm_type": None, "depth_reasoning": False}),
]


@pytest.mark.parametrize(("cameras", "sizes"), CASES)
def test_answers_equal_the_references(tmp_path: Path, cameras: int, sizes: dict[str, Any]) -> None:
    opened = checkpoint(tmp_path, cameras, seed=cameras, **sizes)
    hold(opened, list(frames(1, cameras, SEQUENCE)), row_cost=0.0)


@pytest.mark.parametrize(
    ("cameras", "sizes"),
    [
        (1, {"num_depth_codes": 16, "depth_gate": True, "depth_gate_per_layer": True}),
        (2, {"num_depth_codes": 25}),
        (3, {"num_depth_codes": 9, "qk_norm_type": "olmo", "text_heads": 4, "text_kv_heads": 2, "depth_gate": True}),
        (2, {"num_depth_codes": 9, "qk_norm_type": None}),
    ],
)
def test_plain_decoding_equals_the_references(tmp_path: Path, cameras: int, sizes: dict[str, Any]) -> None:
    """Depth mode full: every cell of every frame decoded, over the whole vocabulary."""
    opened = counting(checkpoint(tmp_path, cameras, seed=cameras, **sizes))
    hold(opened, list(frames(2, cameras, "n=cpd")), depth_mode="full", row_cost=0.0)
    hold(opened, list(frames(2, cameras, "n=cpd")), depth_mode="adaptive")


def test_windows_of_a_cpu_give_the_same(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path, 2, seed=5, num_depth_codes=25)
    hold(opened, list(frames(3, 2, SEQUENCE)))


@pytest.mark.parametrize("redraft", ["prev", "jacobi"])
def test_every_redraft_gives_the_same(tmp_path: Path, redraft: str) -> None:
    opened = checkpoint(tmp_path, 1, seed=6, num_depth_codes=16)
    hold(opened, list(frames(4, 1, SEQUENCE)), redraft=redraft, row_cost=0.0)


def bundled() -> Checkpoint:
    from small_checkpoints import ROBOT

    return open_checkpoint("so101_cell", ROBOT, ROBOT.norm_tag)


@pytest.mark.parametrize("depth_mode", ["adaptive", "full"])
def test_a_trained_model_gives_the_same(depth_mode: str) -> None:
    opened = bundled()
    hold(opened, list(frames(7, 2, "n=cp", (240, 320))), depth_mode=depth_mode)


SLOW = [
    (cameras, {"num_depth_codes": codes, "qk_norm_type": norm, "seed": seed, **gate})
    for seed, (cameras, codes, norm, gate) in enumerate(
        (cameras, codes, norm, gate)
        for cameras in (1, 2, 3)
        for codes in (9, 25, 100)
        for norm in ("qwen3", "olmo", None)
        for gate in ({}, {"depth_gate": True}, {"depth_gate": True, "depth_gate_per_layer": True})
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("depth_mode", ["adaptive", "full"])
@pytest.mark.parametrize(("cameras", "sizes"), SLOW)
def test_many_models_answer_like_the_reference(
    tmp_path: Path, cameras: int, sizes: dict[str, Any], depth_mode: str
) -> None:
    opened = checkpoint(tmp_path, cameras, **sizes)
    if depth_mode == "full":
        opened = counting(opened)
    row_cost = 0.05 if sizes["seed"] % 2 else 0.0
    hold(
        opened, list(frames(sizes["seed"], cameras, "n=cpdwpcn", (120, 160))), row_cost=row_cost, depth_mode=depth_mode
    )


def random_head(model: Any, seed: int, gain: float) -> None:
    """A head whose plain greedy sequences are codes and odd tokens, ended by `<depth_end>` after a random number."""
    config, head = model.config, model.lm_head.weight
    drawn = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)) * 0.42
    drawn[config.depth_token_start_id : config.depth_token_start_id + config.num_depth_tokens] *= 1.4
    drawn[config.depth_end_token_id] *= gain / 0.42
    drawn[:, 0] = 0
    head.copy_(drawn)


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Reference]:
    opened = checkpoint(tmp_path_factory.mktemp("greedy"), 1, seed=1, num_depth_codes=16)
    return opened, Reference(opened)


# Seeds whose sequences end; they are 2 to 38 tokens long, with the grid's 16 cells among the wrong answers.
@pytest.mark.parametrize(("seed", "gain"), [(4, 0.8), (12, 0.8), (18, 1.1), (26, 1.1), (28, 1.1), (35, 1.1), (0, 0.8)])
@pytest.mark.parametrize("row_cost", [0.0, 0.05])
def test_plain_greedy_sequences_of_any_length_are_the_references(
    greedy: tuple[Checkpoint, Reference], seed: int, gain: float, row_cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, reference = greedy
    ours, _ = fast(opened, depth_mode="full", row_cost=row_cost)
    for model in (reference.model, ours.model):
        random_head(model, seed, gain)
    # The grid has 16 cells: what a user gets is an error. Here the sequence and the actions behind it are looked at.
    monkeypatch.setattr(ours, "_codes", lambda *_: (None, None))
    lengths = set()
    for index, frame in enumerate(frames(5, 1, "nnn")):
        expected = reference.predict(frame, None, seed=index, adaptive=False)
        generator = torch.Generator().manual_seed(index)
        answer = ours.predict(frame.images, TASK, frame.state, depth_cache=None, generator=generator)
        assert ours.sequence == expected.tokens
        assert np.abs(scaled(opened, answer.actions) - scaled(opened, expected.actions)).max() < TOLERANCE
        lengths.add(len(expected.tokens))
        assert expected.bins is not None
        ours.episode.draft = [int(code) for code in np.resize(expected.bins, 16)]
    assert min(lengths) < 40


def test_another_number_of_codes_is_an_error(greedy: tuple[Checkpoint, Reference]) -> None:
    ours, _ = fast(greedy[0], depth_mode="full")
    random_head(ours.model, 12, 0.8)
    (frame,) = frames(5, 1, "n")
    with pytest.raises(RuntimeError, match="gave 13 depth codes, expected 16"):
        ours.predict(frame.images, TASK, frame.state, depth_cache=None, generator=torch.Generator())


def test_a_sequence_without_an_end_is_an_error(greedy: tuple[Checkpoint, Reference]) -> None:
    ours, _ = fast(greedy[0], depth_mode="full", row_cost=0.0)
    random_head(ours.model, 1, 0.1)
    (frame,) = frames(5, 1, "n")
    with pytest.raises(UnendedSequenceError, match="no <depth_end> within 480 tokens"):
        ours.predict(frame.images, TASK, frame.state, depth_cache=None, generator=torch.Generator())


def test_tokens_that_the_expert_does_not_see_are_left_out(tmp_path: Path) -> None:
    """In action mode "both" the reference masks `<|im_end|>`, which every prompt has."""
    opened = checkpoint(tmp_path, 1, seed=8, depth_gate=True)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "action_mode": "both"}))
    opened = replace(opened, config={**opened.config, "action_mode": "both"})
    ours = hold(opened, list(frames(1, 1, "nc")))
    valid = ours.model.model._get_encoder_attention_mask(ours._prefix.template.ids[None], None)
    assert not bool(valid.all())


def test_half_precision_runs_and_stays_near(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path, 2, seed=3, num_depth_codes=16, depth_gate=True)
    half = StagedModel(opened, CPU, torch.bfloat16, lambda text: None)
    whole, _ = fast(opened)
    cache = None
    for index, frame in enumerate(frames(6, 2, "n=c")):
        # The same codes for both: near ties may fall the other way in half precision, and are not compared.
        given = cache if index else None
        answers = [
            model.predict(
                frame.images, TASK, frame.state, depth_cache=given, generator=torch.Generator().manual_seed(index)
            )
            for model in (half, whole)
        ]
        cache = answers[1].depth_cache
        assert answers[0].actions.dtype == np.float32 and np.all(np.isfinite(answers[0].actions))
        assert answers[0].depth_bins is not None and answers[0].depth_bins.shape == (16,)
        np.testing.assert_array_equal(answers[0].depth_updated, answers[1].depth_updated)


def test_two_tasks_in_turn_keep_apart(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path, 2, seed=9)
    reference, (ours, _) = Reference(opened), fast(opened)
    (frame,) = frames(2, 2, "n")
    for index, task in enumerate((TASK, "put it down", TASK, TASK)):
        expected = reference.predict(frame, None, seed=index, task=task)
        answer = ours.predict(
            frame.images, task, frame.state, depth_cache=None, generator=torch.Generator().manual_seed(index)
        )
        assert np.abs(scaled(opened, answer.actions) - scaled(opened, expected.actions)).max() < TOLERANCE
        assert ours.sequence == expected.tokens


def test_a_failed_call_leaves_no_trace(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path, 1, seed=4)
    reference, (ours, _) = Reference(opened), fast(opened)
    first, second, third = frames(8, 1, "ncp")
    expected = reference.predict(first, None, seed=0)
    answer = ours.predict(first.images, TASK, first.state, depth_cache=None, generator=torch.Generator().manual_seed(0))
    end = ours.model.config.depth_end_token_id
    saved = ours.model.lm_head.weight[end].clone()
    ours.model.lm_head.weight[end] = -saved
    with pytest.raises(UnendedSequenceError, match="depth_end"):
        ours.predict(second.images, TASK, second.state, depth_cache=answer.depth_cache, generator=torch.Generator())
    ours.model.lm_head.weight[end] = saved
    for index, frame in enumerate((replace(second, state=third.state), third), start=1):
        expected = reference.predict(frame, expected.cache, seed=index)
        answer = ours.predict(
            frame.images,
            TASK,
            frame.state,
            depth_cache=answer.depth_cache,
            generator=torch.Generator().manual_seed(index),
        )
        assert ours.sequence == expected.tokens
        assert np.abs(scaled(opened, answer.actions) - scaled(opened, expected.actions)).max() < TOLERANCE
