"""Parameter files: which ones a robot's nodes read, and what they say to one node. As ROS reads them, without ROS.

Three lie on top of each other: `config/common.yaml`, what differs for the robot, and a file of the user's own, which
holds only what he wants otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from molmoact2_ros.share import share_path

PARAMETERS = "ros__parameters"
_EXAMPLE = f"'/**/executor: {{{PARAMETERS}: {{ramp_speed: 0.1}}}}'"


def robot_files(family: str) -> tuple[str, ...]:
    """The files that ship here for a family of robots; a later one wins."""
    return str(share_path("config/common.yaml")), str(share_path(f"config/{family}.yaml"))


def user_files(path: str) -> tuple[str, ...]:
    """The user's own file, looked at: none where `path` is empty.

    Raises:
        ValueError: there is no such file, or it is no parameter file.
    """
    if not path:
        return ()
    sections(path)
    return (str(Path(path).expanduser().resolve()),)


def sections(path: str) -> dict[str, dict[str, Any]]:
    """The sections of a parameter file: pattern of a node's full name -> parameter name (levels with dots) -> value.

    Raises:
        ValueError: there is no such file, or it is no parameter file.
    """
    file = Path(path).expanduser()
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the parameter file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    return dict(_sections(path, content or {}, ""))


def parameters_for(paths: Iterable[str], node: str) -> dict[str, Any]:
    """What the files say to the node with the full name `node` (`/so101/camera`), or to one of this name (`camera`) in
    whatever namespace; a later file wins.

    Raises:
        ValueError: one of them cannot be read.
    """
    patterns: dict[str, dict[str, Any]] = {}
    for path in paths:
        for pattern, values in sections(path).items():
            patterns.setdefault(pattern, {}).update(values)
    found: dict[str, Any] = {}
    for pattern, values in patterns.items():  # as rcl does it: in the order in which the patterns first came
        if _matches(pattern, node):
            found |= values
    return found


def _sections(path: str, content: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, inner in content.items() if isinstance(content, Mapping) else ():
        if key == PARAMETERS:
            if not isinstance(inner, Mapping):
                raise ValueError(f"{path}: {PARAMETERS} of {prefix} must hold names and values, got {inner!r}")
            yield prefix, dict(_flat(inner, ""))
        elif not isinstance(inner, Mapping):
            raise ValueError(f"{path}: {key!r} belongs under a node's name and {PARAMETERS}, for instance {_EXAMPLE}")
        else:
            yield from _sections(path, inner, f"{prefix}/{str(key).strip('/')}")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold sections of nodes, for instance {_EXAMPLE}")


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _matches(pattern: str, node: str) -> bool:
    if not node.startswith("/"):
        return pattern.rpartition("/")[2] in (node, "*", "**")
    parts = {"/**": "(/[^/]+)*", "/*": "/[^/]+"}
    expression = "".join(parts.get(part, re.escape(part)) for part in re.findall("/[^/]+", pattern))
    return re.fullmatch(expression, node) is not None
