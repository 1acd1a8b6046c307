"""Where a checkpoint is: a directory, a bundled name, or a Hugging Face repository with or without a revision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from molmoact2_ros.policy.checkpoints.settings import CheckpointError

BUNDLED = Path(__file__).resolve().parents[2] / "data"
"""Where the checkpoints of the simulated cells lie, by name."""

SMALL_FILES = ("*.json", "*.txt", "*.jinja")
"""What describes a checkpoint; a few megabytes."""
ALL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")
_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:models/)?(?P<name>[^/?#]+/[^/?#]+)(?P<rest>/.*)?")


def resolve_directory(checkpoint: str | Path) -> Path:
    """The local directory of `checkpoint`: a path, a bundled name, or a Hugging Face id that is fetched.

    Raises:
        CheckpointError: neither exists, or the fetch failed.
    """
    text = str(checkpoint).strip()
    if not text:
        raise CheckpointError("no checkpoint given: name its directory or a Hugging Face id")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if "/" not in text and (BUNDLED / text / "config.json").is_file():
        return BUNDLED / text
    if path.exists():
        raise CheckpointError(f"{path} is a file; name the checkpoint's directory")
    found = hub_name(text)
    if found is None:
        raise CheckpointError(f"{path}: no such directory, and not a Hugging Face id (owner/name, owner/name@revision)")
    return fetched(*found, ALL_FILES)


def resolve_base(said: str, asked_by: Path, parameter: str, weights: bool) -> Path:
    """The directory of the base `said` in a fine-tune: a path, or a Hugging Face id, from the local cache if it is
    there and else fetched. Without `weights` only what describes it is.

    Raises:
        CheckpointError: it is not there; `parameter` is what the user can name it by.
    """
    text = said.strip()
    path = Path(text).expanduser()
    if text and path.is_dir():
        return path
    if text and "/" not in text and (BUNDLED / text / "config.json").is_file():
        return BUNDLED / text
    found = hub_name(text) if text else None
    if found is None:
        what = f"its base {text!r} is not on this machine" if text else "its base is not named in it"
        raise CheckpointError(f"{asked_by}: {what}; name the base's directory or Hugging Face id as {parameter}")
    cached = None if weights else _cached(*found)
    if cached is not None:
        return cached
    try:
        return fetched(*found, ALL_FILES if weights else SMALL_FILES)
    except CheckpointError as error:
        raise CheckpointError(
            f"{asked_by}: of its base {text} the {'weights' if weights else 'processor files'} are needed: {error}; or "
            f"name a directory that has them as {parameter}"
        ) from error


def hub_name(text: str) -> tuple[str, str | None] | None:
    """Name and revision behind a Hugging Face id or address; None where it is neither."""
    address = _URL.fullmatch(text)
    if address:
        rest = (address["rest"] or "").strip("/").split("/")
        return address["name"], rest[1] if len(rest) > 1 and rest[0] in ("tree", "blob", "commit") else None
    named = None if text.startswith((".", "~")) else _ID.fullmatch(text)
    return (named["name"], named["revision"]) if named else None


def fetched(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot of a Hugging Face repository with the files of `patterns`, resumed where it was begun; from the
    cache alone when offline (`HF_HUB_OFFLINE=1`).

    Raises:
        CheckpointError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    shown = f"{name}@{revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:
        raise CheckpointError(
            f"{shown}: no such directory here, and fetching it from Hugging Face failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Check the name and the network, or fetch "
            "it elsewhere with `hf download` and give the directory"
        ) from error


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if what describes a checkpoint is in it."""
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # whatever is wrong with the cache, the fetch will say
        return None
    whole = all((found / file).is_file() for file in ("config.json", "processor_config.json", "tokenizer.json"))
    return found if whole else None
