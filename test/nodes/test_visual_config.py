"""Every parameter configured for the nodes that show and record is one that they declare, in its type and bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.recorder_node import RecorderNode
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.sim.film_node import FilmNode
from molmoact2_ros.nodes.visualizer_node import VisualizerNode

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.parametrize("robot", ["franka", "so101", "yam"])
@pytest.mark.parametrize(
    ("name", "node"), [("visualizer", VisualizerNode), ("film", FilmNode), ("recorder", RecorderNode)]
)
def test_configured_parameters_are_declared(name: str, node: type[MolmoNode], robot: str) -> None:
    configured = yaml.safe_load((CONFIG / f"{robot}.yaml").read_text())[f"/**/{name}"]["ros__parameters"]
    declared = {parameter.name: parameter for parameter in node.PARAMETERS}
    assert configured
    for key, value in configured.items():
        assert key in declared
        assert type(value) is type(declared[key].default), key
        low, high = declared[key].low, declared[key].high
        assert low is None or high is None or low <= value <= high
    assert configured["cameras"] == list(embodiment(robot).camera_names)
