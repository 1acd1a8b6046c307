"""The part of the table of faults that is about a leader: it drives, and something goes wrong."""

from __future__ import annotations

import numpy as np
from fault_cell import ROBOT, FaultCell, as_it_is, nothing
from fault_table import AT_ONCE, BLIND, Change, Fault, delayed, edited, every_other, shifted, stays_stopped
from sensor_msgs.msg import JointState

from molmoact2_ros.nodes.ros.qos import SENSOR


def leader(change: Change):
    return lambda cell: setattr(cell, "leader", change)


def put(index: int, value: float) -> Change:
    return edited(lambda message: message.position.__setitem__(index, value))


def second_leader(cell: FaultCell) -> None:
    """Says something else, as often."""
    publisher = cell.node.create_publisher(JointState, "teleop/command", SENSOR)

    def speak() -> None:
        message = JointState(name=list(ROBOT.joint_names), position=(ROBOT.rest_position + 0.3).tolist())
        message.header.stamp = cell.node.get_clock().now().to_msg()
        publisher.publish(message)

    cell.intruders.append((cell.node.create_timer(0.02, speak), publisher))


def takes_over_anew(cell: FaultCell) -> str:
    """The policy does not go on by itself, and the leader does once it is sound and somebody asks."""
    said = cell.value("reason")
    assert cell.value("handover") == "teleop: holding"
    at, cell.policy = cell.sent()[-1], as_it_is
    cell.await_more(60)
    assert np.array_equal(cell.sent()[-1], at), "something moved the arm"
    cell.drive_intruders_out()
    cell.lead()
    return said


def lost(
    name: str, inject, reason: str, bound: float = AT_ONCE, counter: str = "leader_refused", quick: bool = False
) -> Fault:
    """The arm holds, in the person's hands."""
    return Fault(name, inject, "HOLDING", reason, bound, "LEADING", counter=counter, then=takes_over_anew, quick=quick)


def borne(name: str, inject, counter: str, quick: bool = False) -> Fault:
    """What the motion goes on through."""
    return Fault(name, inject, "TRACKING", "following the leader", None, "LEADING", counter=counter, quick=quick)


LEADER_FAULTS = (
    lost("leader stops publishing", leader(nothing), "newest reading is", BLIND, counter="", quick=True),
    lost("leader readings with NaN", leader(put(1, np.nan)), "NaN", quick=True),
    lost("leader readings of 1e6 rad", leader(put(1, 1e6)), "far outside the arm's limits"),
    lost("leader jumps by 1.5 rad", leader(put(0, 1.5)), "jumped from", quick=True),
    lost("leader readings delayed by 1 s", leader(shifted(-1.0)), "newest reading is", BLIND, counter=""),
    lost("leader readings stamped 5 s in the future", leader(shifted(5.0)), "in the future"),
    lost("leader readings cut off", leader(edited(lambda m: setattr(m, "position", m.position[:3]))), "leader"),
    lost("two leaders at once", second_leader, "leaders speak at once", quick=True),
    borne("every leader reading comes twice", leader(lambda message: [message, message]), "leader_repeated"),
    borne("leader readings come in the wrong order", leader(delayed(2, mixed=True)), "leader_out_of_order"),
    borne("every other leader reading is lost", leader(every_other()), ""),
    borne(
        "chunks come while a leader drives",
        lambda cell: setattr(cell, "policy", as_it_is),
        "chunks_previewed",
        quick=True,
    ),
    Fault(
        "e-stop while a leader drives",
        FaultCell.press,
        "ESTOPPED",
        "e-stop pressed",
        AT_ONCE,
        "LEADING",
        then=stays_stopped,
        quick=True,
    ),
)
