"""Discrete actions: the text model writes action tokens, and the FAST tokenizer makes a chunk of them.

FAST (Pertsch et al., 2025): every joint's cosine transform over time, scaled and rounded, joined row by row to a
string, and that compressed by byte pairs. Tokens are the reference's (greedy, over the whole vocabulary); of the
prompt nothing but its last row meets the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from molmoact2_ros.policy.checkpoint import CheckpointError
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.reference import bins_of_sequence

RELEASED_TOKENIZER = "allenai/MolmoAct2-FAST-Tokenizer"
"""What the released checkpoints were trained with, as lerobot's configuration names it."""
OWN_TOKENIZER = "action_tokenizer"
"""A checkpoint may carry its tokenizer in a directory of this name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class FastTokenizer:
    """Action tokens to a chunk.

    Raises:
        CheckpointError: `directory` holds no FAST tokenizer.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        settings = directory / "processor_config.json"
        try:
            self._pairs = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
            content = json.loads(settings.read_text()) if settings.is_file() else {}
            self._scale, self._lowest = float(content.get("scale", 10)), int(content.get("min_token", 0))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{directory}: no FAST tokenizer there that can be loaded: {error}") from error
        self.size = len(self._pairs)

    def decode(self, tokens: list[int], horizon: int, dof: int) -> NDArray[np.float32]:
        """The chunk (horizon, dof) in the scale of -1 .. 1 that `tokens` stand for.

        Raises:
            RuntimeError: they stand for another number of values. (The reference then returns the middle of every
                joint's range, which an arm would drive to.)
        """
        from scipy.fft import idct

        values = np.array([ord(character) for character in self._pairs.decode(tokens)], dtype=np.float64)
        if values.size != horizon * dof:
            raise RuntimeError(
                f"the model's {len(tokens)} action tokens stand for {values.size} values, expected {horizon} x {dof}; "
                "no chunk can be made of them (is this the checkpoint's own FAST tokenizer?)"
            )
        coefficients = (values + self._lowest).reshape(horizon, dof) / self._scale
        chunk: NDArray[np.float32] = np.asarray(idct(coefficients, axis=0, norm="ortho"), dtype=np.float32)
        return chunk


def open_action_tokenizer(checkpoint: Path, chosen: str) -> FastTokenizer:
    """The FAST tokenizer `chosen` (a directory or a Hugging Face id), else the checkpoint's own, else the released one.

    Raises:
        CheckpointError: it is not there, or cannot be loaded.
    """
    if not chosen and (checkpoint / OWN_TOKENIZER).is_dir():
        return FastTokenizer(checkpoint / OWN_TOKENIZER)
    name = chosen or RELEASED_TOKENIZER
    path = Path(name).expanduser()
    if path.is_dir():
        return FastTokenizer(path)
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"action tokenizer {name!r}: no such directory, and not a Hugging Face id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return FastTokenizer(Path(snapshot_download(name, allow_patterns=["*.json", "*.txt"])))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"action tokenizer {name}: fetching it from Hugging Face failed ({type(error).__name__}); fetch it "
            "elsewhere with `hf download` and name the directory (action_tokenizer)"
        ) from error


class DiscreteActions:
    """Greedy action tokens behind a prefilled prompt, and the chunk they stand for.

    Args:
        config: the reference's configuration. head: weight of the language-model head (vocabulary, width).
        horizon, dof: of the chunk that the model was trained on.

    Raises:
        CheckpointError: the tokenizer is not the checkpoint's own.
    """

    def __init__(self, config: Any, head: torch.Tensor, tokenizer: FastTokenizer, horizon: int, dof: int) -> None:
        if tokenizer.size > int(config.num_action_tokens):
            raise CheckpointError(
                f"the FAST tokenizer has {tokenizer.size} entries, the checkpoint {config.num_action_tokens} action "
                "tokens; use the checkpoint's own tokenizer (action_tokenizer)"
            )
        self._config, self._head, self._tokenizer = config, head, tokenizer
        self._horizon, self._dof = horizon, dof

    @property
    def limit(self) -> int:
        """How many tokens a sequence may have, its end included, as the reference allows."""
        return 16 * self._horizon

    def sequence(self, hidden: torch.Tensor, forward: Callable[[list[int]], torch.Tensor]) -> list[int]:
        """The tokens up to the end of the text, which comes last.

        Args:
            hidden: (1, width) of the last row of prompt and depth.
            forward: appends tokens to the keys and values and returns their hidden states.

        Raises:
            UnendedSequenceError: the end did not come within `limit` tokens.
        """
        tokens: list[int] = []
        while True:
            tokens.append(int(functional.linear(hidden[-1:], self._head).argmax(dim=-1)))
            if tokens[-1] == int(self._config.eos_token_id):
                return tokens
            if len(tokens) >= self.limit:
                raise UnendedSequenceError(f"the model's action tokens did not end within {self.limit}")
            hidden = forward(tokens[-1:])

    def chunk(self, tokens: list[int]) -> NDArray[np.float32]:
        """The chunk (horizon, dof) in the scale of -1 .. 1 of a sequence; `tokens` with those of depth before it.

        Raises:
            RuntimeError: there are no action tokens among them, or not a chunk's worth.
        """
        config = self._config
        bins = bins_of_sequence(
            tokens,
            int(config.action_start_token_id),
            int(config.action_end_token_id),
            int(config.action_token_start_id),
            int(config.num_action_tokens),
        )
        if not bins:
            raise RuntimeError(f"the model wrote {len(tokens)} tokens and no action token among them")
        return self._tokenizer.decode(bins, self._horizon, self._dof)
