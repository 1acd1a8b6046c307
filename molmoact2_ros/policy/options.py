"""What a user can choose about a prediction. No torch here, so that whoever chooses need not load it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_GAP_S = 2.0
"""Depth older than this is not replayed: too much may have happened unseen."""

ACTION_MODES = ("continuous", "discrete")
DEPTH_MODES = ("adaptive", "full")
REDRAFTS = ("auto", "prev", "jacobi")
AMX_PRECISIONS = ("auto", "high", "highest", "off")
ENGINE_PRECISIONS = ("bf16", "fp16")


@dataclass(frozen=True)
class InferenceOptions:
    """How a call is computed. What differs from the reference's answers says so.

    Attributes:
        action_mode: "continuous" (flow), or "discrete" (action tokens) where the checkpoint has them.
        action_tokenizer: directory or Hugging Face id of the FAST tokenizer; empty: the checkpoint's own
            (`action_tokenizer/` in it), else the released one.
        depth_mode: "adaptive" replays unchanged cells as the reference does by default; "full" decodes every cell.
        drift_safe: compare each cell with the image of its own last prediction, not with the last image: slow drift
            is then noticed. Differs from the reference.
        refresh_every: predict every cell anew at least once in so many calls; 0 never. Differs from the reference.
        redraft: what is drafted after an error: "auto", "prev" or "jacobi". The codes are the same.
        row_cost: see `Speculation`; None: what the backend says. The codes are the same.
        amx: float32 products of backend torch on the CPU's matrix unit, where weights are bfloat16 by nature: "high"
            (17 bits of an activation), "highest" (all 24), "off"; "auto": high where there is such a unit.
        compile: backend torch compiles its stages (minutes at the first calls).
        cuda_graphs: backend torch replays its stages as CUDA graphs; None: wherever there is a GPU.
        precision: of the engines of backend tensorrt, "bf16" or "fp16".
    """

    action_mode: str = "continuous"
    action_tokenizer: str = ""
    depth_mode: str = "adaptive"
    drift_safe: bool = False
    refresh_every: int = 0
    redraft: str = "auto"
    row_cost: float | None = None
    amx: str = "auto"
    compile: bool = False
    cuda_graphs: bool | None = None
    precision: str = "bf16"

    def __post_init__(self) -> None:
        choices = {
            "action_mode": ACTION_MODES,
            "depth_mode": DEPTH_MODES,
            "redraft": REDRAFTS,
            "amx": AMX_PRECISIONS,
            "precision": ENGINE_PRECISIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; use {', '.join(known)}")
        if self.refresh_every < 0:
            raise ValueError(f"refresh_every must be 0 (never) or a number of calls, got {self.refresh_every}")


@dataclass(frozen=True)
class RemoteOptions:
    """How a server is spoken to.

    Attributes:
        token_file: what it asks for; empty: nothing.
        jpeg_quality: of the pictures, 1 to 100; 0: as they are, about twenty times as large.
        deadline_s: an answer that takes longer is no longer waited for.
    """

    token_file: str = ""
    jpeg_quality: int = 90
    deadline_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, or 0 for raw pictures, got {self.jpeg_quality}")
        if not self.deadline_s > 0.0:
            raise ValueError(f"deadline_s must be positive, got {self.deadline_s}")


class BackendMissingError(ValueError):
    """A backend was asked for that is not installed here, or that this machine cannot run."""
