"""A checkpoint that does not fit is refused by name, before its weights are read.

Pins: no tag is never a default tag; a cut file, another model's weights, another robot's tag or another frame never
reach the arm.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from released_statistics import write
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.policy import CheckpointError, Choices, open_checkpoint, open_policy
from molmoact2_ros.policy.checkpoint import resolve_directory
from molmoact2_ros.policy.checkpoints.weights import TensorInfo, check_tensors, read_header

TAG = ROBOT.norm_tag


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("original"))


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tag(directory: Path, **values: Any) -> None:
    edit(directory / "norm_stats.json", lambda stats: stats["metadata_by_tag"][TAG].update(values))


def refused(directory: Path | str, *parts: str, tag: str = TAG, cameras: tuple[str, ...] | None = None) -> None:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(directory, ROBOT, tag, cameras)
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_a_good_checkpoint_is_described(original: Path) -> None:
    opened = open_checkpoint(original, ROBOT, TAG)
    assert opened.cameras == ("front", "wrist")
    assert (opened.horizon, opened.rate_hz, opened.depth_side) == (30, 30.0, 3)
    assert opened.frame is ModelFrame.TRAINING
    assert opened.notes == ()


@pytest.mark.parametrize("tag", ["", "  "])
def test_no_tag_is_refused_and_the_tags_are_listed(original: Path, tag: str) -> None:
    refused(original, "no norm tag given", TAG, tag=tag)


def test_unknown_tag_is_refused_and_the_tags_are_listed(original: Path) -> None:
    refused(original, "no norm tag 'franka_droid'", TAG, tag="franka_droid")


@pytest.mark.parametrize(
    "name", ["config.json", "norm_stats.json", "processor_config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    refused(directory, name, "missing")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_weights_are_refused(directory: Path, keep: int) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(directory, "cut short", "fetch it again")


def test_lfs_pointer_is_recognised(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(directory, "Git LFS pointer", "git lfs pull")


def test_damaged_header_is_refused(directory: Path) -> None:
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:12] = b"\xff\xfe{{"
    weights.write_bytes(bytes(content))
    refused(directory, "header is damaged")


def test_size_of_a_tensor_must_fit_its_shape(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="do not fit its shape"):
        read_header(path)


def test_a_missing_shard_is_named(directory: Path) -> None:
    tensors = list(read_header(directory / "model.safetensors"))
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-1.safetensors") | {tensors[0]: "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(directory, "missing model-2.safetensors")
    index["weight_map"][tensors[0]] = "model-1.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(open_checkpoint(directory, ROBOT, TAG).tensors) == len(tensors)


def test_weights_of_another_model_are_refused() -> None:
    found = {"a": TensorInfo("f", "F32", (2, 3)), "extra": TensorInfo("f", "F32", (1,))}
    with pytest.raises(CheckpointError) as error:
        check_tensors(found, {"a": (2, 4), "b": (1,)}, Path("somewhere"))
    for part in ("a: expected (2, 4), got (2, 3)", "1 missing (b)", "1 unknown (extra)"):
        assert part in str(error.value)


def test_mismatched_weights_never_load(directory: Path) -> None:
    edit(directory / "config.json", lambda config: config["text_config"].update(intermediate_size=96))
    with pytest.raises(CheckpointError, match=r"weights do not fit config\.json.*ff_proj"):
        open_policy(directory, ROBOT, TAG)


def test_the_tokenizer_of_another_checkpoint_is_refused(directory: Path) -> None:
    edit(
        directory / "config.json", lambda config: config.update(depth_token_start_id=config["depth_token_start_id"] - 1)
    )
    with pytest.raises(CheckpointError, match="the tokenizer is not this model's: <depth_0>"):
        open_policy(directory, ROBOT, TAG)


def test_other_formats_and_unbounded_scalings_are_refused(directory: Path) -> None:
    edit(directory / "norm_stats.json", lambda stats: stats.update(norm_mode="mean_std"))
    refused(directory, "norm_mode is 'mean_std'", "q01_q99")
    edit(directory / "norm_stats.json", lambda stats: stats.update(format="v0"))
    refused(directory, "format is 'v0'", "molmoact2_norm_stats.v1")


def test_another_kind_of_policy_is_refused_by_name(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"type": "smolvla"}))
    refused(directory, "not a MolmoAct2 checkpoint", "'smolvla'")
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "text_config": {}}))
    refused(directory, "not a MolmoAct2 checkpoint", "'qwen2_vl'")


@pytest.mark.parametrize("kind", ["state_stats", "action_stats"])
def test_another_width_is_refused(directory: Path, kind: str) -> None:
    stats = json.loads((directory / "norm_stats.json").read_text())["metadata_by_tag"][TAG][kind]
    edit_tag(directory, **{kind: {**stats, "q01": stats["q01"][:5]}})
    refused(directory, "5 dimensions", "so101 has 6")


def test_targets_out_of_the_robots_reach_are_refused(directory: Path) -> None:
    stats = json.loads((directory / "norm_stats.json").read_text())["metadata_by_tag"][TAG]["action_stats"]
    edit_tag(directory, action_stats={**stats, "q99": [value * 3 for value in stats["q99"]]})
    refused(directory, "units or the frame")


def test_states_in_another_frame_are_refused(directory: Path) -> None:
    stats = json.loads((directory / "norm_stats.json").read_text())["metadata_by_tag"][TAG]["state_stats"]
    edit_tag(directory, state_stats={**stats, "q50": [3.1, -33.2, 34.4, 57.9, -11.0, 9.2]})
    refused(directory, "another frame")


def test_gripper_scaling_must_be_of_one_mind(directory: Path) -> None:
    edit_tag(directory, normalize_gripper=False)
    refused(directory, "normalize_gripper is False")


def test_relative_control_is_refused(directory: Path) -> None:
    edit_tag(directory, control_mode="delta end-effector pose")
    refused(directory, "'delta end-effector pose'", "'absolute joint pose'")


def test_longer_chunks_mean_another_rate(directory: Path) -> None:
    edit(directory / "config.json", lambda config: config.update(max_action_horizon=60))
    edit_tag(directory, action_horizon=60, n_action_steps=60)
    refused(directory, "60 rows", "wrong speed")


def test_shorter_chunks_are_used_and_said(directory: Path) -> None:
    edit_tag(directory, n_action_steps=10)
    opened = open_checkpoint(directory, ROBOT, TAG)
    assert opened.horizon == 10 and "10 rows" in opened.notes[0]


def test_a_grid_that_is_no_square_is_refused(directory: Path) -> None:
    edit(directory / "config.json", lambda config: config.update(num_depth_codes=10))
    refused(directory, "square number")


@pytest.mark.parametrize(
    ("keys", "chosen", "expected"),
    [
        (["wrist", "front"], None, ("wrist", "front")),
        (["wrist_cam", "front_cam"], None, ("wrist", "front")),
        (["wrist"], None, ("wrist",)),
        (["image", "image2"], ("wrist", "front"), ("wrist", "front")),
        (["image", "image2"], ("image2=front", "image=wrist"), ("wrist", "front")),
        (["image", "image2", "image3"], ("front", "front", "wrist"), ("front", "front", "wrist")),
        (["image", "image2"], ("top",), ("top",)),
        ([], None, ("front", "wrist")),
        ([], ("a", "b", "c"), ("a", "b", "c")),
    ],
)
def test_cameras_follow_the_checkpoint(
    directory: Path, keys: list[str], chosen: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    edit_tag(directory, camera_keys=[f"observation.images.{key}" for key in keys])
    assert open_checkpoint(directory, ROBOT, TAG, chosen).cameras == expected


@pytest.mark.parametrize(
    ("keys", "chosen", "part"),
    [
        (["a", "b", "c"], None, "3 cameras"),
        (["front", "front"], None, "twice"),
        (["wrist_image", "image"], None, 'cameras: ["wrist_image=wrist", "image=?"]'),
        (["cam_wrist", "cam_high"], None, 'cameras: ["cam_wrist=wrist", "cam_high=?"]'),
        (["wrist_left", "wrist_right"], None, "do not say which is which"),
        (["front", "wrist"], ("wrist", "front"), "trained on front, wrist"),
        (["a", "b"], ("a=front",), "one view=camera for each of a, b"),
        (["a", "b"], ("a=front", "c=wrist"), "one view=camera for each of a, b"),
        (["a", "b"], ("a=front", "wrist"), "for all pictures or for none"),
        (["a", "b"], ("a=", "b=wrist"), "expected camera names"),
        ([], ("a=front",), "names no views"),
    ],
)
def test_a_wrong_camera_set_is_refused(
    directory: Path, keys: list[str], chosen: tuple[str, ...] | None, part: str
) -> None:
    edit_tag(directory, camera_keys=[f"observation.images.{key}" for key in keys])
    refused(directory, part, cameras=chosen)


@pytest.mark.parametrize("name", ["", "/no/such/directory", "./no/such"])
def test_a_wrong_path_is_refused_without_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(CheckpointError, match="directory"):
        resolve_directory(name)


def test_a_camera_that_the_cell_does_not_have_is_refused(directory: Path) -> None:
    cell = Choices(cameras=("front", "side"), cell_cameras=("front", "top"))
    with pytest.raises(CheckpointError, match=r"the cell has no side; its cameras are front, top"):
        open_checkpoint(directory, ROBOT, TAG, choices=cell)
    edit_tag(directory, camera_keys=["a.top_cam", "a.cam_front"])
    opened = open_checkpoint(directory, ROBOT, TAG, choices=Choices(cell_cameras=("front", "top")))
    assert opened.cameras == ("top", "front")
    assert any("top_cam is top" in note for note in opened.notes)


def test_the_droid_checkpoint_is_shown_the_exterior_picture_twice_unless_the_user_says_otherwise(
    original: Path, tmp_path: Path
) -> None:
    franka = embodiment("franka")
    directory = Path(shutil.copytree(original, tmp_path / "droid"))
    views = ("exterior_1_left", "exterior_2_left", "wrist_left")
    tag = write(directory, "franka", lambda m: m.update(camera_keys=[f"observation.images.{name}" for name in views]))
    opened = open_checkpoint(directory, franka, tag)
    assert opened.cameras == ("exterior", "exterior", "wrist")
    assert "cameras by name: exterior_1_left is exterior" in opened.notes[0]
    opened = open_checkpoint(directory, franka, tag, ("exterior", "wrist"))
    assert opened.cameras == ("exterior", "wrist")
    assert "2 pictures as you say (exterior, wrist); the checkpoint names 3" in opened.notes[0]


def test_a_hub_id_is_fetched_once_and_only_what_is_needed(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(original)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert open_checkpoint("allenai/MolmoAct2-SO100_101", ROBOT, TAG).directory == original
    files = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    assert asked == [("allenai/MolmoAct2-SO100_101", None, files)]
    for said in ("owner/name@v1.2", "https://huggingface.co/owner/name/tree/v1.2"):
        resolve_directory(said)
    assert asked[1:] == [("owner/name", "v1.2", files)] * 2


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"owner/absent: no such directory here, and fetching.*failed.*hf download"
    ):
        resolve_directory("owner/absent")


def test_checking_needs_no_torch(original: Path) -> None:
    code = (
        "import sys; from molmoact2_ros.policy import open_checkpoint; "
        "from molmoact2_ros.embodiments import embodiment; "
        f"open_checkpoint({str(original)!r}, embodiment('so101'), {TAG!r}); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lerobot', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
