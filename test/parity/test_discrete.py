"""Discrete actions: the reference's tokens, and the reference's actions where its tokens make a chunk.

Pins: tokens that make no chunk are an error, where the reference drives every joint to the middle of its range.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lerobot.policies.molmoact2.molmoact2_hf_model.action_tokenizer import UniversalActionProcessor
from parity_cases import CPU, TAG, TASK, Reference, action_checkpoint, checkpoint, frames, scaled
from small_checkpoints import ROBOT

from molmoact2_ros.policy import Checkpoint, CheckpointError, Observation, open_checkpoint, open_policy
from molmoact2_ros.policy.discrete import OWN_TOKENIZER, FastTokenizer, open_action_tokenizer
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.options import InferenceOptions
from molmoact2_ros.policy.rtc import RTCOptions
from molmoact2_ros.policy.staged_model import StagedModel

HORIZON, DOF, ACTIONS = 6, 6, 400
SECOND = 1_000_000_000


def motions() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [np.clip(np.cumsum(random.normal(0, 0.3, (HORIZON, DOF)), axis=0), -1, 1) for _ in range(12)]


@pytest.fixture(scope="module")
def fast_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FAST tokenizer fitted by the reference's own class to a few motions, each of which becomes a few tokens."""
    fitted = UniversalActionProcessor.fit([motion for motion in motions() for _ in range(4)], vocab_size=ACTIONS)
    directory = tmp_path_factory.mktemp("fast")
    fitted.tokenizer.save_pretrained(directory)
    settings = {"scale": fitted.scale, "min_token": fitted.min_token, "vocab_size": fitted.vocab_size}
    (directory / "processor_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def theirs(fast_directory: Path) -> UniversalActionProcessor:
    return UniversalActionProcessor.from_pretrained_local(str(fast_directory))


def spoken(theirs: UniversalActionProcessor) -> list[list[int]]:
    """Motions as tokens, of which no token occurs twice: each tells which one follows."""
    chosen: list[list[int]] = []
    taken: set[int] = set()
    for motion in motions():
        (tokens,) = theirs(motion)
        if len(set(tokens)) == len(tokens) and not taken & set(tokens):
            chosen.append(tokens)
            taken |= set(tokens)
    return chosen


def speaking(model: Any, sequences: list[list[int]], seed: int) -> None:
    """A head that writes `<action_start>`, one of `sequences` (the image decides), `<action_end>` and the end.

    Channels of the residual stream that nothing but the embeddings write tell which token came last, and the rows of
    the head read them. Between cells of depth and `<depth_end>` it goes on as `end_depth_at_once` made it.
    """
    config, head, text = model.config, model.lm_head.weight, model.model.transformer
    first, start, end = config.action_token_start_id, config.action_start_token_id, config.action_end_token_id
    following: list[tuple[list[int], list[int]]] = [
        ([config.action_output_token_id, config.depth_end_token_id], [start]),
        ([start], [first + tokens[0] for tokens in sequences]),
        ([first + tokens[-1] for tokens in sequences], [end]),
        ([end], [config.eos_token_id]),
    ]
    following += [([first + a], [first + b]) for tokens in sequences for a, b in itertools.pairwise(tokens)]
    width = len(following) + 1
    assert width < head.shape[1] // 2
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in (text.wte.embedding, text.wte.new_embedding):
            table[:, 1:width] = 0.0
        rows = [block.self_attn.attn_out.weight for block in text.blocks]
        rows += [block.mlp.ff_out.weight for block in text.blocks]
        for weight in (model.model.vision_backbone.image_projector.w2.weight, *rows):
            weight[1:width] = 0.0
        head[:, 1:width] = 0.0
        for channel, (before, after) in enumerate(following, start=1):
            text.wte.embedding[before, channel] = 1.0
            head[after] = torch.randn(len(after), head.shape[1], generator=random)
            head[after, :width] = 0.0
            head[after, channel] = 1e4


def heeding(reference: Reference, scenes: Any, tokenizer: Any, rows: list[int]) -> torch.Tensor:
    """The head with the choice among `rows` freed of what `scenes` have in common, so that images differ."""
    model, seen = reference.model, []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1].clone()))
    for frame in scenes:
        ask(reference, frame, None, tokenizer)
    handle.remove()
    # Channel 2 tells that `<action_start>` came last; see `speaking`.
    common = torch.stack([hidden for hidden in seen if hidden[2] > 0.1]).mean(dim=0)
    common[2] = 0.0
    common /= common.norm()
    head: torch.Tensor = model.lm_head.weight.clone()
    head[rows] -= (head[rows] @ common)[:, None] * common
    return head


def both(
    directory: Path, seed: int, cameras: int, theirs: Any, **sizes: Any
) -> tuple[Checkpoint, Reference, StagedModel]:
    opened = action_checkpoint(directory, cameras, ACTIONS, HORIZON, seed=seed, text_width=96, **sizes)
    options = InferenceOptions(action_mode="discrete", action_tokenizer=theirs)
    return opened, Reference(opened), StagedModel(opened, CPU, torch.float32, lambda text: None, options)


def ask(reference: Reference, frame: Any, cache: Any, tokenizer: Any, adaptive: bool = True) -> Any:
    """The reference's own call."""
    with torch.inference_mode():
        return reference.model.predict_action(
            processor=reference.processor,
            images=frame.images,
            task=TASK,
            state=frame.state,
            norm_tag=TAG,
            inference_action_mode="discrete",
            action_tokenizer=tokenizer,
            enable_depth_reasoning=reference.opened.depth_side is not None,
            enable_adaptive_depth=adaptive,
            depth_cache=cache,
            enable_cuda_graph=False,
        )


@pytest.mark.parametrize(
    ("cameras", "sizes"),
    [
        (1, {"depth_reasoning": False}),
        (2, {"num_depth_codes": 16}),
        (3, {"num_depth_codes": 9, "depth_gate": True, "qk_norm_type": "olmo"}),
    ],
)
def test_tokens_and_actions_are_the_references(
    tmp_path: Path, fast_directory: Path, theirs: Any, cameras: int, sizes: dict[str, Any]
) -> None:
    opened, reference, ours = both(tmp_path, cameras, cameras, str(fast_directory), **sizes)
    for model in (reference.model, ours.model):
        speaking(model, spoken(theirs), seed=cameras)
    choice = [ours.model.config.action_token_start_id + tokens[0] for tokens in spoken(theirs)]
    head = heeding(reference, frames(9, cameras, "nnn"), theirs, choice)
    for model in (reference.model, ours.model):
        model.lm_head.weight.copy_(head)
    theirs_cache = our_cache = None
    said = set()
    for index, frame in enumerate(frames(cameras, cameras, "n=scpnnnn")):
        expected = ask(reference, frame, theirs_cache, theirs)
        answer = ours.predict(frame.images, TASK, frame.state, depth_cache=our_cache, generator=torch.Generator())
        name = f"frame {index} ({frame.change})"
        assert ours.sequence == expected.generated_token_ids[0].tolist(), name
        np.testing.assert_allclose(
            scaled(opened, answer.actions), scaled(opened, expected.actions[0].numpy()), atol=1e-5, err_msg=name
        )
        if expected.depth_bins is None:
            assert answer.depth_bins is None
            assert answer.forwards == 1 + len(ours.sequence) - 1, "the end of the text is not appended"
        else:
            np.testing.assert_array_equal(answer.depth_bins, expected.depth_bins[0].numpy(), err_msg=name)
            theirs_cache, our_cache = expected.depth_cache, answer.depth_cache
        said.add(tuple(ours.sequence[ours.sequence.index(ours.model.config.action_start_token_id) :]))
    assert len(said) >= 2, "the actions should depend on the picture"


def ending(model: Any, seed: int, gain: float) -> None:
    """A head under which sequences are of any tokens and end after a random number of them."""
    head = model.lm_head.weight
    head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)) * 0.4)
    head[model.config.eos_token_id] *= gain
    head[:, 0] = 0.0


def test_sequences_of_any_tokens_are_the_references(tmp_path: Path, fast_directory: Path, theirs: Any) -> None:
    _, reference, ours = both(tmp_path, 1, 1, str(fast_directory), depth_reasoning=False)
    lengths, unended = set(), 0
    (frame,) = frames(1, 1, "n")
    for seed in range(14):
        for model in (reference.model, ours.model):
            ending(model, seed, 2.5)
        try:
            expected = reference_tokens(reference, frame, theirs)
        except RuntimeError as error:
            assert "did not emit end token" in str(error)
            with pytest.raises(UnendedSequenceError, match=f"did not end within {16 * HORIZON}"):
                ours.predict(frame.images, TASK, frame.state, depth_cache=None, generator=torch.Generator())
            unended += 1
            continue
        with pytest.raises(RuntimeError, match=r"no action token among them|expected 6 x 6"):
            ours.predict(frame.images, TASK, frame.state, depth_cache=None, generator=torch.Generator())
        assert ours.sequence == expected
        lengths.add(len(expected))
    assert len(lengths) >= 3 and unended, "sequences of several lengths, and one without an end"


def reference_tokens(reference: Reference, frame: Any, tokenizer: Any) -> list[int]:
    """What the reference writes, whatever it makes of it."""
    kept: list[list[int]] = []
    original = reference.model._continue_discrete_generation_from_output

    def listening(*args: Any, **kwargs: Any) -> torch.Tensor:
        tokens: torch.Tensor = original(*args, **kwargs)
        kept.append(tokens[0].tolist())
        return tokens

    reference.model._continue_discrete_generation_from_output = listening
    try:
        ask(reference, frame, None, tokenizer)
    except RuntimeError as error:
        if "no decodable action tokens" not in str(error):
            raise
    finally:
        del reference.model._continue_discrete_generation_from_output
    return kept[0]


def test_tokens_that_make_no_chunk_are_an_error(fast_directory: Path, theirs: Any) -> None:
    ours = FastTokenizer(fast_directory)
    short = spoken(theirs)[0] * 2
    assert not theirs.decode([short], time_horizon=HORIZON, action_dim=DOF).any(), "the reference: the middle"
    with pytest.raises(RuntimeError, match="action tokens stand for 72 values, expected 6 x 6"):
        ours.decode(short, HORIZON, DOF)


def test_every_chunk_decodes_as_the_reference_decodes_it(fast_directory: Path, theirs: Any) -> None:
    ours, random = FastTokenizer(fast_directory), np.random.default_rng(1)
    for _ in range(30):
        chunk = np.clip(np.cumsum(random.normal(0, 0.05, (HORIZON, DOF)), axis=0), -0.5, 0.5)
        (tokens,) = theirs(chunk)
        found = ours.decode(tokens, HORIZON, DOF)
        np.testing.assert_array_equal(found, theirs.decode([tokens])[0].astype(np.float32))
        assert np.abs(found - chunk).max() < 0.2


def test_the_policy_offers_it(tmp_path: Path, fast_directory: Path, theirs: Any) -> None:
    opened = action_checkpoint(tmp_path, 2, ACTIONS, HORIZON, seed=1, text_width=96)
    (tmp_path / OWN_TOKENIZER).symlink_to(fast_directory)
    options = InferenceOptions(action_mode="discrete")
    policy: Any = open_policy(opened.directory, ROBOT, TAG, backend="torch", device="cpu", options=options)
    speaking(policy._model.model, spoken(theirs), seed=0)
    (frame,) = frames(1, 2, "n")
    found = policy.infer(
        Observation(
            images=dict(zip(("front", "wrist"), frame.images, strict=True)),
            image_stamps_ns={"front": SECOND, "wrist": SECOND},
            joints=ROBOT.rest_position,
            joints_stamp_ns=SECOND,
            task=TASK,
        )
    )
    assert found.chunk_joints.shape == (HORIZON, DOF) and found.forwards >= 4


def test_what_cannot_work_is_refused_by_name(tmp_path: Path, fast_directory: Path) -> None:
    continuous = checkpoint(tmp_path / "continuous", 1)
    discrete = InferenceOptions(action_mode="discrete", action_tokenizer=str(fast_directory))
    with pytest.raises(CheckpointError, match="the checkpoint's action_mode is 'continuous'; use action_mode cont"):
        open_policy(continuous.directory, ROBOT, TAG, backend="torch", device="cpu", options=discrete)
    with pytest.raises(ValueError, match=r"action_mode.*needs backend torch"):
        open_policy(continuous.directory, ROBOT, TAG, backend="reference", device="cpu", options=discrete)
    with pytest.raises(ValueError, match="rtc guides the flow"):
        open_policy(continuous.directory, ROBOT, TAG, backend="torch", options=discrete, rtc=RTCOptions(enabled=True))
    with pytest.raises(CheckpointError, match="no such directory, and not a Hugging Face id"):
        open_action_tokenizer(tmp_path, "/no/such/place")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no FAST tokenizer there"):
        open_action_tokenizer(tmp_path, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="unknown action_mode 'spoken'"):
        InferenceOptions(action_mode="spoken")
    few = action_checkpoint(tmp_path / "few", 1, 16, HORIZON, seed=1)
    with pytest.raises(CheckpointError, match="the checkpoint 16 action tokens"):
        StagedModel(few, CPU, torch.float32, lambda text: None, discrete)


@pytest.mark.parametrize("key", ["action_end_token_id", "num_action_tokens"])
def test_action_tokens_need_their_ids(tmp_path: Path, key: str) -> None:
    opened = action_checkpoint(tmp_path, 2, ACTIONS, HORIZON, seed=1)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, key: None}))
    with pytest.raises(CheckpointError, match=rf"config\.json lacks {key}"):
        open_checkpoint(opened.directory, ROBOT, TAG, action_mode="discrete")
