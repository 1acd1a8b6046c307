"""Parameters of nodes: how one is described, and what is said of a value that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from molmoact2_ros.embodiments import Embodiment, embodiment


@dataclass(frozen=True)
class Parameter:
    """One declared parameter. `low` and `high` bound numbers; a read-only parameter is set before configure only.
    `of_robot` says what stands for `default` on a robot, so that who reads the parameter sees what is in force."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    read_only: bool = True
    of_robot: Callable[[Embodiment], list[float]] | None = None

    def descriptor(self) -> ParameterDescriptor:
        """The descriptor ROS shows with `ros2 param describe`."""
        out = ParameterDescriptor(description=self.description, read_only=self.read_only)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, float):
                out.floating_point_range = [FloatingPointRange(from_value=float(self.low), to_value=float(self.high))]
            elif isinstance(self.default, int):
                out.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        return out


ALLOW_MOTION = Parameter("allow_motion", False, "This node arms by itself and moves the arm: must be true to start.")
COMMON = (
    Parameter("autostart", True, "Configure and activate by itself; otherwise a lifecycle manager does it."),
    Parameter("robot", "so101", "Which embodiment this node serves."),
)


def declare(node: Node, parameters: Iterable[Parameter]) -> None:
    """Declare `COMMON` and `parameters`, each with the default of the node's robot."""
    for parameter in (*COMMON, *parameters):
        default = parameter.default
        if parameter.of_robot is not None:
            with suppress(ValueError):  # an unknown robot is refused when the node is configured
                default = parameter.of_robot(embodiment(node.get_parameter("robot").value))
        node.declare_parameter(parameter.name, default, parameter.descriptor())


def refuse_unknown(node: Node, given: Iterable[str], parameters: Sequence[Parameter]) -> None:
    """A value that is given to a node is used or refused: ROS leaves aside, without a word, what is misspelt.

    Raises:
        ValueError: one of `given` is declared nowhere.
    """
    for name in given:
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            near = get_close_matches(name, [parameter.name for parameter in (*COMMON, *parameters)], n=1)
            advice = f"did you mean {near[0]!r}?" if near else "ros2 param list shows those it has"
            raise ValueError(f"{node.get_name()} has no parameter {name!r}, which a parameter file sets; {advice}")


def why_not_set(node: Node, names: Iterable[str]) -> str:
    """Where those of `names` that cannot be set while the node runs are set; empty if none of them is such."""
    fixed = [name for name in names if node.has_parameter(name) and node.describe_parameter(name).read_only]
    if not fixed:
        return ""
    return (
        f"{', '.join(fixed)} is read when {node.get_name()} starts: write it into a parameter file under "
        f"/**/{node.get_name()}: ros__parameters:, give that with config:=FILE or --config FILE, start again"
    )
