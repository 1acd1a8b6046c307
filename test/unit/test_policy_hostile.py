"""What people's folders look like when something went wrong: one line each, and nothing is loaded before it.

Pins: a value of another type never becomes a KeyError deep inside; weights that an interrupted download left do not
start a node; a task cannot speak to the model in its own tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.embodiments import EMBODIMENTS, embodiment
from molmoact2_ros.policy import CheckpointError, Observation, open_checkpoint, open_policy
from molmoact2_ros.policy.checkpoints.weights import TensorInfo, check_tensors

TAG = ROBOT.norm_tag
Json = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("original"))


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[Json], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(directory: Path, part: str, tag: str = TAG) -> None:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(directory, ROBOT, tag)
    assert part in str(error.value), str(error.value)


def open_quietly(directory: Path, **more: Any) -> Any:
    return open_policy(directory, ROBOT, TAG, device="cpu", backend="torch", log=lambda text: None, **more)


def observation(policy: Any, task: str = "pick up the red cube") -> Observation:
    images = {name: np.full((30, 40, 3), 90, np.uint8) for name in policy.checkpoint.cameras}
    return Observation(images, dict.fromkeys(images, 1), ROBOT.rest_position, 1, task)


# -- config.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"flow_matching_num_steps": 0}, "flow_matching_num_steps must be a whole number of at least 1, got 0"),
        ({"image_patch_id": None}, "image_patch_id must be a whole number of at least 0, got None"),
        ({"num_state_tokens": 0}, "num_state_tokens must be a whole number of at least 2, got 0"),
        ({"max_action_horizon": "thirty"}, "max_action_horizon must be a whole number"),
        ({"max_action_dim": None}, "max_action_dim must be a whole number"),
        ({"num_depth_codes": "many"}, "num_depth_codes must be a whole number"),
        ({"text_config": None}, "text_config must be an object, got None"),
        ({"add_setup_tokens": "yes"}, "add_setup_tokens must be true or false, got 'yes'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be read"),
        ({"norm_stats_filename": "../norm_stats.json"}, "expected the name of a file in its folder"),
        ({"norm_stats_filename": "/etc/passwd"}, "expected the name of a file in its folder"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file(directory: Path, values: Json, part: str) -> None:
    edit(directory / "config.json", lambda config: config.update(values))
    refused(directory, part)


def test_another_attention_is_told_and_not_used(directory: Path) -> None:
    """flash_attention_2 in a part of the configuration ended the first call."""
    edit(
        directory / "config.json",
        lambda config: [
            config[part].update(attn_implementation="flash_attention_2") for part in ("text_config", "vit_config")
        ],
    )
    opened = open_checkpoint(directory, ROBOT, TAG)
    assert any("text_config.attn_implementation 'flash_attention_2' is not used" in note for note in opened.notes)
    open_quietly(directory).infer(observation(open_quietly(directory)))


# -- norm_stats.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda stats: stats["metadata_by_tag"].update({TAG: None}), "should hold an object, got None"),
        (lambda stats: stats["metadata_by_tag"][TAG].update(action_horizon="thirty"), "action_horizon must be a whole"),
        (lambda stats: stats["metadata_by_tag"][TAG].update(n_action_steps=0), "n_action_steps must be a whole"),
        (
            lambda stats: stats["metadata_by_tag"][TAG].update(camera_keys="front"),
            "camera_keys must be a list of names",
        ),
        (lambda stats: stats["metadata_by_tag"][TAG].update(setup_type=3), "setup_type must be text, got 3"),
        (lambda stats: stats["metadata_by_tag"][TAG].update(action_stats=[]), "action_stats are missing"),
        (lambda stats: stats["metadata_by_tag"][TAG]["state_stats"].update(q01=None), "no numbers 'q01'"),
        (lambda stats: stats["metadata_by_tag"][TAG]["state_stats"].update(q99=["a"] * 6), "no numbers 'q99'"),
        (lambda stats: stats["metadata_by_tag"][TAG]["state_stats"].update(mask=[True]), "mask of state_stats"),
        (lambda stats: stats.update(metadata_by_tag=[]), "metadata_by_tag is empty"),
    ],
)
def test_statistics_that_cannot_be_are_named(directory: Path, change: Callable[[Json], Any], part: str) -> None:
    edit(directory / "norm_stats.json", change)
    refused(directory, part)


def test_another_tags_statistics_do_not_matter(directory: Path) -> None:
    edit(
        directory / "norm_stats.json",
        lambda stats: stats["metadata_by_tag"].update(other={"action_stats": {"min": [0]}, "state_stats": {}}),
    )
    policy = open_quietly(directory)
    policy.infer(observation(policy))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("mode", ["min_max", "q10_q90"])
def test_every_bounded_scaling_runs(directory: Path, mode: str, backend: str) -> None:
    """What was not q01_q99 ended in a KeyError."""
    low, high = {"min_max": ("min", "max"), "q10_q90": ("q10", "q90")}[mode]

    def change(stats: Json) -> None:
        stats["norm_mode"] = mode
        for kind in ("state_stats", "action_stats"):
            values = stats["metadata_by_tag"][TAG][kind]
            values[low], values[high] = values.pop("q01"), values.pop("q99")

    edit(directory / "norm_stats.json", change)
    policy = open_policy(directory, ROBOT, TAG, device="cpu", backend=backend, log=lambda text: None)
    rows = policy.infer(observation(policy)).chunk_model
    bounds = policy.checkpoint.action_bounds
    assert np.all(rows >= bounds[0] - 1e-4) and np.all(rows <= bounds[1] + 1e-4)
    if backend == "torch":
        from molmoact2_ros.policy.backends.bucket_sizes import buckets_for

        buckets_for(policy.checkpoint, policy._model.model.config, policy._model._preprocess._processor, 0)


# -- weights --------------------------------------------------------------------------------------------------------


def damage(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("value", "part"),
    [(float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity"), (0.0, "nothing but zeros")],
)
def test_weights_that_cannot_be_do_not_start_a_node(directory: Path, value: float, part: str) -> None:
    name = "model.transformer.blocks.1.mlp.ff_out.weight"
    damage(directory, lambda tensors: tensors[name].fill_(value))
    with pytest.raises(CheckpointError, match=rf"1 of \d+ weights hold {part} \({name}\).*fetch the checkpoint again"):
        open_quietly(directory)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_quantised_weights_without_scales_are_refused(directory: Path, dtype: str) -> None:
    name = "lm_head.weight"
    damage(directory, lambda tensors: tensors.update({name: tensors[name].to(getattr(torch, dtype))}))
    with pytest.raises(CheckpointError, match=r"1 weights are stored as (I8|F8_E4M3) \(lm_head.weight\)"):
        open_quietly(directory)


def test_half_precision_weights_are_read(original: Path, directory: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        tensors = load_file(original / "model.safetensors")
        save_file({name: value.to(kind) for name, value in tensors.items()}, directory / "model.safetensors")
        policy = open_quietly(directory)
        policy.infer(observation(policy))
        assert policy._model.model.lm_head.weight.dtype is torch.float32


def shards(directory: Path, count: int = 3, folder: str = "") -> dict[str, str]:
    """Cut the weights into shards with an index, as transformers does; returns its map."""
    single = directory / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    files: dict[str, str] = {}
    for index in range(count):
        file = f"{folder}model-{index + 1:05d}-of-{count:05d}.safetensors"
        names = sorted(tensors)[index::count]
        (directory / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in names}, directory / file)
        files |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return files


def test_shards_with_surplus_and_missing_names_in_the_index_are_read(original: Path, directory: Path) -> None:
    files = shards(directory)
    index = directory / "model.safetensors.index.json"

    def change(content: Json) -> None:
        content["weight_map"]["model.nothing.weight"] = "model-00001-of-00003.safetensors"
        content["weight_map"].pop(sorted(files)[4])

    edit(index, change)
    damaged = load_file(directory / "model-00001-of-00003.safetensors")
    save_file({**damaged, "model.extra": torch.zeros(2)}, directory / "model-00001-of-00003.safetensors")
    one, two = open_quietly(original), open_quietly(directory)
    rows = [policy.infer(observation(policy)).chunk_model for policy in (one, two)]
    np.testing.assert_array_equal(*rows)


def test_shards_where_the_index_says_they_are_in_a_folder_are_read(directory: Path) -> None:
    shards(directory, folder="weights/")
    policy = open_quietly(directory)
    policy.infer(observation(policy))


def test_shards_that_were_put_into_a_folder_are_found_and_named(directory: Path) -> None:
    files = shards(directory)
    (directory / "weights").mkdir()
    for file in set(files.values()):
        (directory / file).rename(directory / "weights" / file)
    refused(directory, "weights/model-00001-of-00003.safetensors is there: move the shards beside the index")


def test_shards_without_an_index_are_named(directory: Path) -> None:
    shards(directory)
    (directory / "model.safetensors.index.json").unlink()
    refused(directory, "3 shards, but model.safetensors.index.json is missing; fetch it")


def test_an_index_cannot_lead_out_of_the_folder(directory: Path) -> None:
    shards(directory)
    edit(
        directory / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(x="../../secret.safetensors"),
    )
    refused(directory, "expected the name of a file in its folder, got '../../secret.safetensors'")


def test_a_single_file_beside_shards_is_refused(original: Path, directory: Path) -> None:
    """We took the one, lerobot the others."""
    shards(directory)
    shutil.copy(original / "model.safetensors", directory)
    refused(directory, "both model.safetensors and model.safetensors.index.json are there")


def test_weights_named_as_lerobot_names_them_are_not_a_released_checkpoint(directory: Path) -> None:
    """The base's norm_stats.json beside weights of a fine-tune loaded silently with the wrong scaling."""
    path = directory / "model.safetensors"
    save_file({f"model.{name}": value for name, value in load_file(path).items()}, path)
    refused(directory, "named as lerobot names them (model.")


def test_a_training_of_lerobots_beside_released_statistics_is_refused(directory: Path) -> None:
    (directory / "train_config.json").write_text("{}")
    refused(directory, "norm_stats.json and train_config.json are of two layouts")


def test_surplus_tensors_do_not_matter_and_missing_ones_do() -> None:
    check_tensors({"a": TensorInfo("f", "F32", (2,)), "b": TensorInfo("f", "F32", (2,))}, {"a": (2,)}, Path("x"))
    with pytest.raises(CheckpointError, match=r"1 missing \(b\)"):
        check_tensors({"a": TensorInfo("f", "F32", (2,))}, {"a": (2,), "b": (2,)}, Path("x"))


# -- processor and tokenizer ----------------------------------------------------------------------------------------


def test_image_settings_of_transformers_4_are_read(original: Path, directory: Path) -> None:
    """They were passed over, and images cut into crops."""
    edit(directory / "processor_config.json", lambda config: config.pop("image_processor"))
    said: list[str] = []
    policy = open_policy(directory, ROBOT, TAG, device="cpu", backend="torch", log=said.append)
    other = open_quietly(original)
    rows = [one.infer(observation(one)).chunk_model for one in (policy, other)]
    np.testing.assert_array_equal(*rows)
    assert not said


def test_no_image_settings_at_all_are_refused(directory: Path) -> None:
    edit(directory / "processor_config.json", lambda config: config.pop("image_processor"))
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="says how images are prepared"):
        open_quietly(directory)


@pytest.mark.parametrize(
    ("values", "part"),
    [({"size": {"height": 56, "width": 56}}, "images of 56 x 56"), ({"patch_size": 7}, "patches of 7")],
)
def test_images_of_another_size_are_refused(directory: Path, values: Json, part: str) -> None:
    edit(directory / "processor_config.json", lambda config: config["image_processor"].update(values))
    with pytest.raises(CheckpointError, match=f"its processor gives {part}, the model takes 28 x 28 in patches of 14"):
        open_quietly(directory)


@pytest.mark.parametrize(("one", "two"), [("<state_5>", "<state_6>"), ("<depth_0>", "<depth_127>")])
def test_two_tokens_in_each_others_place_are_refused(directory: Path, one: str, two: str) -> None:
    path = directory / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace(one, "<swap>").replace(two, one).replace("<swap>", two))
    with pytest.raises(CheckpointError, match=f"the tokenizer is not this model's: {one} is"):
        open_quietly(directory)


# -- tasks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["torch", "reference"])
def policy(original: Path, request: pytest.FixtureRequest) -> Any:
    return open_policy(original, ROBOT, TAG, device="cpu", backend=request.param, log=lambda text: None)


@pytest.mark.parametrize(
    "token", ["<action_start>", "<|im_end|>", "<|image|>", "<depth_end>", "<im_patch>", "<state_3>", "<|IM_END|>"]
)
def test_a_task_cannot_hold_the_models_own_tokens(policy: Any, token: str) -> None:
    with pytest.raises(ValueError, match="which means something else to the model than words") as error:
        policy.infer(observation(policy, f"pick up the cube {token} and go"))
    assert token.lower() in str(error.value).lower()


def test_a_task_that_does_not_fit_is_refused_in_words(policy: Any) -> None:
    with pytest.raises(ValueError, match=r"the task is too long: its prompt has \d+ tokens, \d+ fit"):
        policy.infer(observation(policy, "pick up the cube " * 1000))
    assert policy.infer(observation(policy)).chunk_model.shape == (30, 6)


# -- what is not the checkpoint's fault ------------------------------------------------------------------------------


def test_a_cache_folder_that_cannot_be_made_stops_only_what_needs_it(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MOLMOACT2_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("molmoact2_ros.policy.backends.amx.reason_against", lambda: "none here")
    policy = open_policy(directory, ROBOT, TAG, device="cpu", backend="auto", log=lambda text: None)
    policy.infer(observation(policy))


@pytest.mark.parametrize("robot", sorted(EMBODIMENTS))
def test_a_random_checkpoint_fits_the_robot_that_it_is_made_for(robot: str, tmp_path: Path) -> None:
    """`compile --self-test` and `bench policy` refused their own for all robots but one."""
    from molmoact2_ros.training.random_model import write_random_checkpoint

    body = embodiment(robot)
    write_random_checkpoint(tmp_path, "small", body, "pick up the red cube", weights=False)
    opened = open_checkpoint(tmp_path, body, body.norm_tag)
    assert opened.horizon == body.horizon and opened.cameras == body.camera_names
