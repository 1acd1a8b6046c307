"""The table of faults: what is done to the executor node's surroundings, and the state and reason that must follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from fault_cell import ROBOT, SPEED, Change, FaultCell, Message, as_it_is, nothing
from rclpy.serialization import serialize_message
from ros_process import wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.nodes.ros.qos import NEWEST, SENSOR

TWO_PUBLISHERS = "two publishers send joint states of shoulder_pan"
HORIZON_S = ROBOT.horizon / ROBOT.rate_hz
AT_ONCE = 0.25
"""Bound on the movement after a fault that stops at once, rad: half a second at `SPEED` on a loaded machine, a stop."""
BLIND = SPEED * 0.6 + AT_ONCE
"""... after the encoders' silence, which is borne for 0.6 s."""
USED_UP = SPEED * HORIZON_S + AT_ONCE
"""... after the policy's, whose last chunk is used up."""


@dataclass(frozen=True)
class Fault:
    """`inject` does it; `state` and `reason` must follow. `bound`: of the movement, rad; None when motion goes on.

    `start` is how it begins: TRACKING, LEADING (a leader drives), HOLDING or DISARMED. `refusal` must be in the last
    refusal of a chunk, `counter` must have grown. `then` is checked afterwards; what it returns is reported as the
    reason. `quick`: part of the default run.
    """

    name: str
    inject: Callable[[FaultCell], None]
    state: str
    reason: str
    bound: float | None = AT_ONCE
    start: str = "TRACKING"
    refusal: str = ""
    counter: str = ""
    then: Callable[[FaultCell], str | None] | None = None
    quick: bool = False


# -- what goes wrong with messages ---------------------------------------------------------------------------


def edited(change: Callable[..., object]) -> Change:
    """Every message changed in place."""

    def changed(message: JointTrajectory | JointState) -> list[Message]:
        change(message)
        return [message]

    return changed


def shifted(seconds: float) -> Change:
    """Stamped `seconds` later."""

    def change(message: JointTrajectory | JointState) -> None:
        stamp = message.header.stamp
        ns = stamp.sec * 1_000_000_000 + stamp.nanosec + round(seconds * 1e9)
        stamp.sec, stamp.nanosec = divmod(ns, 1_000_000_000)

    return edited(change)


def delayed(count: int, mixed: bool = False) -> Change:
    """Held back by `count` messages; `mixed`: those held come in the wrong order, two at a time."""
    held: deque[JointTrajectory | JointState] = deque()

    def late(message: JointTrajectory | JointState) -> list[Message]:
        held.append(deepcopy(message))
        if mixed:
            return [] if len(held) < 2 else [held.pop(), held.pop()]
        return [held.popleft()] if len(held) > count else []

    return late


def every_other() -> Change:
    """Half of the messages are lost."""
    odd = [False]

    def lossy(message: JointTrajectory | JointState) -> list[Message]:
        odd[0] = not odd[0]
        return [message] if odd[0] else []

    return lossy


def put(index: int, value: float) -> Callable[[JointTrajectory], None]:
    def change(message: JointTrajectory) -> None:
        for point in message.points[index : index + 1] if index >= 0 else message.points:
            point.positions[1] = value

    return change


def rename(message: JointTrajectory) -> None:
    message.joint_names = [f"fr3_joint{i + 1}" for i in range(6)]


def cut_rows(message: JointTrajectory) -> None:
    for point in message.points[10:]:
        point.positions = point.positions[:3]


def cut_bytes(message: JointTrajectory | JointState) -> list[Message]:
    whole = serialize_message(message)
    return [whole[: len(whole) // 2]]


def noise(message: JointTrajectory | JointState) -> list[Message]:
    return [np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8).tobytes()]


def policy(change: Change) -> Callable[[FaultCell], None]:
    return lambda cell: setattr(cell, "policy", change)


def driver(change: Change) -> Callable[[FaultCell], None]:
    return lambda cell: setattr(cell, "driver", change)


def freeze(cell: FaultCell) -> None:
    frozen = cell.position.copy()
    cell.driver = edited(lambda message: setattr(message, "position", frozen.tolist()))


def far(message: JointTrajectory) -> None:
    for point in message.points:
        point.positions[0] += 1.0


def second_policy(cell: FaultCell) -> None:
    """Another publisher of chunks, which want the opposite."""
    publisher = cell.node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)

    def opposite() -> None:
        cell.direction = -cell.direction
        publisher.publish(cell.chunk())
        cell.direction = -cell.direction

    timer = cell.node.create_timer(0.13, opposite)
    cell.await_more(150)
    cell.node.destroy_timer(timer)
    cell.node.destroy_publisher(publisher)


def second_driver(zeros: bool) -> Callable[[FaultCell], None]:
    """Another publisher of joint states: zeros, or what was true once, with the stamp that it had."""

    def begin(cell: FaultCell) -> None:
        publisher = cell.node.create_publisher(JointState, "joint_states", SENSOR)
        position = np.zeros(ROBOT.dof) if zeros else cell.position
        said = JointState(name=list(ROBOT.joint_names), position=position.tolist())
        said.header.stamp = cell.node.get_clock().now().to_msg()

        def say() -> None:
            if zeros:
                said.header.stamp = cell.node.get_clock().now().to_msg()
            publisher.publish(said)

        cell.intruders.append((cell.node.create_timer(0.03, say), publisher))

    return begin


def in_parts(message: JointTrajectory | JointState) -> list[Message]:
    """Arm and jaw in messages of their own, the jaw's a little older."""
    arm, jaw = deepcopy(message), deepcopy(message)
    arm.name, arm.position = message.name[:5], message.position[:5]
    jaw.name, jaw.position = message.name[5:], message.position[5:]
    return [*shifted(-0.005)(jaw), arm]


def unstamp(message: JointState) -> None:
    message.header.stamp.sec = message.header.stamp.nanosec = 0


# -- what people do ------------------------------------------------------------------------------------------


def press_while(state: str, prepare: Callable[[FaultCell], None]) -> Callable[[FaultCell], None]:
    def inject(cell: FaultCell) -> None:
        prepare(cell)
        wait_until(lambda: cell.state == state, lambda: f"{state}; it says {cell.told()}", 20.0)
        cell.press()

    return inject


def flicker(message: JointState) -> None:
    """The last bit of an encoder is never still."""
    message.position[4] += (message.header.stamp.nanosec // 10_000_000 % 2) * 1e-3


def block(cell: FaultCell) -> None:
    """And the policy does not see it: it goes on from where the arm was told to be."""
    cell.blocked, cell.driver, cell.policy_is_blind = True, edited(flicker), True


def move_by_hand(cell: FaultCell) -> None:
    cell.blocked = True
    cell.position = cell.position + np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])


def hot_motor(cell: FaultCell) -> None:
    cell.driver_state.publish(DiagnosticStatus(level=DiagnosticStatus.ERROR, message="motor 3 is at 80 C"))


def stays_stopped(cell: FaultCell) -> None:
    """Released but not reset, told to arm and flooded with good chunks: nothing is commanded."""
    cell.await_rest()
    refused = cell.arm()
    assert not refused.success and "ESTOPPED" in refused.message
    assert not cell.reset().success, "reset although the e-stop is still pressed"
    cell.press(False)
    cell.policy = as_it_is
    sent, chunks = len(cell.commands), int(cell.value("chunks_previewed"))
    wait_until(lambda: int(cell.value("chunks_previewed")) > chunks + 3, "chunks that come all the same", 15.0)
    assert cell.state == "ESTOPPED" and len(cell.commands) == sent


def refuses_to_arm(reason: str) -> Callable[[FaultCell], str]:
    def check(cell: FaultCell) -> str:
        sent = len(cell.commands)
        refused = cell.arm()
        assert not refused.success and reason in refused.message, refused.message
        assert len(cell.commands) == sent
        return refused.message

    return check


def arms_without_them(reason: str) -> Callable[[FaultCell], str]:
    """Refused while something else publishes, and allowed afterwards."""

    def check(cell: FaultCell) -> str:
        said = refuses_to_arm(reason)(cell)
        cell.drive_intruders_out()
        wait_until(lambda: cell.arm().success, lambda: f"arming; it says {cell.told()}", 15.0)
        return said

    return check


def goes_on_again(cell: FaultCell) -> None:
    cell.policy, cell.driver = as_it_is, as_it_is
    cell.await_state("TRACKING", "following")


def outside_limits(cell: FaultCell) -> None:
    cell.driver = edited(lambda message: message.position.__setitem__(2, ROBOT.limits.upper[2] + 0.2))

    def refused() -> bool:
        cell.arm(False)
        return "outside its limits" in cell.arm().message

    wait_until(refused, lambda: f"arming to be refused; it says {cell.told()}")


def silence_driver(cell: FaultCell) -> None:
    cell.driver = nothing
    wait_until(lambda: float(cell.value("joint_state_age_ms")) > 700.0, "old readings")


# -- the table -----------------------------------------------------------------------------------------------


def bad_chunks(name: str, change: Change, refusal: str, quick: bool = False) -> Fault:
    """Chunks that are refused: the last good one is used up, then the arm holds."""
    return Fault(name, policy(change), "HOLDING", "policy", USED_UP, refusal=refusal, quick=quick)


def bad_readings(name: str, change: Change, counter: str = "joint_states_refused", quick: bool = False) -> Fault:
    """Readings that count as none."""
    return Fault(name, driver(change), "HOLDING", "joint_states", BLIND, counter=counter, quick=quick)


def borne(name: str, inject: Callable[[FaultCell], None], counter: str, quick: bool = False) -> Fault:
    """What the motion goes on through."""
    return Fault(name, inject, "TRACKING", "following", None, counter=counter, quick=quick)


def e_stop(name: str, start: str, inject: Callable[[FaultCell], None], bound: float = AT_ONCE) -> Fault:
    """Only the reset ends it."""
    return Fault(
        name, inject, "ESTOPPED", "e-stop pressed", bound, start, then=stays_stopped, quick=start == "TRACKING"
    )


def arming(name: str, inject: Callable[[FaultCell], None], reason: str) -> Fault:
    """Refused, with the reason in the answer."""
    return Fault(name, inject, "DISARMED", "", 0.0, "DISARMED", then=refuses_to_arm(reason))


def change_task(cell: FaultCell) -> None:
    cell.policy = nothing
    cell.task.publish(String(data="open the drawer"))


def acknowledge_nothing(cell: FaultCell) -> None:
    cell.acknowledging = False


FAULTS = (
    Fault("policy stops publishing", policy(nothing), "HOLDING", "policy silent for", USED_UP, then=goes_on_again),
    bad_chunks("chunks with NaN", edited(put(4, np.nan)), "nan", quick=True),
    bad_chunks("chunks with a target of 1e6 rad", edited(put(9, 1e6)), "1e+06"),
    bad_chunks("chunks that jump by 1 rad between rows", edited(put(5, 1.0)), "jumps by"),
    bad_chunks("chunks that start 1 rad from the arm", edited(far), "from the measured", quick=True),
    bad_chunks("chunks for another robot", edited(rename), "names joints"),
    bad_chunks("chunks whose rows are cut off", edited(cut_rows), "has 3 positions"),
    Fault("chunk messages cut off in the middle", policy(cut_bytes), "HOLDING", "policy", USED_UP, then=goes_on_again),
    Fault("random bytes on the chunk topic", policy(noise), "HOLDING", "policy", USED_UP, then=goes_on_again),
    bad_chunks("chunks stamped 5 s in the future", shifted(5.0), "in the future"),
    Fault("chunks delayed beyond their horizon", policy(shifted(-1.5)), "HOLDING", "policy", USED_UP),
    borne("chunks delayed by 0.5 s", policy(delayed(5)), "chunks_accepted", quick=True),
    borne("every chunk comes twice", policy(lambda message: [message, message]), "chunks_ignored"),
    borne("chunks come in the wrong order", policy(delayed(2, mixed=True)), "chunks_ignored", quick=True),
    borne("every other chunk is lost", policy(every_other()), "chunks_accepted"),
    borne("two policies that want opposite things", second_policy, "chunks_accepted"),
    Fault("driver stops publishing", driver(nothing), "HOLDING", "joint_states silent", BLIND, then=goes_on_again),
    bad_readings("joint states with NaN", edited(lambda message: message.position.__setitem__(0, np.nan)), quick=True),
    bad_readings("joint states without the elbow", edited(lambda message: message.name.__setitem__(2, "knee")), ""),
    bad_readings("joint states with stamp 0", edited(unstamp), "joint_states_unstamped"),
    bad_readings("joint states cut off", edited(lambda message: setattr(message, "position", message.position[:3]))),
    bad_readings("joint state messages cut off in the middle", cut_bytes, ""),
    bad_readings("joint states stamped 5 s in the future", shifted(5.0)),
    bad_readings("joint states delayed by 1 s", shifted(-1.0), ""),
    borne("every joint state comes twice", driver(lambda message: [message, message]), "joint_states_repeated"),
    borne("arm and jaw in joint states of their own", driver(in_parts), "chunks_accepted", quick=True),
    Fault("a second driver repeats an old joint state", second_driver(False), "HOLDING", TWO_PUBLISHERS, BLIND),
    Fault("a joint_state_publisher's zeros come as well", second_driver(True), "HOLDING", TWO_PUBLISHERS, quick=True),
    Fault(
        "joint states jump by 0.5 rad",
        driver(edited(lambda message: message.position.__setitem__(1, message.position[1] + 0.5))),
        "FAULT",
        "shoulder_lift jumped from",
        counter="joint_state_jumps",
        quick=True,
    ),
    Fault("feedback frozen to the last bit", freeze, "FAULT", "feedback frozen", USED_UP, quick=True),
    Fault("arm blocked", block, "FAULT", "tracking error", USED_UP),
    Fault("arm moved by hand while holding", move_by_hand, "FAULT", "tracking error|jumped from", start="HOLDING"),
    Fault("driver reports a hot motor", hot_motor, "FAULT", "driver: motor 3", quick=True),
    Fault(
        "driver acknowledges nothing", acknowledge_nothing, "FAULT", "acknowledged no command", SPEED * 2.0 + AT_ONCE
    ),
    Fault("task changes in motion", change_task, "HOLDING", "new task", then=goes_on_again),
    Fault("disarmed in motion", lambda cell: cell.arm(False), "DISARMED", "disarmed on request"),
    e_stop("e-stop while TRACKING", "TRACKING", FaultCell.press),
    e_stop("e-stop while HOLDING", "HOLDING", FaultCell.press),
    e_stop("e-stop while STOPPING", "TRACKING", press_while("STOPPING", policy(nothing)), USED_UP),
    e_stop("e-stop while in FAULT", "TRACKING", press_while("FAULT", hot_motor)),
    e_stop("e-stop pressed again while ESTOPPED", "HOLDING", press_while("ESTOPPED", FaultCell.press)),
    Fault(
        "e-stop while DISARMED",
        FaultCell.press,
        "ESTOPPED",
        "e-stop pressed",
        0.0,
        "DISARMED",
        then=refuses_to_arm("ESTOPPED"),
    ),
    arming("armed while the driver is silent", silence_driver, "joint_states silent"),
    arming("armed with a joint outside its limits", outside_limits, "outside its limits"),
    Fault(
        "armed while a joint_state_publisher says zeros as well",
        second_driver(True),
        "DISARMED",
        "",
        0.0,
        "DISARMED",
        counter="joint_states_refused",
        then=arms_without_them(TWO_PUBLISHERS),
        quick=True,
    ),
)
