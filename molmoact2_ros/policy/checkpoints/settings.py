"""JSON files of a checkpoint, value by value: what is not what it should be is named with its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was expected, what was found and what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`.

    Raises:
        CheckpointError: it is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint, and complete?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object, got {type(content).__name__}")
    return content


def whole(content: Mapping[str, Any], key: str, where: object, least: int, default: int | None = None) -> int:
    """A whole number of at least `least`; `default` where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = content.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < least:
        raise CheckpointError(f"{where}: {key} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def switch(content: Mapping[str, Any], key: str, where: object, default: bool) -> bool:
    """True or false; `default` where nothing is said.

    Raises:
        CheckpointError: it is something else.
    """
    value = content.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} must be true or false, got {value!r}")
    return value


def words(content: Mapping[str, Any], key: str, where: object) -> str:
    """Text; empty where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = content.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: {key} must be text, got {value!r}")
    return value


def names(content: Mapping[str, Any], key: str, where: object) -> list[str]:
    """A list of texts; empty where there is none.

    Raises:
        CheckpointError: it is something else.
    """
    value = content.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise CheckpointError(f"{where}: {key} must be a list of names, got {value!r}")
    return list(value)


def part(content: Mapping[str, Any], key: str, where: object) -> dict[str, Any]:
    """An object inside another.

    Raises:
        CheckpointError: it is absent or something else.
    """
    value = content.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {key} must be an object, got {value!r}")
    return dict(value)
