"""Tokens that mean something to the model: in a task they would end it, hide what follows, or look like an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from molmoact2_ros.policy.checkpoints.settings import read_json


def added_tokens(directory: Path) -> tuple[str, ...]:
    """Every token that the tokenizer in `directory` has beside its words.

    Raises:
        CheckpointError: its file cannot be read.
    """
    if (directory / "tokenizer.json").is_file():
        entries = read_json(directory / "tokenizer.json").get("added_tokens") or []
    elif (directory / "tokenizer_config.json").is_file():
        entries = (read_json(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}).values()
    else:
        entries = []
    return tuple(
        sorted({str(entry["content"]) for entry in entries if isinstance(entry, dict) and entry.get("content")})
    )


def token_in(text: str, tokens: Sequence[str]) -> str:
    """The first of `tokens` in `text`, however it is written; empty if there is none."""
    lowered = text.lower()
    return next((token for token in tokens if token.lower() in lowered), "")
