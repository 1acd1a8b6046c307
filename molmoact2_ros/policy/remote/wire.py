"""Dictionaries with arrays on the wire, in the two forms in use: msgpack as openpi's client packs it, and JSON as
json_numpy writes it.

What comes in is not trusted: no pickle, no object or structured arrays, and bounds on everything before it is made.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from math import prod
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

MOST_PARTS = 5000
"""Values in one message, pictures counting as one."""
MOST_CONTAINERS = 1000
MOST_ENTRIES = 1024
"""Of one list or dictionary in msgpack."""
MOST_DIMENSIONS = 4
LONGEST_NUMBER = 20

_PLAIN = re.compile(r"[<>|=]?[buif][1248]")
"""Types of numbers that may come; everything else could hold objects or names."""


class WireError(ValueError):
    """What came is no message of this protocol."""


def array(data: object, dtype: object, shape: object) -> NDArray[Any]:
    """The array that `data` holds.

    Raises:
        WireError: the three do not belong together, or the type is none of plain numbers.
    """
    if not isinstance(dtype, str) or not _PLAIN.fullmatch(dtype):
        raise WireError(f"an array's dtype must be one of plain numbers such as '|u1' or '<f4', got {dtype!r:.60}")
    if not isinstance(data, bytes) or not isinstance(shape, list | tuple):
        raise WireError("an array needs data as bytes and a shape as a list")
    if len(shape) > MOST_DIMENSIONS or not all(type(side) is int and side >= 0 for side in shape):
        raise WireError(f"an array's shape must be up to {MOST_DIMENSIONS} whole numbers, got {shape!r:.60}")
    kind = np.dtype(dtype)
    if prod(shape) * kind.itemsize != len(data):
        raise WireError(f"an array of {dtype} {tuple(shape)} has {prod(shape) * kind.itemsize} bytes, got {len(data)}")
    return np.frombuffer(data, kind).reshape(shape)


def scalar(value: object) -> bool | int | float:
    """A number that numpy held alone.

    Raises:
        WireError: it is none.
    """
    if not isinstance(value, bool | int | float):
        raise WireError(f"a number was expected, got {type(value).__name__}")
    return value


# -- msgpack ---------------------------------------------------------------------------------------------------------


def pack(message: Mapping[str, Any]) -> bytes:
    """`message` as msgpack, arrays and numpy's numbers in openpi's form."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": list(value.shape),
            }
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} cannot be sent")

    packed: bytes = msgpack.packb(message, default=plain)
    return packed


def unpack(body: bytes) -> dict[str, Any]:
    """The dictionary in `body`, arrays read-only.

    Raises:
        WireError: it is damaged, holds what must not come, or is no dictionary.
    """
    seen = 0

    def count() -> None:
        # A byte of an empty container becomes 60 in memory: they are counted as they are made.
        nonlocal seen
        seen += 1
        if seen > MOST_CONTAINERS:
            raise WireError(f"more than {MOST_CONTAINERS} lists and dictionaries")

    def dictionary(found: dict[Any, Any]) -> Any:
        count()
        if b"__ndarray__" in found:
            return array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
        if b"__npgeneric__" in found:
            return scalar(found.get(b"data"))
        return found

    def listed(found: list[Any]) -> list[Any]:
        count()
        return found

    try:
        message = msgpack.unpackb(
            body,
            object_hook=dictionary,
            list_hook=listed,
            max_array_len=MOST_ENTRIES,
            max_map_len=MOST_ENTRIES,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise WireError(f"no msgpack message: {error or type(error).__name__}") from error
    return _dictionary(message)


# -- JSON ------------------------------------------------------------------------------------------------------------


def dumps(message: Mapping[str, Any]) -> bytes:
    """`message` as JSON, arrays and numpy's numbers in json_numpy's form."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            data = base64.b64encode(value.tobytes()).decode("ascii")
            return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} cannot be sent")

    return json.dumps(message, default=plain).encode()


def loads(body: bytes) -> dict[str, Any]:
    """The dictionary in `body`, arrays read-only.

    Raises:
        WireError: it is damaged, holds what must not come, or is no dictionary.
    """
    # Base64 has none of these, so that pictures do not count, and what is not yet parsed takes no memory.
    parts = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if parts > MOST_PARTS:
        raise WireError(
            f"{parts} values in one message, at most {MOST_PARTS} are taken; send arrays in json_numpy's form"
        )
    try:
        message = json.loads(body, object_hook=_json_dictionary, parse_int=_whole)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON message: {error or type(error).__name__}") from error
    return _dictionary(message)


def base64_bytes(text: object) -> bytes:
    """What `text` holds in base64.

    Raises:
        WireError: it is no such text.
    """
    if not isinstance(text, str):
        raise WireError(f"base64 text was expected, got {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"no base64 text: {error}") from error


def _whole(digits: str) -> int:
    # As long as msgpack's at most: a longer one would have no float.
    if len(digits) > LONGEST_NUMBER:
        raise WireError(f"a number of {len(digits)} digits")
    return int(digits)


def _json_dictionary(found: dict[str, Any]) -> Any:
    if "__numpy__" not in found:
        return found
    shape = found.get("shape")
    value = array(base64_bytes(found["__numpy__"]), found.get("dtype"), shape)
    return value if shape else value[()].item()


def _dictionary(message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise WireError(f"a dictionary was expected, got {type(message).__name__}")
    wrong = next((key for key in message if not isinstance(key, str)), None)
    if wrong is not None:
        raise WireError(f"a dictionary's keys must be text, got {wrong!r:.60}")
    return message
