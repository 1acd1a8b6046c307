"""Every node gives back what it made when it is cleaned up, and can be configured anew.

Pins: no second publisher, subscription or timer after a second configuration; a node that is inactive sends no chunks
and no images. A destroyed node once kept its lifecycle services until the garbage collector came by, and a transition
that was asked of the next node of that name went there.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from ros_process import Companion, NodeProcess, ros_arguments, wait_until

from molmoact2_ros.bringup.specs import ROOMS
from molmoact2_ros.nodes.ros.node_base import MolmoNode
from molmoact2_ros.nodes.ros.subscriptions import every_kind

START_S = 120.0
SUBSCRIPTIONS = dict.fromkeys(("task", "e_stop"), len(every_kind()))
"""Of topics that every kind of publisher is heard on; others have one."""
CASES = {
    "expert": ({"robot": "so101"}, ["policy/action_chunk"], ["joint_states", "task"]),
    "executor": (
        {"robot": "so101"},
        ["executor/state", "executor/command"],
        ["joint_states", "policy/action_chunk"],
    ),
    "sim": ({"robot": "so101"}, ["joint_states", "sim/episode"], ["executor/command", "e_stop"]),
    "policy": (
        {"robot": "so101", "checkpoint": "so101_cell", "norm_tag": "so100_so101_molmoact2"},
        ["policy/action_chunk"],
        ["joint_states", "task"],
    ),
    "camera": ({"robot": "so101", "names": ["front"], "sources": ["sim"]}, ["cameras/front/image_raw"], []),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_node_can_be_cleaned_up_and_configured_anew(name: str, tmp_path: Path) -> None:
    parameters, published, heard = CASES[name]
    arguments = ros_arguments({**parameters, "autostart": False})
    with (
        NodeProcess(
            f"molmoact2_ros.{ROOMS.get(f'{name}_node', 'nodes')}.{name}_node", arguments, tmp_path / "log"
        ) as process,
        Companion() as other,
    ):

        def counts() -> tuple[list[int], list[int]]:
            return (
                [other.node.count_publishers(topic) for topic in published],
                [other.node.count_subscribers(topic) for topic in heard],
            )

        def change(transition: int) -> None:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert other.call(ChangeState, f"{name}/change_state", request, START_S).success, process.output

        for _ in range(2):
            change(Transition.TRANSITION_CONFIGURE)
            once = ([1] * len(published), [SUBSCRIPTIONS.get(topic, 1) for topic in heard])
            wait_until(lambda once=once: counts() == once, lambda: f"one of each; there are {counts()}", START_S)
            change(Transition.TRANSITION_ACTIVATE)
            change(Transition.TRANSITION_DEACTIVATE)
            change(Transition.TRANSITION_CLEANUP)
            none = ([0] * len(published), [0] * len(heard))
            wait_until(lambda none=none: counts() == none, lambda: f"none left; there are {counts()}", START_S)
        state = other.call(GetState, f"{name}/get_state", GetState.Request())
        assert state.current_state.id == State.PRIMARY_STATE_UNCONFIGURED
        assert process.interrupt() == 0, process.output


def test_a_destroyed_node_is_gone_without_the_garbage_collector() -> None:
    def transitions_of(name: str) -> list[str]:
        services = other.node.get_service_names_and_types()
        return [service for service, _ in services if f"/{name}/change_state" in service]

    with Companion() as other:
        gc.disable()
        try:
            node = MolmoNode("leaving")
            wait_until(lambda: transitions_of("leaving"), "the services of the node")
            node.destroy_node()
            wait_until(lambda: not transitions_of("leaving"), "their end")
        finally:
            gc.enable()
