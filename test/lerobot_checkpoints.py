"""Checkpoints written by lerobot itself, at tiny size: its policy's and its processors' own `save_pretrained`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molmoact2_ros.embodiments import ModelFrame, embodiment
from molmoact2_ros.policy import Choices, Observation, open_policy
from molmoact2_ros.policy.reference import normalized_task

ROBOT = embodiment("so101")
TAG = ROBOT.norm_tag
TASK = "Pick up the red cube."
TOLERANCE = 1e-4
"""Of an action, in the flow's scale of -1 .. 1."""
SETUP, CONTROL = "single so101 robotic arm", "absolute joint pose"
NAMES = [f"{name}.pos" for name in ROBOT.joint_names]
ARM_LOW = np.array([-60.0, -104.0, -80.0, -70.0, -90.0, 1.0])
ARM_HIGH = np.array([70.0, 55.0, 97.0, 98.0, 80.0, 60.0])
"""What a fine-tune on an arm of today spans: degrees about mid-travel, the gripper 0 to 100."""
CAMERAS = {"front": (48, 64), "wrist": (36, 48)}


def arm_statistics(low: np.ndarray = ARM_LOW, high: np.ndarray = ARM_HIGH) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a data set as LeRobot's have them, for states and actions."""
    span = high - low
    values = {
        "min": low - 0.02 * span,
        "max": high + 0.03 * span,
        "mean": low + 0.45 * span,
        "std": 0.21 * span,
        "q01": low,
        "q10": low + 0.08 * span,
        "q50": low + 0.4 * span,
        "q90": high - 0.1 * span,
        "q99": high,
        "count": np.array([500]),
    }
    return {"observation.state": dict(values), "action": {name: np.copy(value) for name, value in values.items()}}


def new_policy(base: Path, modes: str = "QUANTILES", dof: int = 6, **settings: Any) -> Any:
    """lerobot's policy of `base`, as `lerobot-train` makes it."""
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy

    cameras = settings.pop("cameras", CAMERAS)
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (dof,))}
    for name, size in cameras.items():
        inputs[f"observation.images.{name}"] = PolicyFeature(FeatureType.VISUAL, (3, *size))
    mode = NormalizationMode(modes)
    config = MolmoAct2Config(
        **{
            "checkpoint_path": str(base),
            "device": "cpu",
            "model_dtype": "float32",
            "push_to_hub": False,
            "chunk_size": 12,
            "n_action_steps": 9,
            "action_mode": "continuous",
            "setup_type": SETUP,
            "control_mode": CONTROL,
            "normalize_gripper": True,
            "normalization_mapping": {"VISUAL": NormalizationMode.IDENTITY, "STATE": mode, "ACTION": mode},
            "input_features": inputs,
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (dof,))},
            "dataset_feature_names": {"action": NAMES, "observation.state": NAMES} if dof == 6 else {},
            **settings,
        }
    )
    policy = MolmoAct2Policy(config)
    return policy.eval()


def trained(policy: Any, seed: int = 1, parts: tuple[str, ...] = ("action_expert", "lora_")) -> Any:
    """`policy` as if it had been trained: what training changes is not what the base has any more."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if any(part in name for part in parts):
                parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return policy


def write_policy(
    directory: Path, policy: Any, stats: Mapping[str, Mapping[str, Any]], rename: dict[str, str] | None = None
) -> Path:
    """Save the policy and its processors into `directory`, as the end of a training does."""
    from lerobot.policies.molmoact2.processor_molmoact2 import make_molmoact2_pre_post_processors

    policy.save_pretrained(directory)
    before, after = make_molmoact2_pre_post_processors(policy.config, dataset_stats=stats)  # type: ignore[arg-type]
    if rename:
        before.steps[0].rename_map = rename
    before.save_pretrained(directory)
    after.save_pretrained(directory)
    return directory


class Theirs:
    """lerobot's own policy with its processors, loaded from a folder."""

    def __init__(self, directory: Path, policy: Any = None) -> None:
        from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy
        from lerobot.processor import PolicyProcessorPipeline
        from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

        self.policy = policy or MolmoAct2Policy.from_pretrained(directory)
        self.before: Any = PolicyProcessorPipeline.from_pretrained(
            directory, config_filename="policy_preprocessor.json"
        )
        self.after: Any = PolicyProcessorPipeline.from_pretrained(
            directory,
            config_filename="policy_postprocessor.json",
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        )

    def prompt(self, images: Mapping[str, np.ndarray], state: np.ndarray, task: str) -> dict[str, Any]:
        """What the model is given: `input_ids`, `pixel_values` and more."""
        batch: dict[str, Any] = {
            f"observation.images.{name}": torch.from_numpy(image) for name, image in images.items()
        }
        batch["observation.state"] = torch.from_numpy(state.astype(np.float32))
        batch["task"] = task
        return dict(self.before(batch))

    def chunk(self, images: Mapping[str, np.ndarray], state: np.ndarray, task: str, seed: int) -> np.ndarray:
        """The chunk (rows, dof) in the arm's own units."""
        batch = self.prompt(images, state, task)
        with torch.inference_mode():
            actions = self.policy.predict_action_chunk(
                batch, inference_action_mode="continuous", generator=torch.Generator().manual_seed(seed)
            )
        return np.asarray(self.after(actions[0]))


def degrees_of(joints: np.ndarray) -> np.ndarray:
    """The arm's joints as lerobot's driver gives them: degrees, the gripper 0 to 100."""
    return ROBOT.model_from_joints(joints, ModelFrame.ARM)


def pictures(seed: int, cameras: dict[str, tuple[int, int]] | None = None) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = cameras or CAMERAS
    return {name: random.integers(0, 256, (*size, 3)).astype(np.uint8) for name, size in sizes.items()}


def joints(seed: int) -> np.ndarray:
    low, high = ROBOT.joints_from_model(np.stack((ARM_LOW, ARM_HIGH)), ModelFrame.ARM)
    return np.random.default_rng(seed).uniform(low, high)


def hold(
    directory: Path,
    policy: Any = None,
    backend: str = "torch",
    choices: Choices | None = None,
    seen_as: dict[str, str] | None = None,
    task: str = TASK,
    cameras: dict[str, tuple[int, int]] | None = None,
) -> Any:
    """Load `directory` both ways, and compare prompts and chunks on three moments; returns our policy."""
    theirs = Theirs(directory, policy)
    said: list[str] = []
    ours: Any = open_policy(directory, ROBOT, TAG, backend=backend, device="cpu", choices=choices, log=said.append)
    span = ours.checkpoint.action_bounds[1] - ours.checkpoint.action_bounds[0]
    for seed in range(3):
        images, measured = pictures(seed, cameras), joints(seed)
        shown = {(seen_as or {}).get(name, name): image for name, image in images.items()}
        moment = Observation(shown, dict.fromkeys(shown, 1), measured, 1, task)
        ours._generator.manual_seed(seed)
        prediction = ours.infer(moment)
        expected = theirs.chunk(images, degrees_of(measured), task, seed)
        got = degrees_of(prediction.chunk_joints)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < TOLERANCE * span.max() / 2, f"{seed}: {np.abs(got - expected).max()}"
        if backend == "torch":
            prompt = theirs.prompt(images, degrees_of(measured), task)["input_ids"][0]
            assert torch.equal(our_prompt(ours, shown, measured, task), prompt)
    ours.said = said
    return ours


def our_prompt(policy: Any, images: dict[str, np.ndarray], measured: np.ndarray, task: str) -> torch.Tensor:
    opened, model = policy.checkpoint, policy._model
    state = model._stats.normalize_state(ROBOT.model_from_joints(measured, opened.frame), opened.norm_tag)
    said = normalized_task(task) if opened.normalize_language else task
    _, ids = model._preprocess.prompt(said, np.asarray(state, np.float32), [images[name] for name in opened.cameras])
    return ids


def train(out: Path, data: Path, *options: str) -> Path:
    """Run `lerobot-train` for two steps on the data set in `data`; returns its output folder."""
    arguments = [
        str(Path(sys.executable).with_name("lerobot-train")),
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={data}",
        f"--output_dir={out}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--steps=2",
        "--save_freq=2",
        "--batch_size=2",
        "--num_workers=0",
        "--wandb.enable=false",
        *options,
    ]
    done = subprocess.run(
        arguments, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def fresh(base: Path, *more: str) -> list[str]:
    """Options of a new fine-tune of `base`."""
    settings = {
        "type": "molmoact2",
        "checkpoint_path": base,
        "model_dtype": "float32",
        "action_mode": "continuous",
        "chunk_size": 12,
        "n_action_steps": 9,
        "normalize_gripper": "true",
        "setup_type": SETUP,
        "control_mode": CONTROL,
        "optimizer_action_expert_lr": 0.01,
    }
    return [*(f"--policy.{key}={value}" for key, value in settings.items()), *more]
