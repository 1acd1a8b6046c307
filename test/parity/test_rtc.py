"""Real-time chunking against lerobot's own: same weights, same guided flow, in the policy and in every backend."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from parity_cases import CPU, Reference, checkpoint, frames, scaled
from small_checkpoints import ROBOT, so101_metadata

from molmoact2_ros.policy import Observation, open_policy
from molmoact2_ros.policy.backends.buckets import EagerRunner, ShapeBuckets, bucketed_stages
from molmoact2_ros.policy.rtc import (
    SCHEDULES,
    Prefix,
    RTCOptions,
    prefix_weights,
    resampled,
)
from molmoact2_ros.policy.staged_model import StagedModel
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.guidance import Guidance, integrate

SECOND = 1_000_000_000
RATE = 30.0


def processor(schedule: str, max_weight: float = 10.0) -> RTCProcessor:
    return RTCProcessor(
        RTCConfig(prefix_attention_schedule=RTCAttentionSchedule(schedule.upper()), max_guidance_weight=max_weight)
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_are_lerobots(schedule: str) -> None:
    theirs = processor(schedule)
    for rows in (1, 10, 30):
        for delay in (0, 1, 4, 10, 29, 40):
            for horizon in (0, 1, 5, 10, 30, 35):
                expected = theirs.get_prefix_weights(delay, min(horizon, rows), rows)
                np.testing.assert_allclose(prefix_weights(schedule, delay, horizon, rows), expected, atol=1e-6)


def their_flow(
    stage: FlowStage, noise: torch.Tensor, context: Any, rtc: RTCProcessor, leftover: torch.Tensor, delay: int, end: int
) -> torch.Tensor:
    """lerobot's loop around its processor: its time runs from one to zero, and its velocity is negated."""
    rope, x = stage.rope(noise), stage._masked(noise)
    for step in range(stage.steps):

        def velocity(x: torch.Tensor, step: int = step) -> torch.Tensor:
            return -stage._masked(stage.step(x, step, context, rope))

        v = rtc.denoise_step(x, leftover, delay, 1.0 - step / stage.steps, velocity, end)
        x = stage._masked(x - (1.0 / stage.steps) * v)
    return x.detach()


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> tuple[FlowStage, Any]:
    """A random action expert and a random context for it."""
    opened = checkpoint(tmp_path_factory.mktemp("rtc"), 1, seed=3)
    reference = Reference(opened)
    stage = FlowStage(reference.model.model, 6)
    text = reference.model.config.text_config
    shape = (text.num_hidden_layers, 40, text.num_key_value_heads * text.head_dim)
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 200, (40,), generator=random)
    with torch.no_grad():
        return stage, stage.context(ids, torch.randn(shape, generator=random), torch.randn(shape, generator=random))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("delay", "horizon", "max_weight"), [(0, 10, 10.0), (5, 20, 5.0), (12, 30, 10.0), (3, 3, 1.0)])
def test_a_guided_flow_is_lerobots(
    expert: tuple[FlowStage, Any], schedule: str, delay: int, horizon: int, max_weight: float
) -> None:
    stage, context = expert
    random = torch.Generator().manual_seed(delay)
    noise = stage.noise(30, random)
    leftover = stage._masked(torch.rand(noise.shape, generator=random) * 2 - 1)
    weights = torch.from_numpy(prefix_weights(schedule, delay, horizon, 30))[None, :, None].expand_as(noise)
    guidance = Guidance(leftover, weights, max_weight)
    with torch.no_grad():
        plain, ours = stage(noise, context), stage(noise, context, guidance)
        theirs = their_flow(stage, noise, context, processor(schedule, max_weight), leftover, delay, horizon)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    if schedule != "zeros" or delay:
        assert (ours - plain).abs().max() > 0.05, "guidance that does nothing proves nothing"


def test_guidance_without_weight_is_the_plain_flow(expert: tuple[FlowStage, Any]) -> None:
    stage, context = expert
    noise = stage.noise(30, torch.Generator().manual_seed(1))
    guidance = Guidance(torch.ones_like(noise), torch.zeros_like(noise), 10.0)
    with torch.no_grad():
        assert torch.equal(stage(noise, context, guidance), stage(noise, context))


def test_bound_rows_end_on_the_prefix_and_free_rows_do_not() -> None:
    """With a velocity that ignores the prefix, ten steps at weight ten leave a bound row where the prefix is."""
    noise, prefix = torch.zeros(1, 4, 2), torch.full((1, 4, 2), 0.7)
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0])[None, :, None].expand(1, 4, 2)
    found = integrate(noise, lambda x, _: -0.3 - 0.0 * x, 10, lambda x: x, Guidance(prefix, weights, 10.0))
    torch.testing.assert_close(found[:, :2], prefix[:, :2], atol=0.03, rtol=0)
    torch.testing.assert_close(found[:, 2:], torch.full((1, 2, 2), -0.3), atol=1e-6, rtol=0)


# -- in the policy ---------------------------------------------------------------------------------------------------


class Clock:
    """Time as a test sets it."""

    def __init__(self) -> None:
        self.ns = 100 * SECOND

    def __call__(self) -> int:
        return self.ns


def observation(
    stamp_ns: int, seed: int, task: str = "pick up the red cube", joints: np.ndarray | None = None
) -> Observation:
    (frame,) = frames(seed, 2, "n", (240, 320))
    return Observation(
        images=dict(zip(("front", "wrist"), frame.images, strict=True)),
        image_stamps_ns={"front": stamp_ns, "wrist": stamp_ns},
        joints=ROBOT.rest_position if joints is None else joints,
        joints_stamp_ns=stamp_ns,
        task=task,
    )


@pytest.fixture(scope="module")
def guided() -> tuple[Any, Clock]:
    clock = Clock()
    rtc = RTCOptions(enabled=True, schedule="exp", horizon=20)
    return open_policy("so101_cell", ROBOT, ROBOT.norm_tag, backend="torch", device="cpu", rtc=rtc, now_ns=clock), clock


def call(policy: Any, clock: Clock, seed: int, latency_s: float = 0.2, **changes: Any) -> Any:
    """One inference of an observation taken now, which ends `latency_s` later, of an arm that follows the chunks."""
    model, stamp_ns = policy._model, clock.ns
    if policy._guide._last is not None and "joints" not in changes:
        actions, last_ns, _ = policy._guide._last
        here, _ = resampled(actions, (stamp_ns - last_ns) * 1e-9 * RATE - 1, 1)
        changes["joints"] = ROBOT.joints_from_model(here[0].astype(float), policy.checkpoint.frame)
    original = model.predict

    def slow(*args: Any, **kwargs: Any) -> Any:
        clock.ns += round(latency_s * 1e9)
        return original(*args, **kwargs)

    model.predict = slow
    try:
        return policy.infer(observation(stamp_ns, seed, **changes))
    finally:
        del model.predict


def test_the_trained_models_guided_chunk_is_lerobots(
    guided: tuple[Any, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, clock = guided
    policy.reset()
    first = call(policy, clock, seed=1)
    assert first.guided_rows == 0, "nothing to follow yet"
    stage, heard = policy._model.stages.flow, []
    original = type(stage).forward

    def listening(self: Any, noise: torch.Tensor, context: Any, guidance: Any = None) -> torch.Tensor:
        found = original(self, noise, context, guidance)
        heard.append((noise.clone(), [part.clone() for part in context], guidance, found.clone()))
        return found

    monkeypatch.setattr(type(stage), "forward", listening)
    second = call(policy, clock, seed=2)
    ((noise, context, guidance, found),) = heard
    with torch.inference_mode(False), torch.no_grad():
        noise, context, found = noise.clone(), tuple(part.clone() for part in context), found.clone()
        leftover = guidance.prefix.clone()[:, :24]
        theirs = their_flow(stage, noise, context, processor("exp"), leftover, delay=6, end=20)
    torch.testing.assert_close(found[..., :6], theirs[..., :6], atol=1e-4, rtol=1e-4)
    # 0.2 s later six rows of thirty are over, and six more will be when the new chunk comes.
    assert second.guided_rows == 20 and guidance.weights[0, :6, 0].tolist() == [1.0] * 6
    stats = policy.checkpoint.metadata["action_stats"]
    span = (np.array(stats["q99"]) - np.array(stats["q01"])) / 2
    seam = np.abs(second.chunk_model[:6] - first.chunk_model[6:12]) / span
    assert seam.max() < 0.1, f"bound rows follow the last chunk at their own times: {seam.max()}"


def test_what_ends_an_episode_ends_the_guidance(guided: tuple[Any, Clock]) -> None:
    policy, clock = guided
    policy.reset()
    call(policy, clock, seed=1)
    assert call(policy, clock, seed=1).guided_rows == 20
    assert call(policy, clock, seed=1, task="put it down").guided_rows == 0, "another task"
    assert call(policy, clock, seed=1, task="put it down").guided_rows > 0
    clock.ns += SECOND
    assert call(policy, clock, seed=1, task="put it down").guided_rows == 0, "a gap longer than the chunk"
    assert call(policy, clock, seed=1, task="put it down").guided_rows > 0
    policy.reset()
    assert call(policy, clock, seed=1, task="put it down").guided_rows == 0, "a new epoch"


def test_a_chunk_that_the_arm_does_not_follow_binds_nothing(guided: tuple[Any, Clock]) -> None:
    """Disarmed or held: chunks that bound each other would wander off without the arm."""
    policy, clock = guided
    policy.reset()
    first = call(policy, clock, seed=1)
    away = first.chunk_joints[5].copy()
    away[1] += 0.6
    assert call(policy, clock, seed=1, joints=away).guided_rows == 0
    following = policy._guide._last[0][5].astype(float)
    joints = ROBOT.joints_from_model(following, policy.checkpoint.frame)
    joints[ROBOT.gripper_indices[0]] += 0.8
    assert call(policy, clock, seed=1, joints=joints).guided_rows > 0, "a gripper that holds something is no deviation"


def test_a_failed_call_leaves_the_last_chunk_in_force(
    guided: tuple[Any, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, clock = guided
    policy.reset()
    call(policy, clock, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "_depth", lambda answer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(policy, clock, seed=2)
    assert policy._guide._last[1] == clock.ns - round(0.4 * SECOND), "the chunk of the call before"
    assert call(policy, clock, seed=2).guided_rows > 0


def test_the_reference_cannot_be_guided() -> None:
    with pytest.raises(ValueError, match=r"rtc\.enabled: needs backend torch"):
        open_policy("so101_cell", ROBOT, ROBOT.norm_tag, backend="reference", rtc=RTCOptions(enabled=True))


def test_every_backends_stages_are_guided_alike(tmp_path: Path) -> None:
    """Graphs of fixed sizes replace one step of the flow; the guidance is around it."""
    opened = checkpoint(tmp_path, 1, seed=4)
    buckets = ShapeBuckets(prompt=256, tokens=320)
    plain = StagedModel(opened, CPU, torch.float32, lambda text: None)
    fixed = StagedModel(
        opened,
        CPU,
        torch.float32,
        lambda text: None,
        None,
        lambda model, dof: bucketed_stages(model, dof, buckets, EagerRunner()),
    )
    (frame,) = frames(1, 1, "n")
    rows = np.linspace(np.array(so101_metadata()["action_stats"]["q01"]), [20.0] * 6, 30).astype(np.float32)
    bound = Prefix(rows, prefix_weights("linear", 5, 20, 30), 10.0, 5)
    found = []
    for model in (plain, fixed):
        for prefix in (bound, None):
            generator = torch.Generator().manual_seed(0)
            answer = model.predict(frame.images, "go", frame.state, depth_cache=None, generator=generator, bound=prefix)
            found.append(scaled(opened, answer.actions))
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)
    np.testing.assert_allclose(found[3], found[1], atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1, "guidance that does nothing proves nothing"
    assert np.abs(found[0][:5] - scaled(opened, rows)[:5]).max() < 0.15, "bound rows lie on the prefix"
