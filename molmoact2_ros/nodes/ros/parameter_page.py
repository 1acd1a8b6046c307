"""docs/reference/parameters.md, from the nodes' declarations and the parameter files that ship here."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.parameters import COMMON, Parameter
from molmoact2_ros.parameter_files import parameters_for, robot_files

ROOMS = {
    "molmoact2_ros.nodes": "On a robot",
    "molmoact2_ros.nodes.sim": "Of the simulated cell",
    "molmoact2_ros.nodes.bench": "That measure",
}
FAMILIES = ("so101", "yam", "franka")
INTRODUCTION = """# Parameters

Made by `make pages` from what the nodes declare; do not edit.

A node takes its values from `config/common.yaml`, the robot's own file (`config/so101.yaml`, `yam.yaml`, `franka.yaml`)
and a file of yours (`config:=`), which wins and holds nothing but what you want otherwise. What bringup derives from
the robot (`norm_tag`, `base_frame`, the simulated cameras, ...) is set only where your file is silent. A value in your
file is used or refused: a name that the node does not have, a wrong type, a value out of bounds, or one that an
argument contradicts ends the start with a line that says so.

"Robots" says what a robot's files set where that is not the default. Parameters marked * can be changed while the node
runs; the others are read when it is configured. Every node also has:
"""


def node_classes(room: str) -> dict[str, type[MolmoNode]]:
    """The nodes of a room by their names."""
    found = {}
    for module in pkgutil.iter_modules(import_module(room).__path__):
        name = module.name.removesuffix("_node")
        for value in vars(import_module(f"{room}.{module.name}")).values() if name != module.name else ():
            if isinstance(value, type) and issubclass(value, MolmoNode) and value.PARAMETERS:
                found[name] = value
    return found


def page() -> str:
    """The page, Markdown."""
    lines = [*INTRODUCTION.splitlines(), "", *_table("", COMMON)]
    for room, title in ROOMS.items():
        lines += ["", f"## {title}"]
        for name, node in node_classes(room).items():
            lines += ["", f"### {name}", "", *_table(name, node.PARAMETERS)]
    return "\n".join(lines) + "\n"


def _table(node: str, parameters: tuple[Parameter, ...]) -> Iterator[str]:
    yield "| parameter | type | default | bounds | robots | what it is |"
    yield "|---|---|---|---|---|---|"
    files = {family: parameters_for(robot_files(family), f"/{family}/{node}") for family in FAMILIES} if node else {}
    for p in parameters:
        bounds = "" if p.low is None or p.high is None else f"{_text(p.low)} to {_text(p.high)}"
        set_for: dict[str, list[str]] = {}
        for family, values in files.items():
            if values.get(p.name, p.default) != p.default:
                set_for.setdefault(_text(values[p.name]), []).append(family)
        robots = "; ".join(
            value if len(names) == len(FAMILIES) else f"{', '.join(names)}: {value}" for value, names in set_for.items()
        )
        name = f"`{p.name}`{'' if p.read_only else ' *'}"
        what = re.sub(r"([|<])", r"\\\1", p.description)
        yield f"| {name} | {_type(p.default)} | {_text(p.default)} | {bounds} | {robots} | {what} |"


def _type(value: Any) -> str:
    names = {bool: "bool", int: "integer", float: "double", str: "string"}
    return f"{names[type(value[0])]} array" if isinstance(value, list) else names[type(value)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if value % 1 else f"{value:.1f}"
    return f"`{json.dumps(value)}`" if value != "" else '`""`'
