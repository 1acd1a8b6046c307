"""An executor node under test, and everything around it in the hands of the test: arm, driver, policy, people.

The arm does at once what it is told; the policy swings every arm joint at `SPEED` about the rest pose, and the leader
sways about it. What the driver, the policy and the leader publish goes through a function that a fault replaces: it
returns the messages, or the bytes, to publish.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from ros_process import Companion, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.nodes.bench.replay_node import swing
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR

ROBOT = embodiment("so101")
ARM = ROBOT.arms[0]
SPEED = 0.4
PATIENCE = {
    # Wide enough for a loaded machine, on which the test's process may wait half a second for a core.
    "joint_state_timeout_s": 0.6,
    "max_tick_gap_s": 1.0,
    "acknowledgement_timeout_s": 2.0,
    "leader_timeout_s": 0.6,
    "realtime_priority": 10,
}
CHUNK_PERIOD_S = 0.1
LEAD_PERIOD_S = 0.02
SWAY_RAD, SWAY_S = 0.2, 4.0

Message = JointTrajectory | JointState | bytes
Change = Callable[[JointTrajectory | JointState], Sequence[Message]]


def as_it_is(message: JointTrajectory | JointState) -> Sequence[Message]:
    return (message,)


def nothing(message: JointTrajectory | JointState) -> Sequence[Message]:
    return ()


class FaultCell:
    """`commands` are (stamp s, position (dof,)) as the executor says it sent them; `states` what it says of itself."""

    def __init__(self, companion: Companion) -> None:
        self.companion, self.node = companion, companion.node
        self.lock = threading.Lock()
        self.position = ROBOT.rest_position.copy()
        self.direction = 1.0
        self.policy: Change = nothing
        self.driver: Change = as_it_is
        self.leader: Change = nothing
        self.blocked = self.acknowledging = self.policy_is_blind = False
        self.readings = 0
        self.commands: list[tuple[float, np.ndarray]] = []
        self.states: list[DiagnosticStatus] = []
        self.intruders: list[tuple[Any, Any]] = []
        """Timer and publisher of whatever else publishes."""
        node = self.node
        self.joint_states = node.create_publisher(JointState, "joint_states", SENSOR)
        self.acknowledgement = node.create_publisher(JointState, "driver/acknowledgement", SENSOR)
        self.driver_state = node.create_publisher(DiagnosticStatus, "driver/state", LATCHED)
        self.chunks = node.create_publisher(JointTrajectory, "policy/action_chunk", NEWEST)
        self.leads = node.create_publisher(JointState, "teleop/command", SENSOR)
        self.task = node.create_publisher(String, "task", LATCHED)
        self.e_stop = node.create_publisher(Bool, "e_stop", LATCHED)
        node.create_subscription(JointState, "executor/command", self._on_command, SENSOR)
        node.create_subscription(DiagnosticStatus, "executor/state", self.states.append, LATCHED)
        node.create_timer(0.01, self._read_encoders)
        node.create_timer(CHUNK_PERIOD_S, self._infer)
        node.create_timer(LEAD_PERIOD_S, self._lead)

    # -- the arm, its driver, the policy ----------------------------------------------------------------------

    def _on_command(self, message: JointState) -> None:
        position = np.array(message.position)
        with self.lock:
            self.commands.append((message.header.stamp.sec + message.header.stamp.nanosec * 1e-9, position))
            if not self.blocked:
                self.position = position
        if self.acknowledging:
            self.acknowledgement.publish(message)

    def _read_encoders(self) -> None:
        self.readings += 1
        message = JointState(name=list(ROBOT.joint_names), position=array("d", self.position))
        message.header.stamp = self.node.get_clock().now().to_msg()
        for out in self.driver(message):
            self.joint_states.publish(out)

    def chunk(self) -> JointTrajectory:
        """What a sound policy says now."""
        with self.lock:
            position = self.commands[-1][1] if self.policy_is_blind and self.commands else self.position
        away = float((position - ROBOT.rest_position)[ARM].mean())
        if abs(away) > 0.35:
            self.direction = -float(np.sign(away))
        message = swing(ROBOT, position, self.direction, SPEED)
        message.header.stamp = self.node.get_clock().now().to_msg()
        return message

    def _infer(self) -> None:
        for out in self.policy(self.chunk()):
            self.chunks.publish(out)

    def _lead(self) -> None:
        now = self.node.get_clock().now()
        away = SWAY_RAD * np.sin(2.0 * np.pi * now.nanoseconds * 1e-9 / SWAY_S)
        position = ROBOT.rest_position.copy()
        position[ARM] += away
        message = JointState(name=list(ROBOT.joint_names), position=position.tolist())
        message.header.stamp = now.to_msg()
        for out in self.leader(message):
            self.leads.publish(out)

    # -- what the executor says -------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self.states[-1].message if self.states else "nothing"

    def value(self, key: str) -> str:
        return next((pair.value for pair in self.states[-1].values if pair.key == key), "")

    def told(self) -> str:
        if not self.states:
            return "nothing"
        return f"{self.state}: {self.value('reason')} (last refusal: {self.value('last_refusal')})"

    def await_state(self, state: str, reason: str = "", deadline_s: float = 15.0) -> str:
        """Wait for it and return the reason as published. Several reasons may be given, with | between them."""

        def there() -> bool:
            return self.state == state and any(part in self.value("reason") for part in reason.split("|"))

        wait_until(there, lambda: f"{state} ({reason}); it says {self.told()}", deadline_s)
        return self.value("reason")

    # -- people -----------------------------------------------------------------------------------------------

    def arm(self, on: bool = True) -> SetBool.Response:
        return self.companion.call(SetBool, "executor/arm", SetBool.Request(data=on))

    def reset(self) -> Trigger.Response:
        return self.companion.call(Trigger, "executor/reset_e_stop", Trigger.Request())

    def press(self, on: bool = True) -> None:
        self.e_stop.publish(Bool(data=on))

    def begin(self) -> None:
        """DISARMED, with the arm at its rest pose and everything sound but no policy."""
        self.policy, self.driver, self.leader = nothing, as_it_is, nothing
        self.drive_intruders_out()
        self.blocked = self.policy_is_blind = False
        self.acknowledging = True
        if self.state == "ESTOPPED":
            self.press(False)
            wait_until(lambda: self.reset().success, lambda: f"the reset; it says {self.told()}")
        self.driver_state.publish(DiagnosticStatus(message="ready"))
        self.arm(False)
        self.await_state("DISARMED")
        with self.lock:
            self.position = ROBOT.rest_position.copy()
            self.commands.clear()
        self.direction = 1.0
        # No arm gets there in one reading; who arms before the executor has heard of it arms an arm that then jumps.
        readings = self.readings
        wait_until(lambda: self.readings > readings + 10, "readings at the rest pose")
        told = len(self.states)
        wait_until(lambda: len(self.states) > told + 1, "the executor to have heard them")
        wait_until(lambda: 0.0 <= float(self.value("joint_state_age_ms") or 1e9) < 300.0, "readings that are fresh")

    def drive_intruders_out(self) -> None:
        """End whatever else publishes."""
        while self.intruders:
            timer, publisher = self.intruders.pop()
            self.node.destroy_timer(timer)
            self.node.destroy_publisher(publisher)

    def track(self) -> None:
        """Arm, let the policy run, and wait until the arm has moved by 0.1 rad."""
        self.hold()
        self.policy = as_it_is
        start = self.position.copy()

        def moved() -> bool:
            return bool(np.abs(self.position - start)[ARM].max() > 0.1)

        wait_until(moved, lambda: f"motion; it says {self.told()}", 20.0)

    def hold(self) -> None:
        """Arm without a policy."""
        wait_until(lambda: self.arm().success, lambda: f"arming; it says {self.told()}", 20.0)
        self.await_state("HOLDING", "waiting for an action chunk")
        wait_until(lambda: len(self.commands) > 5, lambda: f"commands; it says {self.told()}")

    def take_over(self) -> Trigger.Response:
        return self.companion.call(Trigger, "executor/take_over", Trigger.Request())

    def lead(self) -> None:
        """Let the leader, which is sound, take over from an arm that holds, and wait until it has moved by 0.05 rad."""
        self.leader = as_it_is
        told = len(self.states)
        wait_until(lambda: len(self.states) > told + 3, "the executor to have heard the leader")
        start = self.position.copy()

        def moved() -> bool:
            if self.value("handover") in ("policy", "teleop: holding"):  # a test that was away is a lost leader
                self.take_over()
            return bool(np.abs(self.position - start)[ARM].max() > 0.05)

        wait_until(moved, lambda: f"motion; it says {self.told()}", 20.0)
        self.await_state("TRACKING", "following the leader")

    # -- what the commands show -------------------------------------------------------------------------------

    def sent(self, since: int = 0) -> np.ndarray:
        """Commands (n, dof) from number `since` on."""
        with self.lock:
            return np.array([position for _, position in self.commands[since:]]).reshape(-1, ROBOT.dof)

    def await_rest(self, count: int = 15) -> np.ndarray:
        """Wait until the last `count` commands are one and the same, or after a fault or an e-stop until none comes any
        more; returns the last one."""
        first = len(self.commands)
        if self.state in ("FAULT", "ESTOPPED"):
            wait_until(self._let_go, lambda: f"the arm to be let go; it says {self.told()}", 15.0)
            return self.sent(len(self.commands) - 1)[-1]

        def rests() -> bool:
            last = self.sent(max(first, len(self.commands) - count))
            return len(last) == count and not np.ptp(last, axis=0).any()

        wait_until(rests, lambda: f"the commands to come to rest; it says {self.told()}", 15.0)
        return self.sent(len(self.commands) - 1)[-1]

    def _let_go(self) -> bool:
        """Nothing is commanded while the state is published twice."""
        states, sent = len(self.states), len(self.commands)
        wait_until(lambda: len(self.states) >= states + 2, "two more states", 15.0)
        return len(self.commands) == sent

    def await_more(self, count: int) -> np.ndarray:
        """The next `count` commands."""
        first = len(self.commands)
        wait_until(lambda: len(self.commands) >= first + count, lambda: f"commands; it says {self.told()}", 15.0)
        return self.sent(first)

    def within_limits(self) -> bool:
        """No command outside the position limits, none further from the last than its stamps allow."""
        with self.lock:
            heard = list(self.commands)
        if len(heard) < 2:
            return True
        times, positions = np.array([t for t, _ in heard]), np.array([p for _, p in heard])
        inside = (positions >= ROBOT.limits.lower - 1e-9) & (positions <= ROBOT.limits.upper + 1e-9)
        travel = np.abs(np.diff(positions, axis=0))
        spans = np.maximum(np.diff(times), 0.0)[:, None] + 0.01  # a tick may be skipped, and the next is stamped anew
        return bool(inside.all() and (travel <= ROBOT.limits.velocity * spans + 1e-6).all())
