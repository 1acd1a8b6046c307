"""What the small model is trained on is what the reference later asks of it.

Pinned: a training that conditioned on another flow time than `predict_action` learned well, drove well when asked by
its own code, and moved wrongly when asked by the reference.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_checkpoints import ROBOT, TINY, so101_metadata

from molmoact2_ros.training.checkpoint import build_config, build_processor, new_model
from molmoact2_ros.training.curve import read_losses
from molmoact2_ros.training.demonstrations import depth_patches, resize
from molmoact2_ros.training.depth_codes import encode, learn_codebook
from molmoact2_ros.training.objective import Objective, PromptTemplate, patches
from molmoact2_ros.training.tokenizer import build_tokenizer, prompt_texts
from molmoact2_ros.training.train import bins, normalise, statistics

TASK = "pick up the red cube"


@pytest.fixture(scope="module")
def objective() -> Objective:
    tokenizer, vocabulary = build_tokenizer(prompt_texts([TASK], ROBOT.setup_type, ROBOT.control_mode))
    sizes = TINY
    model = new_model(build_config(sizes, tokenizer, vocabulary), seed=3)
    template = PromptTemplate.build(model, build_processor(sizes, tokenizer), so101_metadata(), TASK)
    return Objective(model, template, flow_samples=2).eval()


def example(objective: Objective, n: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    config = objective.model.config
    rng = np.random.default_rng(0)
    side = config.vit_config.image_default_input_size[0]
    pictures = rng.integers(0, 256, (n, 2, side, side, 3), dtype=np.uint8)
    state = torch.from_numpy(rng.integers(0, 256, (n, ROBOT.dof)))
    codes = torch.from_numpy(rng.integers(0, 128, (n, config.num_depth_codes)))
    return patches(pictures, config.vit_config.image_patch_size), state, codes


def test_a_chunk_from_the_training_code_is_the_references_own(objective: Objective) -> None:
    images, state, codes = example(objective, n=1)
    torch.manual_seed(5)
    ours = objective.act(images, state, codes)
    config, model = objective.model.config, objective.model.model
    ids = objective.template.input_ids.clone()
    ids[objective.template.state_positions] = state[0] + config.state_token_start_id
    depth = [config.depth_start_token_id, *(codes[0] + config.depth_token_start_id).tolist(), config.depth_end_token_id]
    full = torch.cat([ids, torch.tensor(depth)])[None]
    padded = torch.nn.functional.pad(objective.template.token_type_ids, (0, len(depth)))[None]
    pixels = images[0].float() / 127.5 - 1.0
    cells = len(objective.template.token_pooling) // 2
    side = int(np.sqrt(cells))
    pad = torch.ones(1, config.max_action_dim, dtype=torch.bool)
    pad[:, : ROBOT.dof] = False
    pooling = objective.template.token_pooling.clone()
    pooling[cells:] -= images.shape[2]
    theirs = model.generate_actions_from_inputs(
        input_ids=full,
        pixel_values=pixels,
        image_token_pooling=pooling,
        image_grids=torch.tensor([[side, side, 0, 0]] * 2),
        image_num_crops=torch.tensor([1, 1]),
        token_type_ids=padded,
        action_dim_is_pad=pad,
        generator=torch.Generator().manual_seed(5),
    )
    assert torch.isfinite(theirs).all()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_few_steps_on_one_batch_lower_every_loss(objective: Objective) -> None:
    images, state, codes = example(objective)
    chunks = torch.linspace(-0.8, 0.8, ROBOT.horizon)[None, :, None].expand(2, -1, ROBOT.dof).contiguous()
    place = torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.1]])
    optimiser = torch.optim.Adam(objective.parameters(), lr=2e-3)
    means = []
    for _ in range(2):
        total: dict[str, float] = {}
        for _ in range(12):
            losses = objective(images, state, chunks, codes, place)
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.step()
            total = {name: total.get(name, 0.0) + float(value.detach()) for name, value in losses.items()}
        means.append(total)
    assert all(means[1][name] < means[0][name] for name in means[0])


def test_state_bins_are_rounded_as_the_reference_rounds_them() -> None:
    from molmoact2_ros.policy.loading import reference_module

    state = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 6)).astype(np.float32)
    reference = reference_module("modeling_molmoact2")
    expected = np.stack([reference._discretize_normalized_state(row, 256) for row in state])
    np.testing.assert_array_equal(bins(torch.from_numpy(state)).numpy(), expected)


def test_statistics_and_normalisation_are_those_of_the_reference() -> None:
    values = np.random.default_rng(0).normal(size=(500, 6)) * 40.0
    stats = statistics(values)
    from molmoact2_ros.policy.loading import reference_module

    normaliser = reference_module("modeling_molmoact2")._FeatureNormalizer.from_stats(stats, "q01_q99")
    np.testing.assert_allclose(normaliser.normalize(values), normalise(values, stats), atol=1e-5)


def test_resizing_is_the_processors_and_depth_codes_decode_to_what_was_seen() -> None:
    tokenizer, _ = build_tokenizer(prompt_texts([TASK], ROBOT.setup_type, ROBOT.control_mode))
    sizes = TINY
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    theirs = build_processor(sizes, tokenizer).image_processor([picture], return_tensors="pt")["pixel_values"]
    ours = patches(resize(picture, sizes.image_size)[None, None], sizes.patch_size)[0]
    torch.testing.assert_close(torch.round((theirs.float() + 1.0) * 127.5).to(torch.uint8), ours, atol=0, rtol=0)
    depth = np.linspace(0.4, 0.9, 240 * 320, dtype=np.float32).reshape(240, 320)
    cells = depth_patches(depth, grid=5, patch=4)
    codebook = learn_codebook(cells.reshape(-1, 4, 4), num_codes=16, seed=0)
    assert np.abs(codebook[encode(cells, codebook)] - cells).max() < 0.03


def test_a_resumed_runs_repeated_steps_count_once(tmp_path) -> None:
    path = tmp_path / "loss.csv"
    head = "step,flow,depth,place,learning_rate,seconds_per_step,samples\n"
    path.write_text(head + "50,1,1,1,0,0,0\n100,2,2,2,0,0,0\n100,3,3,3,0,0,0\n")
    assert read_losses(path) == {"step": [50.0, 100.0], "flow": [1, 3], "depth": [1, 3], "place": [1, 3]}
    path.write_text(head)
    with pytest.raises(ValueError, match="no rows"):
        read_losses(path)
