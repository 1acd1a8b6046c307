"""bfloat16 matrices with action expert, norms and rotary positions in float32; and how much memory a load takes.

Pins: what a GPU runs does not depend on the type that a file happens to hold; the mix is nearer to float32
than bfloat16 alone; weights are never held twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, TASK, checkpoint, frames, scaled
from small_checkpoints import ROBOT

from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import EagerRunner, bucketed_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_processor
from molmoact2_ros.policy.model_policy import _dtype
from molmoact2_ros.policy.staged_model import StagedModel
from molmoact2_ros.policy.stages.stage_set import torch_stages
from molmoact2_ros.policy.tensors import MIXED


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint(tmp_path_factory.mktemp("mixed"), 2, depth_reasoning=False, text_layers=4)


def chunks(model: StagedModel) -> np.ndarray:
    found = []
    for index, frame in enumerate(frames(7, 2, "nscn")):
        generator = torch.Generator().manual_seed(index)
        found.append(model.predict(frame.images, TASK, frame.state, depth_cache=None, generator=generator).actions)
    return np.stack([scaled(model.checkpoint, chunk) for chunk in found])


def quiet(text: str) -> None:
    pass


def bucketed(opened: Checkpoint, model: Any, dof: int) -> Any:
    buckets = buckets_for(opened, model.config, load_processor(opened.processor), 0)
    return bucketed_stages(model, dof, buckets, EagerRunner(), quiet)


def test_a_gpu_runs_the_mix_and_a_cpu_float32_whatever_the_file_holds() -> None:
    assert _dtype("auto", torch.device("cuda")) == MIXED
    assert _dtype("auto", CPU) is torch.float32
    assert _dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(ValueError, match="unknown dtype 'int8'; use auto, float32, bfloat16, float16, mixed"):
        _dtype("int8", CPU)


def test_every_weight_is_held_in_its_type(opened: Checkpoint) -> None:
    model = StagedModel(opened, CPU, MIXED, quiet).model
    kinds: dict[torch.dtype, set[str]] = {}
    for name, weight in model.named_parameters():
        kinds.setdefault(weight.dtype, set()).add(name)
    assert set(kinds) == {torch.bfloat16, torch.float32}
    expert = {name for name, _ in model.named_parameters() if "action_expert" in name}
    norms = {name for name, weight in model.model.transformer.named_parameters() if weight.ndim == 1}
    assert kinds[torch.float32] == expert | {f"model.transformer.{name}" for name in norms}
    assert "lm_head.weight" in kinds[torch.bfloat16] and len(norms) >= 9
    assert model.model.transformer.rotary_emb.inv_freq.dtype is torch.float32


def test_the_mix_is_nearer_to_float32_than_bfloat16_throughout(opened: Checkpoint) -> None:
    exact = chunks(StagedModel(opened, CPU, torch.float32, quiet))
    errors = {
        name: float(np.sqrt(np.mean((chunks(StagedModel(opened, CPU, kind, quiet)) - exact) ** 2)))
        for name, kind in (("mixed", MIXED), ("bfloat16", torch.bfloat16))
    }
    assert 0.0 < errors["mixed"] < 0.5 * errors["bfloat16"], errors


def test_the_mix_runs_in_buckets_as_it_runs_plainly(opened: Checkpoint) -> None:
    plain = chunks(StagedModel(opened, CPU, MIXED, quiet, None, torch_stages))
    padded = chunks(StagedModel(opened, CPU, MIXED, quiet, None, partial(bucketed, opened)))
    # The same arithmetic in other shapes: bfloat16's rounding differs here and there.
    assert np.abs(plain - padded).max() < 0.05


def test_depth_is_predicted_in_the_mix(tmp_path: Path) -> None:
    think = checkpoint(tmp_path, 2, depth_gate=True, depth_gate_per_layer=True)
    model = StagedModel(think, CPU, MIXED, quiet)
    cache = None
    for frame in frames(3, 2, "ncs"):
        answer = model.predict(frame.images, TASK, frame.state, depth_cache=cache, generator=torch.Generator())
        cache = answer.depth_cache
        assert answer.depth_bins is not None and answer.depth_bins.size == 9 and np.all(np.isfinite(answer.actions))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float32", "MIXED"])
def test_loading_takes_the_model_and_the_largest_tensor(tmp_path: Path, dtype: str) -> None:
    """A shard, and the whole in the file's type, were held beside the model."""
    from molmoact2_ros.training.random_model import write_random_checkpoint

    write_random_checkpoint(tmp_path, "mid", ROBOT, TASK, dtype=torch.float32)
    code = f"""
import json, resource, torch
from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.policy import open_checkpoint
from molmoact2_ros.policy.loading import empty_model, load_model
from molmoact2_ros.policy.tensors import MIXED
robot = embodiment("so101")
opened = open_checkpoint({str(tmp_path)!r}, robot, robot.norm_tag)
empty_model(opened.config)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_model(opened, torch.device("cpu"), {dtype})
own = sum(weight.nbytes for weight in model.state_dict().values())
largest = max(4 * weight.numel() for weight in model.state_dict().values())
print(json.dumps([peak() - before, own, largest]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, own, largest = json.loads(done.stdout.splitlines()[-1])
    assert own > 3e8, "large enough to tell"
    # Pages of the file that are mapped at a time count, too (`MAPPED_BYTES`).
    assert taken < own + largest + 100e6, f"{taken / 1e6:.0f} MB for a model of {own / 1e6:.0f} MB"
