"""Weights from disk, one by one, and a look at each: what an interrupted download leaves cannot be weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from molmoact2_ros.policy.checkpoints.settings import CheckpointError

MAPPED_BYTES = 64 << 20
"""Of a file so much is mapped at most before it is opened anew: mapped pages count as this process's memory."""


@dataclass(frozen=True)
class WeightTypes:
    """Which type weights are held and computed in.

    Attributes:
        matrices: of the vision encoder and the text model. precise: of the action expert and of the text model's norms.
    """

    matrices: torch.dtype
    precise: torch.dtype

    def of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """The type of one weight. Rotary frequencies stay float32: rounded ones would turn every position."""
        if "inv_freq" in name:
            return torch.float32
        norm = ".transformer." in name and "vision" not in name and tensor.ndim == 1 and name.endswith("weight")
        return self.precise if norm or "action_expert" in name else self.matrices


MIXED = WeightTypes(torch.bfloat16, torch.float32)
"""As lerobot's development version computes: bfloat16 throughout did not pass its parity checks, this did."""


def plain_type(kind: torch.dtype | WeightTypes) -> torch.dtype:
    """One type in place of several, for what knows one only."""
    return kind.matrices if isinstance(kind, WeightTypes) else kind


MAY_BE_ZERO = ("depth_gate",)
"""Parts of names whose matrices a sound checkpoint may leave at zero."""


def read_tensors(path: Path, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file, given as names in it and names to give back, in the order in which they lie.

    A tensor is valid until the next one is asked for.

    Raises:
        CheckpointError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    waiting = list(pairs)
    while waiting:
        mapped = 0
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                while waiting and mapped < MAPPED_BYTES:
                    stored, name = waiting.pop(0)
                    tensor = file.get_tensor(stored)
                    mapped += tensor.nbytes
                    yield name, tensor
                    del tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; fetch it again") from error


class WeightsLook:
    """Looks at every weight once, and says what is wrong when all have been seen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._broken: list[str] = []
        self._empty: list[str] = []
        self._seen = 0

    def at(self, name: str, tensor: torch.Tensor) -> None:
        """Take one weight in."""
        if not tensor.numel() or not tensor.is_floating_point():
            return
        self._seen += 1
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not (low > -float("inf") and high < float("inf")):
            self._broken.append(name)
        elif low == high == 0.0 and tensor.ndim > 1 and not any(part in name for part in MAY_BE_ZERO):
            self._empty.append(name)

    def finish(self) -> None:
        """Say what was wrong.

        Raises:
            CheckpointError: weights hold NaN or infinity, or nothing but zeros.
        """
        for names, what in ((self._broken, "NaN or infinity"), (self._empty, "nothing but zeros")):
            if names:
                raise CheckpointError(
                    f"{self._directory}: {len(names)} of {self._seen} weights hold {what} ({', '.join(names[:3])}): "
                    "the download or the training was interrupted; fetch the checkpoint again"
                )
