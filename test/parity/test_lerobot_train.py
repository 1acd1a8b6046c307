"""What `lerobot-train` itself leaves behind, run here on a CPU at tiny size, gives its prompt and chunks with us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lerobot_checkpoints import ARM_HIGH, ARM_LOW, CAMERAS, NAMES, ROBOT, fresh, hold, train
from small_checkpoints import make_checkpoint

from molmoact2_ros.policy import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as lerobot records it: two episodes of an SO-101 in its own degrees."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("data") / "set"
    features = {key: {"dtype": "float32", "shape": (6,), "names": NAMES} for key in ("observation.state", "action")} | {
        f"observation.images.{name}": {"dtype": "image", "shape": (*size, 3), "names": ["height", "width", "channels"]}
        for name, size in CAMERAS.items()
    }
    written = LeRobotDataset.create("local/tiny", 30, features, root=root, use_videos=False)
    random = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(16):
            frame = {
                key: random.uniform(ARM_LOW, ARM_HIGH).astype(np.float32) for key in ("observation.state", "action")
            }
            for name, size in CAMERAS.items():
                frame[f"observation.images.{name}"] = random.integers(0, 256, (*size, 3)).astype(np.uint8)
            written.add_frame({**frame, "task": "pick up the red cube"})
        written.save_episode()
    written.finalize()
    return root


@pytest.mark.parametrize("mode", ["QUANTILES", "MEAN_STD", "MIN_MAX"])
def test_a_full_fine_tune(base: Path, recorded: Path, tmp_path: Path, mode: str) -> None:
    modes = f'{{"VISUAL": "IDENTITY", "STATE": "{mode}", "ACTION": "{mode}"}}'
    out = train(tmp_path / "out", recorded, *fresh(base, f"--policy.normalization_mapping={modes}"))
    ours = hold(out / "checkpoints" / "000002" / "pretrained_model")
    assert ours.checkpoint.layout == "LeRobot layout, full"
    assert (
        ours.checkpoint.scaling.action == {"QUANTILES": "q01_q99", "MEAN_STD": "mean_std", "MIN_MAX": "min_max"}[mode]
    )
    for folder in (out, out / "checkpoints" / "000002", out / "checkpoints" / "last"):
        assert open_checkpoint(folder, ROBOT, "").directory.name == "pretrained_model"


def test_lora_among_the_weights(base: Path, recorded: Path, tmp_path: Path) -> None:
    options = ("--policy.enable_lora_vlm=true", "--policy.lora_rank=4", "--policy.enable_lora_action_expert=true")
    out = train(tmp_path / "out", recorded, *fresh(base, *options))
    ours = hold(out / "checkpoints" / "last" / "pretrained_model")
    assert "LoRA of rank 4 among the weights" in ours.checkpoint.layout


def test_a_lora_adapter(base: Path, recorded: Path, tmp_path: Path) -> None:
    """Its configuration names no policy that it stands on: it stands on the base."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy
    from peft import PeftModel

    out = train(tmp_path / "out", recorded, *fresh(base, "--peft.method_type=LORA", "--peft.r=3"))
    folder = out / "checkpoints" / "last" / "pretrained_model"
    assert not (folder / "model.safetensors").exists()
    unmerged = PeftModel.from_pretrained(MolmoAct2Policy(PreTrainedConfig.from_pretrained(folder)), folder)
    ours = hold(folder, policy=unmerged.eval())
    assert f"LoRA adapter of rank 3 on {base}" in ours.checkpoint.layout
