"""The policy of every backend but the reference: stages with speculation in the depth sequence."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.backends.opening import choose, open_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_model
from molmoact2_ros.policy.model_policy import ModelPolicy
from molmoact2_ros.policy.options import MAX_GAP_S, InferenceOptions
from molmoact2_ros.policy.rtc import RTCOptions
from molmoact2_ros.policy.staged_model import StagedModel
from molmoact2_ros.policy.stages.stage_set import release
from molmoact2_ros.policy.tensors import WeightTypes, plain_type


class StagedPolicy(ModelPolicy):
    """Runs a checkpoint with `StagedModel`; see `ModelPolicy` for the arguments."""

    _model: StagedModel

    def __init__(
        self,
        checkpoint: Checkpoint,
        robot: Embodiment,
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        seed: int = 0,
        log: Callable[[str], None],
        options: InferenceOptions | None = None,
        rtc: RTCOptions | None = None,
        max_gap_s: float = MAX_GAP_S,
        now_ns: Callable[[], int] = time.time_ns,
        backend: str = "torch",
    ) -> None:
        def opened(where: torch.device, kind: torch.dtype | WeightTypes) -> StagedModel:
            name = choose(checkpoint, where, plain_type(kind), log) if backend == "auto" else backend
            if name != "torch":
                kind = plain_type(kind)
            stages = open_stages(name, checkpoint, where, options, log=log)
            # Engines hold the weights on the GPU; torch's never get there.
            loaded = load_model(checkpoint, torch.device("cpu"), kind) if name == "tensorrt" else None
            model = StagedModel(checkpoint, where, kind, log, options, stages, loaded)
            if name == "onnxruntime":
                release(model.stages.decoder.blocks, model.stages.flow.expert.blocks)
            return model

        super().__init__(
            checkpoint,
            robot,
            opened,
            device=device,
            dtype=dtype,
            threads=threads,
            seed=seed,
            log=log,
            rtc=rtc,
            max_gap_s=max_gap_s,
            now_ns=now_ns,
        )
