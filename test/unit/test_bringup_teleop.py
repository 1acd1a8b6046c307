"""Which nodes a person at a leader needs beside the robot's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from molmoact2_ros.bringup.options import Options
from molmoact2_ros.bringup.specs import NodeSpec, nodes


def test_what_a_person_takes_over_with_is_started_beside_the_robot(tmp_path: Path):
    real = Options(sim=False, policy="none", teleop="so101_leader:blue@/dev/leader")
    specs = {spec.name: spec for spec in nodes(real)}
    assert specs["teleop"].parameters["ports"] == ["/dev/leader"]
    assert specs["teleop"].parameters["calibration_id"] == "blue"
    assert specs["executor"].parameters["arm_needs_chunk"] is False, "a demonstration needs no policy"
    assert "arm_needs_chunk" not in nodes_of(replace(real, policy="expert", sim=True))["executor"].parameters
    emulated = nodes_of(Options(emulated=True, policy="expert", teleop="so101_leader", link_prefix="cell_b"))
    folder = emulated["leader"].parameters["folder"]
    assert emulated["teleop"].parameters["ports"] == [f"{folder}/leader"] and "cell_b" in str(folder)
    assert "leader" not in nodes_of(replace(real, teleop="gamepad"))
    for teleop, robot, words in (
        ("so101_leader", "so101", "nothing says where the leader is"),
        ("joystick", "so101", "expected one of so101_leader"),
        ("so101_leader:/dev/a", "yam", "of its own kind"),
    ):
        with pytest.raises(ValueError, match=words):
            nodes(replace(real, teleop=teleop, robot=robot))
    own = tmp_path / "own.yaml"
    own.write_text("/**/teleop: {ros__parameters: {ports: [/dev/mine]}}")
    assert "ports" not in nodes_of(replace(real, teleop="so101_leader", config=str(own)))["teleop"].parameters


def nodes_of(options: Options) -> dict[str, NodeSpec]:
    return {spec.name: spec for spec in nodes(options)}
