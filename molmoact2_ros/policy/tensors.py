"""Weights from disk, one by one, and a look at each: what an interrupted download leaves cannot be weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from molmoact2_ros.policy.checkpoints.settings import CheckpointError

MAPPED_BYTES = 256 << 20
"""Of a file so much is mapped at most before it is opened anew: mapped pages count as this process's memory."""
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
