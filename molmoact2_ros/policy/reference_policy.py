"""The backend `reference`: the reference's own `predict_action` behind `infer` and `reset`."""

from __future__ import annotations

from collections.abc import Callable

from molmoact2_ros.embodiments import Embodiment
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.model_policy import ModelPolicy
from molmoact2_ros.policy.options import MAX_GAP_S
from molmoact2_ros.policy.reference import ReferenceModel
from molmoact2_ros.policy.tensors import plain_type


class ReferencePolicy(ModelPolicy):
    """Runs a checkpoint with the reference model; see `ModelPolicy` for the arguments."""

    _model: ReferenceModel

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
        max_gap_s: float = MAX_GAP_S,
    ) -> None:
        super().__init__(
            checkpoint,
            robot,
            # The reference's own layers take one type only.
            lambda where, kind: ReferenceModel(checkpoint, where, plain_type(kind)),
            device=device,
            dtype=dtype,
            threads=threads,
            seed=seed,
            log=log,
            max_gap_s=max_gap_s,
        )
