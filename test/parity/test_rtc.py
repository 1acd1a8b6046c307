"""Real-time chunking against lerobot's own: the same guided flow, and none of its three faults at the seam.

Pins: `ActionQueue` drops rows that were never played when an inference is slower than the robot; `LatencyTracker.max`
remembers the cold start for ever; what is left of the last chunk is filled up to the horizon with zeros, the middle of
the data, and these bind like data.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import lerobot
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.action_queue import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.latency_tracker import LatencyTracker
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from parity_cases import CPU, Reference, checkpoint, frames, scaled
from small_checkpoints import ROBOT, so101_metadata

from molmoact2_ros.policy import Observation, open_policy
from molmoact2_ros.policy.backends.brackets import Brackets, EagerRunner, bracketed_stages
from molmoact2_ros.policy.fast_model import FastModel
from molmoact2_ros.policy.rtc import (
    SCHEDULES,
    ChunkGuide,
    LatencyWindow,
    Prefix,
    RTCOptions,
    prefix_weights,
    resampled,
)
from molmoact2_ros.policy.stages.flow import FlowStage
from molmoact2_ros.policy.stages.guidance import Guidance, integrate

SECOND = 1_000_000_000
RATE = 30.0


def lerobots_padding() -> Any:
    """The function of lerobot's RTC engine that brings a leftover to its length.

    Taken out of its module, whose package imports data sets that the policy does not need.
    """
    source = Path(lerobot.__path__[0], "rollout", "inference", "rtc.py")
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "_normalize_prev_actions_length":
            found: dict[str, Any] = {"torch": torch}
            exec(compile(ast.Module([node], []), str(source), "exec"), found)
            return found[node.name]
    raise AssertionError(f"{source} has no _normalize_prev_actions_length any more")


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


# -- the three faults ----------------------------------------------------------------------------------------------


STATE = np.zeros(1)


def guide_of(**options: Any) -> ChunkGuide:
    """A guide of a robot with one joint, which may be anywhere."""
    return ChunkGuide(RTCOptions(**{"enabled": True, **options}), RATE, np.array([np.inf]))


def ramp(rows: int = 30, slope: float = 1.0, start: float = 0.0) -> np.ndarray:
    """A chunk whose row says when it is due: (rows, 1), row i due at (i + 1) / RATE."""
    return (start + slope * np.arange(1, rows + 1, dtype=np.float32))[:, None]


def test_rows_that_were_never_played_are_not_skipped() -> None:
    """A latency of 8 rows by the clock, in which a robot that stood still for a while consumed 3."""
    queue = ActionQueue(RTCConfig())
    first, second = (torch.from_numpy(ramp(start=value)) for value in (0.0, 100.0))
    queue.merge(first, first, 0)
    before = queue.get_action_index()
    for _ in range(3):
        queue.get()
    queue.merge(second, second, real_delay=8, action_index_before_inference=before)
    assert float(queue.get()[0]) == 109.0, "lerobot skips eight rows though three were played"
    # Ours: neither the chunk nor its prefix knows counts. Each row is bound by the last chunk's value at its own time,
    # whatever was consumed and whenever the chunk comes.
    for latency_s in (0.05, 8 / RATE, 0.6):
        guide = guide_of(schedule="ones", horizon=20)
        guide.published(ramp(), 7 * SECOND, "go", latency_s)
        prefix = guide.prefix(7 * SECOND + round(3 / RATE * 1e9), "go", 30, STATE)
        assert prefix is not None
        np.testing.assert_allclose(prefix.actions[:27, 0], np.arange(4, 31), atol=1e-4)


def test_the_cold_start_is_forgotten() -> None:
    theirs, ours = LatencyTracker(maxlen=20), LatencyWindow(20, 100.0, 60.0)
    for seconds in (12.0, *[0.1] * 20):
        theirs.add(seconds)
        ours.add(seconds)
    assert theirs.max() == theirs.percentile(1.0) == 12.0, "lerobot expects the cold start for ever"
    assert ours.expected_s() == pytest.approx(0.1)


def test_one_slow_call_is_an_outlier_and_no_expectation_passes_the_cap() -> None:
    window = LatencyWindow(20, 80.0, 0.5)
    assert window.expected_s() is None
    for seconds in (3.0, *[0.1] * 9, -1.0, float("nan")):
        window.add(seconds)
    assert window.expected_s() == pytest.approx(0.1)
    for _ in range(20):
        window.add(3.0)
    assert window.expected_s() == 0.5
    window.clear()
    assert window.expected_s() is None


def test_missing_rows_have_no_weight_instead_of_being_the_mean() -> None:
    """Four rows at 0.9 are left of the last chunk, and eight are to be bound."""
    rtc, steps, noise = processor("ones"), 10, torch.zeros(1, 10, 1)
    padded = lerobots_padding()(torch.full((4, 1), 0.9), target_steps=8)
    x = noise
    for step in range(steps):
        velocity = rtc.denoise_step(x, padded[None], 0, 1 - step / steps, lambda y: -torch.full_like(y, 0.9), 8)
        x = x - velocity.detach() / steps
    assert x[0, 4:8].abs().max() < 0.2, "lerobot pulls rows that nobody planned to zero"
    guide = guide_of(schedule="ones", horizon=8)
    guide.published(np.full((10, 1), 0.9, np.float32), 0, "go", 0.05)
    prefix = guide.prefix(round(6 / RATE * 1e9), "go", 10, STATE)
    assert prefix is not None
    np.testing.assert_array_equal(prefix.weights, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    guidance = Guidance(
        torch.from_numpy(prefix.actions)[None], torch.from_numpy(prefix.weights)[None, :, None], prefix.max_weight
    )
    ours = integrate(noise, lambda x, _: torch.full_like(x, 0.9), steps, lambda x: x, guidance)
    torch.testing.assert_close(ours, torch.full_like(ours, 0.9), atol=1e-5, rtol=0)


# -- the prefix by time ----------------------------------------------------------------------------------------------


def test_the_last_chunk_is_resampled_on_the_new_ones_grid() -> None:
    found, known = resampled(ramp(10), 2.25, 10)
    assert known == 7
    np.testing.assert_allclose(found[:7, 0], np.arange(7) + 3.25, atol=1e-6)
    np.testing.assert_allclose(found[7:, 0], 10.0)
    _, known = resampled(ramp(10), 3.0 - 1e-9, 10)
    assert known == 7
    assert resampled(ramp(10), 9.5, 10)[1] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"task": "stop"}, "another task"),
        ({"stamp_ns": -1}, "an observation older than the last chunk's"),
        ({"stamp_ns": SECOND}, "a chunk that is over"),
        ({"stamp_ns": round(0.8 * SECOND)}, "a chunk that is over when the new one arrives"),
    ],
)
def test_nothing_binds(change: dict[str, Any], what: str) -> None:
    guide = guide_of()
    asked: dict[str, Any] = {"stamp_ns": SECOND // 10, "task": "go", "rows": 30, "state": STATE}
    assert guide.prefix(**asked) is None, "the first chunk"
    guide.published(ramp(), 0, "go", 0.2)
    found = guide.prefix(**asked)
    assert found is not None and found.delay_rows == 6
    assert guide.prefix(**{**asked, **change}) is None, what
    guide.reset()
    assert guide.prefix(**asked) is None, "after a reset"


def test_rtc_that_is_off_binds_nothing() -> None:
    guide = guide_of(enabled=False)
    guide.published(ramp(), 0, "go", 0.1)
    assert guide.prefix(SECOND // 10, "go", 30, STATE) is None


def test_a_delay_beyond_the_horizon_still_binds_at_the_seam() -> None:
    guide = guide_of(horizon=4)
    guide.published(ramp(), 0, "go", 8.5 / RATE)
    prefix = guide.prefix(SECOND // 30, "go", 30, STATE)
    assert prefix is not None and prefix.delay_rows == 9
    np.testing.assert_allclose(prefix.weights[:9], 1.0)
    assert 0.0 < prefix.weights[9] < 1.0 and not prefix.weights[10:].any()


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cubic"},
        {"horizon": 0},
        {"window": 0},
        {"max_weight": 0.0},
        {"max_delay_s": 0.0},
        {"percentile": 101},
        {"max_deviation": 0.0},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rtc"):
        RTCOptions(**options)


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
    brackets = Brackets(prompt=256, tokens=320)
    plain = FastModel(opened, CPU, torch.float32, lambda text: None)
    fixed = FastModel(
        opened,
        CPU,
        torch.float32,
        lambda text: None,
        None,
        lambda model, dof: bracketed_stages(model, dof, brackets, EagerRunner()),
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
