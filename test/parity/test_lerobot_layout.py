"""A checkpoint that lerobot wrote gives lerobot's own prompt, token for token, and its own chunks.

Pins: statistics, cameras and prompt of a fine-tune come from its processors and not from its base; LoRA matrices count;
the SO frame transform of a conversion is applied once; what is not scaled passes as lerobot passes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_checkpoints import (
    ARM_HIGH,
    ARM_LOW,
    ROBOT,
    TASK,
    Theirs,
    arm_statistics,
    degrees_of,
    hold,
    joints,
    new_policy,
    pictures,
    trained,
    write_policy,
)
from small_checkpoints import make_checkpoint

from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.policy import CheckpointError, Choices, open_checkpoint

TAG = ROBOT.norm_tag


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("modes", ["QUANTILES", "MEAN_STD", "MIN_MAX", "QUANTILE10"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_full_fine_tune_in_every_scaling(base: Path, tmp_path: Path, modes: str, backend: str) -> None:
    policy = trained(new_policy(base, modes))
    ours = hold(write_policy(tmp_path / "tuned", policy, arm_statistics()), backend=backend)
    opened = ours.checkpoint
    assert opened.layout == "LeRobot layout, full"
    assert (opened.horizon, opened.cameras, opened.frame) == (9, ("front", "wrist"), ModelFrame.ARM)
    assert opened.depth_side is None


def test_a_fine_tune_does_not_give_its_bases_actions(base: Path, tmp_path: Path) -> None:
    """The test above cannot pass on the base's weights."""
    policy = trained(new_policy(base))
    tuned = write_policy(tmp_path / "tuned", policy, arm_statistics())
    plain = write_policy(tmp_path / "plain", new_policy(base), arm_statistics())
    chunks = [Theirs(folder).chunk(pictures(0), degrees_of(joints(0)), TASK, 0) for folder in (tuned, plain)]
    assert np.abs(chunks[0] - chunks[1]).max() > 1.0


@pytest.mark.parametrize("expert", [False, True])
def test_lora_among_the_weights_is_merged(base: Path, tmp_path: Path, expert: bool) -> None:
    settings = {"enable_lora_vlm": True, "enable_lora_action_expert": expert, "lora_rank": 4, "lora_alpha": 8}
    policy = trained(new_policy(base, **settings))
    ours = hold(write_policy(tmp_path / "lora", policy, arm_statistics()))
    assert ours.checkpoint.layout == "LeRobot layout, LoRA of rank 4 among the weights"


def test_a_lora_adapter_on_another_folder_is_merged(base: Path, tmp_path: Path) -> None:
    """`lerobot-train --peft...` writes the adapter alone, and names the policy that it was trained on."""
    under = write_policy(tmp_path / "under", trained(new_policy(base), seed=5), arm_statistics())
    policy = new_policy(base)
    policy.config.pretrained_path = str(under)
    policy = policy.from_pretrained(under, config=policy.config)
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"r": 3})
    trained(wrapped, parts=("lora_",))
    directory = tmp_path / "adapter"
    wrapped.save_pretrained(directory)
    write_policy(tmp_path / "written", policy, arm_statistics())
    for name in ("policy_preprocessor", "policy_postprocessor"):
        for path in (tmp_path / "written").glob(f"{name}*"):
            shutil.copy(path, directory)
    wrapped.config.use_peft = True
    wrapped.config.save_pretrained(directory)
    assert not (directory / "model.safetensors").exists()
    ours = hold(directory, policy=wrapped.eval())
    assert "LoRA adapter of rank 3" in ours.checkpoint.layout

    settings = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "/gone"}))
    with pytest.raises(CheckpointError, match=r"its base '/gone' is not on this machine; name .* as base_checkpoint"):
        open_checkpoint(directory, ROBOT, TAG)


def test_a_conversion_with_the_published_frame_transform(base: Path, tmp_path: Path) -> None:
    """Its statistics are those of the released frame: the transform is applied once, by whoever runs it."""
    ends = ROBOT.model_from_joints(ROBOT.joints_from_model(np.stack((ARM_LOW, ARM_HIGH)), ModelFrame.ARM))
    stats = arm_statistics(ends.min(axis=0), ends.max(axis=0))
    policy = new_policy(base, joint_signs=[1, -1, 1, 1, 1, 1], joint_offsets=[0, 90, 90, 0, 0, 0])
    ours = hold(write_policy(tmp_path / "converted", policy, stats))
    assert ours.checkpoint.frame is ModelFrame.TRAINING


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_a_fine_tune_says_of_the_prompt_is_what_is_prompted(base: Path, tmp_path: Path, backend: str) -> None:
    policy = new_policy(
        base,
        normalize_language=False,
        add_setup_tokens=False,
        add_control_tokens=False,
        num_state_tokens=64,
        num_inference_steps=4,
    )
    ours = hold(write_policy(tmp_path / "tuned", policy, arm_statistics()), backend=backend)
    assert ours.checkpoint.config["flow_matching_num_steps"] == 4
    assert ours.checkpoint.config["num_state_tokens"] == 64


def test_an_open_gripper_mask_passes_as_lerobot_passes_it(base: Path, tmp_path: Path) -> None:
    """normalize_gripper false: the gripper's values are neither scaled nor shifted, and clipped to -1 .. 1."""
    low, high = ARM_LOW.copy(), ARM_HIGH.copy()
    low[5], high[5] = 0.1, 0.9
    policy = new_policy(base, normalize_gripper=False)
    directory = write_policy(tmp_path / "tuned", policy, arm_statistics(low, high))
    with pytest.raises(CheckpointError, match="gripper spans"):
        open_checkpoint(directory, ROBOT, TAG)


def test_cameras_of_any_name_in_the_order_of_the_training(base: Path, tmp_path: Path) -> None:
    """Order, number and names are the data set's; the cell's cameras are found by name or as the user says."""
    cameras = {"side_cam": (36, 48), "wrist": (48, 64), "top": (30, 40)}
    policy = new_policy(base, cameras=cameras)
    directory = write_policy(tmp_path / "tuned", policy, arm_statistics())
    with pytest.raises(CheckpointError, match=r'cameras: \["side_cam=\?", "wrist=wrist", "top=\?"\]'):
        open_checkpoint(directory, ROBOT, TAG)
    chosen = Choices(cameras=("top=overhead", "side_cam=left", "wrist=wrist"))
    seen_as = {"side_cam": "left", "top": "overhead"}
    ours = hold(directory, choices=chosen, seen_as=seen_as, cameras=cameras)
    assert ours.checkpoint.cameras == ("left", "wrist", "overhead")
    assert any("side_cam is left" in line for line in ours.said)


def test_renamed_cameras_are_found_by_what_the_data_set_called_them(base: Path, tmp_path: Path) -> None:
    cameras = {"image": (48, 64), "image2": (36, 48)}
    renamed = {
        "observation.images.front": "observation.images.image",
        "observation.images.wrist": "observation.images.image2",
    }
    policy = new_policy(base, cameras=cameras)
    directory = write_policy(tmp_path / "tuned", policy, arm_statistics(), rename=renamed)
    opened = open_checkpoint(directory, ROBOT, TAG)
    assert opened.cameras == ("front", "wrist")
    assert "image is front, image2 is wrist" in " ".join(opened.notes)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_base_that_has_moved_is_named_by_the_user(base: Path, tmp_path: Path) -> None:
    directory = write_policy(tmp_path / "tuned", new_policy(base), arm_statistics())
    for name in ("config.json", "policy_preprocessor.json"):
        path = directory / name
        path.write_text(path.read_text().replace(str(base), "/home/somebody/base"))
    with pytest.raises(CheckpointError, match=r"'/home/somebody/base' is not on this machine; name .* base_checkpoint"):
        open_checkpoint(directory, ROBOT, TAG)
    opened = open_checkpoint(directory, ROBOT, TAG, choices=Choices(base=str(base)))
    assert opened.processor == base
    for name in ("config.json", "policy_preprocessor.json"):
        path = directory / name
        path.write_text(path.read_text().replace("/home/somebody/base", "owner/absent"))
    with pytest.raises(CheckpointError, match="of its base owner/absent the processor files are needed"):
        open_checkpoint(directory, ROBOT, TAG)
