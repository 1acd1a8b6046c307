"""The parts of the backend `torch` one by one: images, prompts, features and the watch over changed cells.

Pins: pixels and token ids are the processor's own; a short cut that differs is not taken, and the log says so.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, TASK, Reference, checkpoint, frames
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.policy import Checkpoint, CheckpointError, Observation, open_policy
from molmoact2_ros.policy.loading import reference_module
from molmoact2_ros.policy.reference import updated_cells
from molmoact2_ros.policy.staged_model import InferenceOptions, StagedModel
from molmoact2_ros.policy.staged_policy import StagedPolicy
from molmoact2_ros.policy.stages import change
from molmoact2_ros.policy.stages.decoder import TextDecoder, causal_mask
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.preprocess import Preprocess

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(checkpoint(tmp_path_factory.mktemp("stages"), 2, seed=1, num_depth_codes=25, image_size=56))


def preprocess(reference: Reference, said: list[str]) -> Preprocess:
    config, metadata = reference.model.config, reference.opened.metadata
    return Preprocess(reference.processor, config, metadata, True, CPU, said.append)


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(240, 320), (480, 640), (60, 80), (56, 56), (57, 55), (28, 200), (720, 405), (1, 1), (377, 379)]


def test_pixels_are_the_processors_at_every_size(reference: Reference) -> None:
    said: list[str] = []
    stage = preprocess(reference, said)
    images = [noise(index, *size) for index, size in enumerate(SIZES + SIZES)]
    for image, patches in zip(images, stage.patches(images), strict=True):
        theirs = reference.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        grid = torch.round((theirs.float() + 1.0) * 0.5 * 255.0).to(torch.uint8)
        assert patches.dtype == torch.uint8 and torch.equal(patches, grid), image.shape
    assert not said


def test_a_resize_that_differs_is_left_to_the_processor(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stage = preprocess(reference, said)
    real = stage._resized
    monkeypatch.setattr(stage, "_resized", lambda images: real(images) ^ 1)
    image = noise(3, 40, 50)
    (patches,) = stage.patches([image])
    (again,) = stage.patches([image])
    theirs = reference.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(patches, theirs) and torch.equal(again, theirs)
    assert len(said) == 1 and "50 x 40 differs" in said[0]


def test_prompts_are_the_processors(reference: Reference) -> None:
    said: list[str] = []
    stage = preprocess(reference, said)
    random = np.random.default_rng(0)
    images = [noise(1, 60, 80), noise(2, 60, 80)]
    for task in (TASK, "put the cube down; then wait", TASK):
        for _ in range(20):
            state = random.uniform(-1.2, 1.2, 6).astype(np.float32)
            template, ids = stage.prompt(task, state, images)
            theirs = stage._processed(task, state, images)
            assert torch.equal(ids, theirs["input_ids"][0])
            assert torch.equal(template.is_image, theirs["token_type_ids"][0].bool())
    assert not said and len(stage._templates) == 2


def test_a_prompt_without_a_clear_state_is_tokenised_every_time(reference: Reference) -> None:
    said: list[str] = []
    stage = preprocess(reference, said)
    images = [noise(1, 60, 80), noise(2, 60, 80)]
    for value in (0.1, 0.7):
        state = np.full(6, value, np.float32)
        _, ids = stage.prompt(f"{TASK} <state_start>", state, images)
        assert torch.equal(ids, stage._processed(f"{TASK} <state_start>", state, images)["input_ids"][0])
    assert len(said) == 1 and "tokenised anew" in said[0]


def test_the_mask_of_changed_cells_is_the_references() -> None:
    sequence = [frame.images[0] for frame in frames(3, 1, "ncpdpcdn=", (120, 160))]
    sequence += [np.zeros((120, 160, 3), np.uint8), sequence[-1]]
    before, changed = None, []
    for image in sequence:
        now = change.see_again(image, before, 10)
        if before is not None:
            ours = change.changed_cells(now, before)
            np.testing.assert_array_equal(ours, updated_cells(image, {"image": before.image}, 100))
            changed.append(int(ours.sum()))
        before = now
    assert min(changed) == 0 and max(changed) == 100 and len(set(changed)) > 3


@pytest.mark.parametrize("norm_after", [False, True])
@pytest.mark.parametrize("qk_norm_type", ["qwen3", "olmo", None])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_decoder_is_the_text_model(norm_after: bool, qk_norm_type: str | None, kv_heads: int) -> None:
    config = reference_module("configuration_molmoact2").MolmoAct2TextConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        vocab_size=40,
        additional_vocab_size=5,
        qkv_bias=True,
        num_hidden_layers=3,
        intermediate_size=48,
        max_position_embeddings=64,
        rope_theta=1e4,
        use_qk_norm=qk_norm_type is not None,
        qk_norm_type=qk_norm_type or "qwen3",
        norm_after=norm_after,
        attn_implementation="sdpa",
    )
    text = reference_module("modeling_molmoact2").MolmoAct2TextModel(config).eval()
    random = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for name, value in text.named_parameters():
            value.copy_(torch.randn(value.shape, generator=random) * (0.3 if value.ndim > 1 else 1.0))
            assert "norm" in name or value.ndim > 1 or "ln_f" in name or "bias" in name
        ids = torch.randint(0, 45, (20,), generator=random)
        is_image = torch.zeros(20, dtype=torch.bool)
        is_image[2:9] = True
        mask = causal_mask(is_image, 24, torch.float32)
        whole = text(input_ids=ids[None], attention_mask=mask[None, None, :20, :20], use_cache=True)
        decoder = TextDecoder(text)
        store = decoder.new_store(24)
        rows = decoder.embed(ids)
        assert torch.equal(rows, text.wte(ids))
        found = [decoder(rows[:12], store, mask[:12, :12], 3)]
        # A wrong block, forgotten again.
        decoder(rows[:5].clone(), store, mask[12:17, :17], 5)
        store.length = 12
        found += [decoder(rows[12:19], store, mask[12:19, :19], 7), decoder(rows[19:], store, None, 1)]
    torch.testing.assert_close(torch.cat(found), whole.last_hidden_state[0, 9:], atol=1e-4, rtol=1e-4)
    keys, values = store.states()
    for layer in range(3):
        theirs = whole.past_key_values.layers[layer]
        for ours, expected in ((keys[layer], theirs.keys), (values[layer], theirs.values)):
            expected = expected[0].transpose(0, 1).reshape(20, -1)
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError, match="25 tokens does not fit"), torch.inference_mode():
        decoder(rows[:5], store, mask[:5, :5], 1)


def test_what_the_stages_do_not_do_is_refused(reference: Reference) -> None:
    text, config = reference.model.model.transformer, reference.model.config
    scaled = SimpleNamespace(config=SimpleNamespace(rope_scaling_layers=(1,)), blocks=text.blocks)
    with pytest.raises(CheckpointError, match="use backend reference"):
        TextDecoder(scaled)
    expert = SimpleNamespace(config=SimpleNamespace(causal_attn=True))
    with pytest.raises(CheckpointError, match="use backend reference"):
        FlowStage(SimpleNamespace(action_expert=expert, config=config), 6)


def test_a_picture_seen_last_time_is_not_encoded_again(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = fast(reference.opened)
    encoded: list[int] = []
    real = ours._vision.encode

    def encode(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        encoded.append(pixels.shape[0])
        return real(pixels, table)

    monkeypatch.setattr(ours._vision, "encode", encode)
    cache = None
    for frame in frames(1, 2, "n=scw"):
        answer = predict(ours, frame, cache)
        cache = answer.depth_cache
    assert encoded == [2, 1, 1], "both at first; then the main image alone, then the last one alone"


def test_a_picture_changed_in_place_is_a_new_picture(reference: Reference) -> None:
    ours = fast(reference.opened)
    (frame,) = frames(1, 2, "n")
    first = predict(ours, frame, None)
    frame.images[0][:] = 255 - frame.images[0]
    second = predict(ours, frame, first.depth_cache)
    assert second.depth_updated.any()
    assert not np.allclose(first.actions, second.actions)


def fast(opened: Checkpoint, **options: Any) -> StagedModel:
    return StagedModel(opened, CPU, torch.float32, lambda text: None, InferenceOptions(**options))


def predict(model: StagedModel, frame: Any, cache: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return model.predict(frame.images, TASK, frame.state, depth_cache=cache, generator=generator)


def fading(steps: int) -> list[np.ndarray]:
    """An image that becomes another one so slowly that no two neighbours differ by a cell."""
    (start, end) = (frame.images[0].astype(float) for frame in frames(5, 1, "nn"))
    return [(start + (end - start) * step / steps).astype(np.uint8) for step in range(steps + 1)]


def test_slow_drift_is_noticed_in_drift_safe_mode_only(reference: Reference) -> None:
    counts = {}
    for drift_safe in (False, True):
        model, cache, total = fast(reference.opened, drift_safe=drift_safe), None, 0
        (frame,) = frames(2, 2, "n")
        for index, image in enumerate(fading(60)):
            answer = predict(model, replace(frame, images=[image, frame.images[1]]), cache)
            cache = answer.depth_cache
            total += int(answer.depth_updated.sum()) if index else 0
        counts[drift_safe] = total
    assert counts[False] == 0 and counts[True] >= 25


def test_every_cell_is_refreshed_in_time(reference: Reference) -> None:
    model, cache, updated = fast(reference.opened, refresh_every=3), None, []
    for frame in frames(2, 2, "nssssss"):
        answer = predict(model, frame, cache)
        cache = answer.depth_cache
        updated.append(int(answer.depth_updated.sum()))
    assert updated == [25, 0, 0, 25, 0, 0, 25]


@pytest.mark.parametrize("options", [{"depth_mode": "slow"}, {"redraft": "never"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        InferenceOptions(**options)


def test_both_backends_predict_the_same_from_observations(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, seed=2)
    policies = [
        open_policy(directory, ROBOT, ROBOT.norm_tag, backend=name, device="cpu") for name in ("torch", "reference")
    ]
    assert isinstance(policies[0], StagedPolicy)
    stamp = SECOND
    for index, frame in enumerate(frames(3, 2, "n=cspn")):
        if index == 4:
            for policy in policies:
                policy.reset()
        stamp += SECOND // 10
        observation = Observation(
            images=dict(zip(("front", "wrist"), frame.images, strict=True)),
            image_stamps_ns={"front": stamp, "wrist": stamp + 3},
            joints=ROBOT.rest_position + 0.01 * index,
            joints_stamp_ns=stamp + 7,
            task="Pick up the red cube.",
        )
        ours, theirs = (policy.infer(observation) for policy in policies)
        np.testing.assert_array_equal(ours.depth_codes, theirs.depth_codes)
        np.testing.assert_array_equal(ours.depth_updated, theirs.depth_updated)
        np.testing.assert_allclose(ours.chunk_joints, theirs.chunk_joints, atol=1e-5)
        assert set(ours.timings_ms) == set(theirs.timings_ms)
        parts = sum(value for name, value in ours.timings_ms.items() if name != "total")
        assert 0.0 < parts <= ours.timings_ms["total"]
        assert ours.forwards is not None and theirs.forwards is not None and ours.forwards <= theirs.forwards
