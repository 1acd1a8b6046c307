"""Random small models, sequences of images, and the reference's own answers to hold a backend against."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from small_checkpoints import ROBOT, make_checkpoint, so101_metadata

from molmoact2_ros.policy import Checkpoint, open_checkpoint
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.reference import updated_cells
from molmoact2_ros.policy.staged_model import InferenceOptions, StagedModel
from molmoact2_ros.policy.stages.stage_set import OpenStages, torch_stages

CPU = torch.device("cpu")
TAG = ROBOT.norm_tag
TASK = "pick up the red cube"
TOLERANCE = 1e-4
"""Largest error of an action in the flow's scale of -1 .. 1, float32."""


@dataclass(frozen=True)
class Frame:
    """One call's images (h, w, 3), the state in model units, and what changed since the frame before."""

    images: list[np.ndarray]
    state: np.ndarray
    change: str


@dataclass
class Expected:
    """What the reference gave: actions (rows, dof), bins (cells,), the mask of cells, cache, tokens, forwards."""

    actions: np.ndarray
    bins: np.ndarray | None
    updated: np.ndarray | None
    cache: Any
    tokens: list[int]


def checkpoint(directory: Path, cameras: int, metadata: dict[str, Any] | None = None, **sizes: Any) -> Checkpoint:
    """A random checkpoint that takes `cameras` images; `metadata` overrides what it says about the robot."""
    stated = {**so101_metadata(("front", "wrist")[: min(cameras, 2)]), **(metadata or {})}
    make_checkpoint(directory, metadata=stated, **sizes)
    names = ("front", "wrist")[: min(cameras, 2)]
    opened = open_checkpoint(directory, ROBOT, TAG, names)
    return replace(opened, cameras=("front", "wrist", "side")[:cameras])


def counting(opened: Checkpoint) -> Checkpoint:
    """`opened`, changed on disk so that its plain sequences are `<depth_start>`, one code a cell, `<depth_end>`.

    Random weights cannot count. So one head of the first layer looks at every token alike and writes the share of depth
    codes among them into a channel of its own; `<depth_end>` wins where that passes what it is behind the last cell.
    Which codes are chosen stays random.
    """
    reference = Reference(opened)
    model, config = reference.model, reference.model.config
    text, head = model.model.transformer, model.lm_head.weight
    attention, cells = text.blocks[0].self_attn, int(config.num_depth_codes)
    codes = slice(config.depth_token_start_id, config.depth_token_start_id + config.num_depth_tokens)
    told, counted = 1, 2
    query, _, value = attention.fused_dims[0], attention.fused_dims[1], sum(attention.fused_dims[:2])
    with torch.no_grad():
        for table in (text.wte.embedding, text.wte.new_embedding):
            table[:, 1:4] = 0.0
        rows = [block.self_attn.attn_out.weight for block in text.blocks]
        rows += [block.mlp.ff_out.weight for block in text.blocks]
        for weight in (model.model.vision_backbone.image_projector.w2.weight, *rows):
            weight[1:4] = 0.0
        # Of one length, so that the norm before the layer leaves every code the same.
        table = text.wte.embedding
        table[codes, :4] = 0.0
        table[codes] *= 4.0 / table[codes].norm(dim=-1, keepdim=True)
        table[codes, 0], table[codes, told] = 1.0, 1.0
        table[config.action_output_token_id, 3] = 1.0
        assert query == attention.num_heads * attention.head_dim
        attention.att_proj.weight[: attention.head_dim] = 0.0
        attention.att_proj.weight[value] = 0.0
        attention.att_proj.weight[value, told] = 10.0
        attention.attn_out.weight[:, 0] = 0.0
        attention.attn_out.weight[counted, 0] = 1.0
        head[:, 1:4] = 0.0
    seen: list[torch.Tensor] = []
    handle = text.ln_f.register_forward_hook(lambda _, __, out: seen.append(out[0, -1].clone()))
    (frame,) = frames(0, len(opened.cameras), "n")
    reference.predict(frame, None, seed=0)
    handle.remove()
    # The prompt's last row, the one of <depth_start>, then one a cell.
    shares = [float(hidden[counted] / hidden[0]) for hidden in seen[2 : 2 + cells]]
    assert all(a < b for a, b in itertools.pairwise(shares)), shares
    threshold = (shares[-2] + shares[-1]) / 2 if cells > 1 else shares[-1] / 2
    with torch.no_grad():
        head[codes, 0] += 1e2
        head[config.depth_start_token_id, 3] = 1e4
        end = head[config.depth_end_token_id]
        end.zero_()
        end[counted], end[0] = 1e6, -1e6 * threshold
    path = opened.directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, str(path))
    return opened


def action_checkpoint(directory: Path, cameras: int, tokens: int, horizon: int, **sizes: Any) -> Checkpoint:
    """A random checkpoint that has both kinds of actions, `tokens` action tokens and chunks of `horizon` rows."""
    sizes = {"action_mode": "both", "num_action_tokens": tokens, "horizon": horizon, **sizes}
    return checkpoint(directory, cameras, {"action_horizon": horizon, "n_action_steps": horizon}, **sizes)


def frames(seed: int, cameras: int, changes: str, size: tuple[int, int] = (60, 80)) -> Iterator[Frame]:
    """One frame a letter: n new scene, = same images and state, s same images and another state, c one corner of
    the main image changed, p a patch anywhere changed, w only the last camera changed, d every pixel drifts a little.
    """
    random = np.random.default_rng(seed)

    def scene(camera: int) -> np.ndarray:
        low = random.integers(0, 255, (6, 8, 3)).astype(np.uint8)
        return np.kron(low, np.ones((size[0] // 6 + 1, size[1] // 8 + 1, 1), np.uint8))[: size[0], : size[1] - camera]

    images, state = [scene(camera) for camera in range(cameras)], random.uniform(0, 40, 6)
    for change in changes:
        images = [image.copy() for image in images]
        if change == "n":
            images = [scene(camera) for camera in range(cameras)]
        elif change == "c":
            images[0][: size[0] // 3, : size[1] // 3] ^= 0xA5
        elif change == "p":
            y, x = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
            images[0][y : y + 16, x : x + 16] = random.integers(0, 255, 3)
        elif change == "w":
            images[-1][10:30, 10:30] ^= 0xFF
        elif change == "d":
            images[0] = np.clip(images[0].astype(int) + random.integers(-2, 4, images[0].shape), 0, 255).astype(
                np.uint8
            )
        if change != "=":
            state = np.clip(state + random.normal(0, 6, 6), -60, 190)
        yield Frame(images, state, change)


class Reference:
    """The reference's `predict_action`, from the loaded weights, with nothing of ours between."""

    def __init__(self, opened: Checkpoint) -> None:
        self.opened = opened
        self.model = load_model(opened, CPU, torch.float32)
        self.processor = load_processor(opened.directory)

    def predict(self, frame: Frame, cache: Any, seed: int, adaptive: bool = True, task: str = TASK) -> Expected:
        """One call."""
        with torch.inference_mode():
            answer = self.model.predict_action(
                processor=self.processor,
                images=frame.images,
                task=task,
                state=frame.state,
                norm_tag=TAG,
                inference_action_mode="continuous",
                enable_depth_reasoning=self.opened.depth_side is not None,
                enable_adaptive_depth=adaptive,
                depth_cache=cache,
                generator=torch.Generator().manual_seed(seed),
                enable_cuda_graph=False,
            )
        bins = None if answer.depth_bins is None else answer.depth_bins[0].numpy()
        updated = None
        if bins is not None and self.opened.depth_side is not None:
            cells = self.opened.depth_side**2
            whole = cache is None or not adaptive
            updated = np.ones(cells, bool) if whole else updated_cells(frame.images[0], cache, cells)
        tokens = [] if answer.generated_token_ids is None else answer.generated_token_ids[0].tolist()
        return Expected(answer.actions[0].numpy(), bins, updated, answer.depth_cache, tokens)


def scaled(opened: Checkpoint, actions: np.ndarray) -> np.ndarray:
    """Actions in the flow's own scale of -1 .. 1."""
    stats = opened.metadata["action_stats"]
    low, high = np.array(stats["q01"]), np.array(stats["q99"])
    return 2 * (actions - low) / (high - low) - 1


def hold(
    opened: Checkpoint, sequence: Iterable[Frame], stages: OpenStages = torch_stages, **options: Any
) -> StagedModel:
    """Run the reference and a model of these `stages` and `InferenceOptions` on `sequence`, and compare every answer.

    Returns the model for what else a test wants to see.
    """
    said: list[str] = []
    reference = Reference(opened)
    ours = StagedModel(opened, CPU, torch.float32, said.append, InferenceOptions(**options), stages)
    adaptive = options.get("depth_mode", "adaptive") == "adaptive"
    theirs_cache = our_cache = None
    for index, frame in enumerate(sequence):
        expected = reference.predict(frame, theirs_cache, seed=index, adaptive=adaptive)
        answer = ours.predict(
            frame.images, TASK, frame.state, depth_cache=our_cache, generator=torch.Generator().manual_seed(index)
        )
        name = f"frame {index} ({frame.change})"
        assert ours.sequence == expected.tokens, name
        error = np.abs(scaled(opened, answer.actions) - scaled(opened, expected.actions)).max()
        assert answer.actions.shape == expected.actions.shape and error < TOLERANCE, f"{name}: {error}"
        if expected.bins is None:
            assert answer.depth_bins is None and answer.depth_updated is None and answer.depth_cache is None
            assert answer.forwards == 1
            continue
        assert answer.depth_bins is not None and answer.depth_updated is not None and answer.depth_cache is not None
        np.testing.assert_array_equal(answer.depth_bins, expected.bins, err_msg=name)
        np.testing.assert_array_equal(answer.depth_updated, expected.updated, err_msg=name)
        np.testing.assert_array_equal(answer.depth_cache["image"], expected.cache["image"])
        np.testing.assert_array_equal(answer.depth_cache["depth_bins"], expected.cache["depth_bins"])
        if stages is torch_stages and options.get("row_cost") == 0.0 and our_cache is not None:
            assert answer.forwards <= 1 + ours.corrections + 1, name
        theirs_cache, our_cache = expected.cache, answer.depth_cache
    assert not said, said
    return ours
