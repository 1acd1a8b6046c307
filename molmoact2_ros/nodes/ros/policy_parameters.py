"""The parameters of the policy node, and what the policy room makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.policy import BACKENDS, Choices, InferenceOptions, Policy, RTCOptions, open_policy
from molmoact2_ros.policy.checkpoints.frame import FRAMES
from molmoact2_ros.policy.options import (
    ACTION_MODES,
    AMX_PRECISIONS,
    DEPTH_MODES,
    ENGINE_PRECISIONS,
    REDRAFTS,
    RemoteOptions,
)
from molmoact2_ros.policy.request import REQUESTS, RequestOptions
from molmoact2_ros.policy.rtc import SCHEDULES

SWITCHES = {"auto": None, "on": True, "off": False}
"""What a parameter may say that has an automatic choice."""

PARAMETERS = (
    Parameter(
        "checkpoint", "", "Directory (released or lerobot-train's), bundled name, or Hugging Face id[@revision]."
    ),
    Parameter("base_checkpoint", "", "What a fine-tune was made from: directory or id; empty: where it says itself."),
    Parameter("norm_tag", "", "Tag in norm_stats.json. Has no default: another tag is another robot's scaling."),
    Parameter("joint_frame", "auto", f"SO arms: {', '.join(FRAMES)}; auto: told from the checkpoint, or refused."),
    Parameter(
        "backend", "auto", f"What runs the model: {', '.join(BACKENDS)}; or remote:ws://host:port, remote:http://."
    ),
    Parameter("remote.token_file", "", "remote: file with the token that the server asks for; empty: none."),
    Parameter("remote.jpeg_quality", 90, "remote: of the pictures sent; 0: as they are, 20 times as large.", 0, 100),
    Parameter("remote.deadline_s", 2.0, "remote: an answer that takes longer is no longer waited for, s.", 0.05, 60.0),
    Parameter("device", "auto", "auto, cpu, cuda or cuda:N."),
    Parameter("dtype", "auto", "auto (float32 on a CPU, mixed on a GPU), float32, bfloat16, float16 or mixed."),
    Parameter("threads", 0, "CPU threads of the model; 0 leaves it to OMP_NUM_THREADS.", 0, 256),
    Parameter("amx", "auto", f"torch: float32 products on the CPU's matrix unit: {', '.join(AMX_PRECISIONS)}."),
    Parameter("cuda_graphs", "auto", f"torch: whole stages as CUDA graphs: {', '.join(SWITCHES)}; auto: on a GPU."),
    Parameter("compile", False, "torch: compile the stages; takes minutes at the first calls."),
    Parameter("precision", "bf16", f"tensorrt: of the engines, {', '.join(ENGINE_PRECISIONS)}."),
    Parameter("seed", 0, "Seed of the flow's noise.", 0, 2**31 - 1),
    Parameter("cameras", [""], "A camera a picture in prompt order, or view=camera for each; empty: by name."),
    Parameter("cell_cameras", [""], "The cameras that there are, for matching names; empty: the robot's usual ones."),
    Parameter("camera_timeout_s", 0.5, "Silence of a camera after which publishing stops, s.", 0.05, 10.0),
    Parameter("max_skew_s", 0.2, "Images whose capture times are further apart are not used, s; 0: any.", 0.0, 10.0),
    *JOINT_STATE_PARAMETERS,
    Parameter("state_timeout_s", 0.25, "Silence of the joint states after which publishing stops, s.", 0.02, 10.0),
    Parameter("action_mode", "continuous", f"{', '.join(ACTION_MODES)}; discrete: FAST tokens, where trained on them."),
    Parameter("action_tokenizer", "", "FAST tokenizer: directory or Hugging Face id; empty: the checkpoint's own."),
    Parameter("depth.mode", "adaptive", f"{', '.join(DEPTH_MODES)}; adaptive: cells that did not change keep codes."),
    Parameter("depth.drift_safe", False, "Compare a cell with its image when last predicted, not with the last one."),
    Parameter("depth.refresh_every", 0, "Predict every cell anew at least once in so many calls; 0: never.", 0, 10000),
    Parameter("depth.max_gap_s", 2.0, "Depth older than this is predicted anew altogether, s.", 0.05, 60.0),
    Parameter("depth.redraft", "auto", f"Draft after a wrong code: {', '.join(REDRAFTS)}. The codes are the same."),
    Parameter("request.policy", "asap", f"When to ask for the next chunk: {', '.join(REQUESTS)}."),
    Parameter("request.remaining", 0.5, "remaining: ask when this share of the last chunk is left.", 0.0, 1.0),
    Parameter("request.rate_hz", 5.0, "rate: chunks a second, Hz.", 0.01, 100.0),
    Parameter("max_rate_hz", 0.0, "Chunks a second at most, whenever asked for; 0: no bound, Hz.", 0.0, 100.0),
    Parameter("rtc.enabled", False, "Real-time chunking: guide each chunk by the last one."),
    Parameter("rtc.schedule", "linear", f"How the guidance falls from delay to horizon: {', '.join(SCHEDULES)}."),
    Parameter("rtc.horizon", 10, "Rows of the new chunk from which on nothing binds it.", 1, 1000),
    Parameter(
        "rtc.max_weight", 10.0, "Bound of the guidance; above the number of flow steps it overshoots.", 0.01, 100.0
    ),
    Parameter("rtc.percentile", 80.0, "Of the latest latencies: the delay to expect, %.", 0.0, 100.0),
    Parameter("rtc.window", 20, "How many latencies are remembered.", 1, 1000),
    Parameter("rtc.max_delay_s", 1.0, "Bound of the expected delay, s.", 0.01, 10.0),
    Parameter("rtc.max_deviation", 0.15, "Farther from the last chunk nothing binds, share of a range.", 0.001, 10.0),
    Parameter("task", "", "What the robot is told now; set while the node runs.", read_only=False),
)

Value = Callable[[str], Any]
"""The value of a parameter by name."""


def opened(value: Value, robot: Embodiment, now_ns: Callable[[], int], log: Callable[[str], None]) -> Policy:
    """The policy that the parameters describe; raises what `open_policy` does."""
    return open_policy(
        value("checkpoint"),
        robot,
        value("norm_tag"),
        backend=value("backend"),
        device=value("device"),
        dtype=value("dtype"),
        threads=value("threads"),
        seed=value("seed"),
        choices=checkpoint_choices(value),
        options=inference_options(value),
        rtc=rtc_options(value),
        max_gap_s=value("depth.max_gap_s"),
        remote=remote_options(value),
        now_ns=now_ns,
        log=log,
    )


def remote_options(value: Value) -> RemoteOptions:
    """How another machine is spoken to."""
    return RemoteOptions(value("remote.token_file"), value("remote.jpeg_quality"), value("remote.deadline_s"))


def checkpoint_choices(value: Value) -> Choices:
    """What the user says where a checkpoint leaves something open.

    Raises:
        ValueError: an unknown frame.
    """
    return Choices(
        cameras=tuple(name for name in value("cameras") if name),
        cell_cameras=tuple(name for name in value("cell_cameras") if name),
        base=value("base_checkpoint"),
        joint_frame=value("joint_frame"),
    )


def inference_options(value: Value) -> InferenceOptions:
    """How a prediction is computed.

    Raises:
        ValueError: an unknown mode, here and in the two below.
    """
    return InferenceOptions(
        action_mode=value("action_mode"),
        action_tokenizer=value("action_tokenizer"),
        depth_mode=value("depth.mode"),
        drift_safe=value("depth.drift_safe"),
        refresh_every=value("depth.refresh_every"),
        redraft=value("depth.redraft"),
        amx=value("amx"),
        cuda_graphs=_switch("cuda_graphs", value),
        compile=value("compile"),
        precision=value("precision"),
    )


def _switch(name: str, value: Value) -> bool | None:
    said = value(name)
    if said not in SWITCHES:
        raise ValueError(f"{name} must be one of {', '.join(SWITCHES)}, got {said!r}")
    return SWITCHES[said]


def rtc_options(value: Value) -> RTCOptions:
    """How chunks are guided by those before."""
    return RTCOptions(
        enabled=value("rtc.enabled"),
        schedule=value("rtc.schedule"),
        horizon=value("rtc.horizon"),
        max_weight=value("rtc.max_weight"),
        percentile=value("rtc.percentile"),
        window=value("rtc.window"),
        max_delay_s=value("rtc.max_delay_s"),
        max_deviation=value("rtc.max_deviation"),
    )


def request_options(value: Value) -> RequestOptions:
    """When the next chunk is asked for."""
    return RequestOptions(
        policy=value("request.policy"), remaining=value("request.remaining"), rate_hz=value("request.rate_hz")
    )
