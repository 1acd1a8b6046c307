"""What is exported is trained on by lerobot without special handling, and what comes out opens here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from export_bags import Story, pixels, write_bag
from lerobot_checkpoints import ROBOT, fresh, train
from small_checkpoints import make_checkpoint

from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import ModelFrame
from molmoact2_ros.policy import Observation, open_policy
from molmoact2_ros.recording.export.dataset import column

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["--images", "videos"])
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    root = tmp_path_factory.mktemp("export")
    for number in (1, 2):
        write_bag(root / "bags" / f"episode_000{number}", Story(length_s=2.0))
    options = ["--images"] if request.param == "--images" else []
    assert run(["export", str(root / "bags"), "--out", str(root / "set"), *options]) == 0
    return root / "set"


def test_another_policy_trains_on_it(exported: Path, tmp_path: Path) -> None:
    small = {
        "type": "act",
        "pretrained_backbone_weights": "null",
        "chunk_size": 8,
        "n_action_steps": 8,
        "dim_model": 64,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_decoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "n_heads": 2,
    }
    out = train(tmp_path / "out", exported, *(f"--policy.{key}={value}" for key, value in small.items()))
    assert (out / "checkpoints" / "last" / "pretrained_model" / "model.safetensors").is_file()


def test_a_fine_tune_on_it_opens_and_scales_by_its_quantiles(exported: Path, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", seed=3)
    out = train(tmp_path / "out", exported, *fresh(base))
    folder = out / "checkpoints" / "last" / "pretrained_model"
    policy = open_policy(folder, ROBOT, ROBOT.norm_tag, device="cpu")
    found = policy.checkpoint
    assert found.cameras == ("front", "wrist") and found.frame is ModelFrame.ARM and found.rate_hz == 30
    for key, bounds in (("observation.state", found.state_bounds), ("action", found.action_bounds)):
        expected = np.quantile(column(exported, key), [0.01, 0.99], axis=0)
        np.testing.assert_allclose(bounds, expected, rtol=1e-5)
    seen = {name: pixels(name, 7) for name in found.cameras}
    chunk = policy.infer(Observation(seen, dict.fromkeys(seen, 1), ROBOT.rest_position, 1, "pick up the red cube"))
    assert chunk.chunk_joints.shape == (9, ROBOT.dof) and np.isfinite(chunk.chunk_joints).all()
