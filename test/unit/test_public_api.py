"""What other programs may build on: the names that the three rooms offer. A change here has a line in CHANGELOG.md."""

import inspect
from types import ModuleType

import pytest

from molmoact2_ros import embodiments, execution, policy

OFFERED = {
    embodiments: "EMBODIMENTS Embodiment JointLimits ModelFrame Workspace embodiment",
    execution: "Change ChunkMessage Event Executor ExecutorConfig Refusal State",
    policy: "BACKENDS Checkpoint CheckpointError Choices InferenceOptions Observation Policy Prediction RTCOptions "
    "RemoteOptions open_checkpoint open_policy",
}
SIGNATURES = {
    embodiments.embodiment: "(name)",
    execution.Executor.tick: "(self, now_ns)",
    execution.Executor.on_chunk: "(self, message, now_ns)",
    execution.Executor.on_joint_state: "(self, names, positions, stamp_ns, now_ns, publisher)",
    execution.Executor.on_e_stop: "(self, pressed, now_ns, reason)",
    execution.Executor.arm: "(self, now_ns)",
    execution.Executor.disarm: "(self, now_ns)",
    policy.Policy.infer: "(self, observation)",
    policy.Policy.reset: "(self)",
    policy.open_policy: "(checkpoint, robot, norm_tag, *, backend, device, dtype, threads, seed, cameras, choices, "
    "options, rtc, max_gap_s, remote, now_ns, log)",
}


@pytest.mark.parametrize("room", OFFERED, ids=lambda room: room.__name__)
def test_each_room_offers_these_names(room: ModuleType):
    assert sorted(room.__all__) == sorted(OFFERED[room].split())
    for name in room.__all__:
        value = getattr(room, name)
        assert not inspect.isclass(value) or inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_arguments_keep_their_names_and_order(function):
    shown, star = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        shown.append(name)
    assert f"({', '.join(shown)})" == SIGNATURES[function]
