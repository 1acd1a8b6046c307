"""The reference backend gives what the reference's own `predict_action` gives, and keeps its depth cache honestly.

Pins: weights are read as stored (the class's own `from_pretrained` draws them anew); no other version of lerobot is
used; nothing that was seen before a reset counts after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.policy import CheckpointError, Observation, loading, open_checkpoint, open_policy, reference
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.reference_contract import broken
from molmoact2_ros.policy.reference_policy import ReferencePolicy

TAG = ROBOT.norm_tag
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def shared(directory: Path) -> ReferencePolicy:
    policy = open_policy(directory, ROBOT, TAG, backend="reference", device="cpu", threads=1)
    assert isinstance(policy, ReferencePolicy)
    return policy


@pytest.fixture
def policy(shared: ReferencePolicy) -> ReferencePolicy:
    """The shared policy as if it had just been opened."""
    shared.reset()
    shared._generator.manual_seed(0)
    shared._log = lambda text: None
    return shared


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def observe(front: np.ndarray, stamp_ns: int = SECOND, task: str = "Pick up the red cube.") -> Observation:
    return Observation(
        images={"wrist": picture(99), "front": front},
        image_stamps_ns={"front": stamp_ns, "wrist": stamp_ns + 5},
        joints=ROBOT.rest_position,
        joints_stamp_ns=stamp_ns + 9,
        task=task,
    )


def reference_answers(directory: Path, observations: list[Observation], seed: int) -> list[Any]:
    """What lerobot's own loader and `predict_action` give, with the weights put in by hand."""
    from lerobot.policies.molmoact2.molmoact2_hf_model.modeling_molmoact2 import MolmoAct2ForConditionalGeneration
    from lerobot.policies.molmoact2.processor_molmoact2 import _load_local_molmoact2_processor

    model = MolmoAct2ForConditionalGeneration.from_pretrained(str(directory), dtype=torch.float32).eval()
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()}, strict=True)
    processor = _load_local_molmoact2_processor(str(directory))
    generator = torch.Generator().manual_seed(seed)
    answers, cache = [], None
    for observation in observations:
        answer = model.predict_action(
            processor=processor,
            images=[observation.images["front"], observation.images["wrist"]],
            task=observation.task,
            state=ROBOT.model_from_joints(observation.joints),
            norm_tag=TAG,
            inference_action_mode="continuous",
            enable_depth_reasoning=model.config.enable_depth_reasoning,
            enable_adaptive_depth=True,
            depth_cache=cache,
            generator=generator,
            enable_cuda_graph=False,
        )
        cache = answer.depth_cache
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    "options", [{}, {"depth_gate": True, "depth_gate_per_layer": True}, {"depth_reasoning": False}]
)
def test_predictions_equal_the_references(tmp_path: Path, options: dict[str, Any]) -> None:
    directory = make_checkpoint(tmp_path, seed=3, dtype=torch.bfloat16, **options)
    first = picture(0)
    changed = first.copy()
    changed[:20, :20] = 255 - changed[:20, :20]
    frames = [observe(image, SECOND + i * 100_000_000) for i, image in enumerate((first, first, changed))]
    policy = open_policy(directory, ROBOT, TAG, backend="reference", device="cpu", threads=1, seed=7)
    expected = reference_answers(directory, frames, seed=7)
    updated = []
    for frame, answer in zip(frames, expected, strict=True):
        prediction = policy.infer(frame)
        np.testing.assert_array_equal(prediction.chunk_model, answer.actions[0].numpy())
        if answer.depth_bins is None:
            assert prediction.depth_codes is None and prediction.depth_updated is None
            continue
        np.testing.assert_array_equal(prediction.depth_codes.ravel(), answer.depth_bins[0].numpy())
        updated.append(int(prediction.depth_updated.sum()))
    if updated:
        assert updated[0] == 9 and updated[1] == 0 and 0 < updated[2] < 9


def test_weights_are_read_as_stored(directory: Path) -> None:
    opened = open_checkpoint(directory, ROBOT, TAG)
    model = loading.load_model(opened, torch.device("cpu"), torch.float32)
    stored = load_file(directory / "model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_processor_equals_lerobots(directory: Path) -> None:
    from lerobot.policies.molmoact2.processor_molmoact2 import _load_local_molmoact2_processor

    text = "Image 1<|image|><|im_start|>user\nThe task is to pick up the red cube.<state_3><depth_output>"
    ours, theirs = loading.load_processor(directory), _load_local_molmoact2_processor(str(directory))
    a, b = (processor(text=text, images=[picture(1)], return_tensors="pt") for processor in (ours, theirs))
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_prediction_is_in_both_units_and_carries_the_oldest_stamp(policy: ReferencePolicy) -> None:
    prediction = policy.infer(observe(picture(0), 5 * SECOND))
    assert prediction.stamp_ns == 5 * SECOND
    assert prediction.chunk_model.shape == prediction.chunk_joints.shape == (30, 6)
    np.testing.assert_allclose(prediction.chunk_joints, ROBOT.joints_from_model(prediction.chunk_model.astype(float)))
    stats = policy.checkpoint.metadata["action_stats"]
    assert np.all(prediction.chunk_model >= np.float32(stats["q01"]) - 1e-3)
    assert np.all(prediction.chunk_model <= np.float32(stats["q99"]) + 1e-3)
    assert np.ptp(prediction.chunk_joints) > 0.01, "a constant chunk would pass every check above"


def test_chunk_depends_on_picture_and_state(policy: ReferencePolicy) -> None:
    def chunk(observation: Observation) -> np.ndarray:
        policy.reset()
        policy._generator.manual_seed(0)
        return policy.infer(observation).chunk_model

    base = observe(picture(0))
    assert np.array_equal(chunk(base), chunk(base))
    assert not np.allclose(chunk(base), chunk(observe(picture(1))))
    assert not np.allclose(chunk(base), chunk(replace(base, joints=ROBOT.rest_position + 0.3)))
    assert not np.allclose(chunk(base), chunk(replace(base, images=dict(base.images, wrist=picture(5)))))


def test_forwards_and_stage_times_are_counted(policy: ReferencePolicy) -> None:
    first, second = policy.infer(observe(picture(0))), policy.infer(observe(picture(0), 2 * SECOND))
    # Prefill, <depth_start>, the cells one by one or in one span, and <depth_end>.
    assert first.forwards == 1 + 1 + 9 + 1
    assert second.forwards == 1 + 1 + 1 + 1
    assert set(first.timings_ms) == {"preprocess", "vision", "prefill", "depth", "flow", "total"}
    parts = sum(value for name, value in first.timings_ms.items() if name != "total")
    assert 0.0 < parts <= first.timings_ms["total"]


def updated_after(policy: ReferencePolicy, observation: Observation) -> int:
    prediction = policy.infer(observation)
    assert prediction.depth_updated is not None
    return int(prediction.depth_updated.sum())


def test_reset_drops_the_depth_cache(policy: ReferencePolicy) -> None:
    assert updated_after(policy, observe(picture(0), SECOND)) == 9
    assert updated_after(policy, observe(picture(0), 2 * SECOND)) == 0
    policy.reset()
    assert updated_after(policy, observe(picture(0), 3 * SECOND)) == 9


def test_another_task_drops_the_depth_cache(policy: ReferencePolicy) -> None:
    updated_after(policy, observe(picture(0), SECOND))
    assert updated_after(policy, observe(picture(0), 2 * SECOND, "pick up the red cube!")) == 0, (
        "the same task to the model"
    )
    assert updated_after(policy, observe(picture(0), 3 * SECOND, "put it down")) == 9


@pytest.mark.parametrize("stamp", [4 * SECOND, SECOND // 2])
def test_a_gap_in_time_drops_the_depth_cache_and_says_so(policy: ReferencePolicy, stamp: int) -> None:
    said: list[str] = []
    policy._log = said.append
    updated_after(policy, observe(picture(0), SECOND))
    assert updated_after(policy, observe(picture(0), stamp)) == 9
    assert len(said) == 1 and "depth cache dropped" in said[0]


def test_an_unusable_cache_is_said(policy: ReferencePolicy) -> None:
    said: list[str] = []
    policy._log = said.append
    updated_after(policy, observe(picture(0), SECOND))
    assert policy._cache is not None
    policy._cache = {**policy._cache, "depth_bins": np.zeros(4, np.int64)}
    assert updated_after(policy, observe(picture(0), 2 * SECOND)) == 9
    assert said and "4 codes instead of 9" in said[0]


@pytest.mark.parametrize("task", ["", "   ", "...", "Task:"])
def test_empty_task_is_refused(policy: ReferencePolicy, task: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        policy.infer(observe(picture(0), task=task))


def test_wrong_camera_set_is_refused(policy: ReferencePolicy) -> None:
    whole = observe(picture(0))
    for names in (["front"], ["front", "side"], ["front", "wrist", "side"]):
        part = replace(
            whole,
            images={name: picture(0) for name in names},
            image_stamps_ns=dict.fromkeys(names, SECOND),
        )
        with pytest.raises(ValueError, match="needs the cameras front, wrist, got"):
            policy.infer(part)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_wrong_picture_is_refused(policy: ReferencePolicy, image: Any) -> None:
    with pytest.raises(ValueError, match="camera 'front': expected RGB uint8"):
        policy.infer(observe(image))


def test_wrong_state_is_refused(policy: ReferencePolicy) -> None:
    for joints in (np.zeros(5), np.zeros((1, 6)), np.array([0, 0, 0, 0, 0, np.nan])):
        with pytest.raises(ValueError, match="so101: "):
            policy.infer(replace(observe(picture(0)), joints=joints))


def test_a_state_outside_the_training_range_is_said_once(policy: ReferencePolicy) -> None:
    said: list[str] = []
    policy._log = said.append
    far = replace(observe(picture(0)), joints=ROBOT.rest_position + np.array([1.5, 0, 0, 0, 0, 0]))
    policy.infer(far)
    policy.infer(far)
    assert len(said) == 1 and said[0].startswith("shoulder_pan outside the range")


def test_a_depth_sequence_without_an_end_is_an_error_and_keeps_the_cache(policy: ReferencePolicy) -> None:
    updated_after(policy, observe(picture(0), SECOND))
    head = policy._model.model.lm_head.weight
    end = policy._model.model.config.depth_end_token_id
    saved = head[end].clone()
    try:
        head[end] = -saved
        with pytest.raises(UnendedSequenceError, match="depth_end"):
            policy.infer(observe(picture(0), 2 * SECOND))
    finally:
        head[end] = saved
    assert updated_after(policy, observe(picture(0), 2 * SECOND)) == 0


def test_another_lerobot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "version", lambda name: "0.7.0")
    with pytest.raises(RuntimeError, match=r"lerobot 0\.7\.0 is installed, the policy needs 0\.6\.x"):
        loading.require_lerobot()
    monkeypatch.setattr(loading, "version", lambda name: "0.6.4")
    loading.require_lerobot()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda module: setattr(module, "_build_robot_text", lambda task: ""), "_build_robot_text takes (task)"),
        (lambda module: delattr(module, "_extract_first_image"), "_extract_first_image is gone"),
    ],
)
def test_a_release_that_changed_what_is_called_is_refused_with_the_names(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[ModuleType], None], part: str
) -> None:
    real = loading.modeling()
    assert broken(real) == []
    other = ModuleType("other")
    vars(other).update(vars(real))
    change(other)
    monkeypatch.setattr(loading, "reference_module", lambda name: other)
    with pytest.raises(RuntimeError) as error:
        loading.modeling()
    assert part in str(error.value) and "install lerobot[molmoact2]==0.6.1" in str(error.value)


def test_unknown_backend_device_and_dtype_are_refused(directory: Path) -> None:
    for option, part in (
        ({"backend": "magic"}, "backend"),
        ({"device": "abacus"}, "device"),
        ({"dtype": "int3"}, "dtype"),
    ):
        with pytest.raises(ValueError, match=f"unknown {part}"):
            open_policy(directory, ROBOT, TAG, **option)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            open_policy(directory, ROBOT, TAG, device="cuda")


def test_config_that_describes_no_model_is_refused(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not describe"):
        loading.empty_model({"text_config": {"hidden_size": "wide"}})


@pytest.mark.parametrize("size", [(480, 640), (240, 320), (479, 641), (60, 80), (31, 47), (720, 1280)])
def test_images_are_resized_for_the_change_of_cells_as_the_reference_does(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(7).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = loading.modeling()._resize_depth_reasoning_image(image, 320)
    np.testing.assert_array_equal(reference.resized_for_depth(image, 320), expected)
    # Where torch gives other pixels it is not used.
    whole = reference._resized_by_torch
    monkeypatch.setattr(reference, "_resized_by_torch", lambda image, side: whole(image[:, ::-1].copy(), side))
    reference._torch_resizes_alike.cache_clear()
    np.testing.assert_array_equal(reference.resized_for_depth(image, 320), expected)
    reference._torch_resizes_alike.cache_clear()
