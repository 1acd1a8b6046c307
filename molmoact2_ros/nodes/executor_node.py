"""Executor node: action chunks in, one safe set-point a tick out. DISARMED until `executor/arm` is called.

The command loop is a thread of its own on absolute deadlines: it ticks the executor and publishes preallocated
messages. The rest (converting messages, logging, `executor/state`) happens in the spinning thread.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.executor import Executor, ExecutorConfig
from molmoact2_ros.execution.loop import DeadlineLoop
from molmoact2_ros.execution.supervisor import Change, Event, State
from molmoact2_ros.nodes.node_base import LATCHED, NEWEST, RELIABLE, SENSOR, MolmoNode, Parameter, main_of

OUTPUTS = ("forward_command",)
LEVELS = {
    State.UNCONFIGURED: DiagnosticStatus.WARN,
    State.STOPPING: DiagnosticStatus.WARN,
    State.FAULT: DiagnosticStatus.ERROR,
    State.ESTOPPED: DiagnosticStatus.ERROR,
}
STOP_WITHIN_S = 2.0
"""How long an orderly end waits for the arm to come to rest."""


def _stamp_ns(message: JointTrajectory | JointState) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


class ExecutorNode(MolmoNode):
    """See the module. Invariant: the loop thread runs between `start` and `stop`, and only it publishes commands."""

    PARAMETERS = (
        Parameter("command_rate_hz", 100.0, "Set-points a second.", 20.0, 500.0),
        Parameter("output", "forward_command", f"Form of the commands: {', '.join(OUTPUTS)}."),
        Parameter("command_topic", "controller/commands", "Where `forward_command` set-points go."),
        Parameter("blend_s", 0.2, "Shortest time to fade out the difference to a new chunk, s.", 0.02, 1.0),
        Parameter("slow_down_s", 0.3, "Last part of a chunk's horizon, used to slow down to rest, s.", 0.05, 1.0),
        Parameter("joint_state_timeout_s", 0.25, "Oldest encoder reading to move on, s.", 0.02, 2.0),
        Parameter("max_future_s", 0.1, "How far a stamp may lie in the future, s.", 0.0, 1.0),
        Parameter("position_margin", 0.05, "How far a target may lie outside the position limits, rad.", 0.0, 0.5),
        Parameter("max_tracking_error", 0.25, "Largest distance of an arm joint from its commands, rad.", 0.01, 1.0),
        Parameter("tracking_window_s", 0.3, "Commands so far back count against servo lag, s.", 0.02, 2.0),
        Parameter("realtime_priority", 0, "SCHED_FIFO priority of the command loop; 0 leaves it normal.", 0, 99),
        Parameter("tracking_error_s", 0.2, "How long the tracking error must last to be a fault, s.", 0.0, 2.0),
        Parameter(
            "max_tick_gap_s", 0.25, "A longer gap in the command loop or its clock halts the motion, s.", 0.02, 2.0
        ),
    )

    def __init__(self) -> None:
        super().__init__("executor")
        self._executor_core: Executor | None = None
        self._loop: DeadlineLoop | None = None
        self._logged_refusal = ""
        self._logged_reading = ""
        self._failure = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        if self.param("output") not in OUTPUTS:
            raise ValueError(f"output is {self.param('output')!r}, expected one of {', '.join(OUTPUTS)}")
        robot = embodiment(self.param("robot"))
        rate = float(self.param("command_rate_hz"))
        declared = {parameter.name for parameter in self.PARAMETERS}
        figures = {name: float(self.param(name)) for name in ExecutorConfig.__dataclass_fields__ if name in declared}
        core = Executor(robot, ExecutorConfig(rate_hz=rate, **figures))
        self._executor_core = core
        self._command = Float64MultiArray(data=array("d", [0.0] * robot.dof))
        self._sent = JointState(name=list(robot.joint_names))
        self._sent.position, self._sent.velocity = array("d", [0.0] * robot.dof), array("d", [0.0] * robot.dof)
        self._command_view = np.frombuffer(self._command.data, dtype=np.float64)
        self._position_view = np.frombuffer(self._sent.position, dtype=np.float64)
        self._velocity_view = np.frombuffer(self._sent.velocity, dtype=np.float64)
        self._command_publisher = self.create_publisher(Float64MultiArray, self.param("command_topic"), NEWEST)
        self._sent_publisher = self.create_publisher(JointState, "executor/command", SENSOR)
        self._state_publisher = self.create_publisher(DiagnosticStatus, "executor/state", LATCHED)
        self._changed = self.create_guard_condition(self._publish_changes)
        self._subscriptions_ = [
            self.create_subscription(JointState, "joint_states", self._on_joint_state, SENSOR),
            self.create_subscription(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST),
            self.create_subscription(String, "task", self._on_task, LATCHED),
            # Two ways for the e-stop: the latched one also reaches a late executor, the plain one also hears publishers
            # without transient local, such as a bare `ros2 topic pub`.
            self.create_subscription(Bool, "e_stop", self._on_e_stop, LATCHED),
            self.create_subscription(Bool, "e_stop", self._on_e_stop, RELIABLE),
            self.create_subscription(DiagnosticStatus, "driver/state", self._on_driver, LATCHED),
        ]
        self._services_ = [
            self.create_service(SetBool, "executor/arm", self._on_arm),
            self.create_service(Trigger, "executor/reset_e_stop", self._on_reset),
        ]
        self._state_timer = self.create_timer(0.2, self._publish_present)
        priority = int(self.param("realtime_priority"))
        self._loop = DeadlineLoop(rate, self._tick, self.now_ns, time.monotonic_ns, time.sleep, priority)
        # Work in the spinning thread may keep the loop waiting for at most this long.
        sys.setswitchinterval(5e-4)
        core.configured()
        self._publish_changes()

    def start(self) -> None:
        assert self._loop is not None
        self._failure = ""
        self._loop.start()

    def stop(self) -> None:
        core, loop = self._executor_core, self._loop
        if core is None or loop is None:
            return
        core.disarm(self.now_ns())
        deadline = time.monotonic() + STOP_WITHIN_S
        while not core.settled and loop.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        loop.stop()
        self._publish_changes()

    def teardown(self) -> None:
        core, self._executor_core = self._executor_core, None
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
        if core is None:
            return
        core.cleaned_up()
        self.destroy_timer(self._state_timer)
        self.destroy_guard_condition(self._changed)
        for subscription in self._subscriptions_:
            self.destroy_subscription(subscription)
        for service in self._services_:
            self.destroy_service(service)
        for publisher in (self._command_publisher, self._sent_publisher, self._state_publisher):
            self.destroy_publisher(publisher)

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        core = self._executor_core
        if core is None:
            return DiagnosticStatus.WARN, State.UNCONFIGURED.value, {}
        level = DiagnosticStatus.ERROR if self._failure else LEVELS.get(core.state, DiagnosticStatus.OK)
        return level, f"{core.state.value}: {self._failure or core.reason}", self._values(core)

    # -- the command loop (its own thread) ----------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> None:
        core = self._executor_core
        assert core is not None
        setpoint = core.tick(now_ns)
        if setpoint is not None:
            self._command_view[:] = setpoint
            self._command_publisher.publish(self._command)
            self._position_view[:] = setpoint
            self._velocity_view[:] = core.motion.velocity
            self._sent.header.stamp.sec, self._sent.header.stamp.nanosec = divmod(now_ns, 1_000_000_000)
            self._sent_publisher.publish(self._sent)
        if core.pending:
            self._changed.trigger()

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _on_joint_state(self, message: JointState) -> None:
        assert self._executor_core is not None
        problem = (
            self._executor_core.on_joint_state(message.name, message.position, _stamp_ns(message), self.now_ns()) or ""
        )
        if problem and problem != self._logged_reading:
            self.get_logger().error(f"joint state ignored: {problem}")
        self._logged_reading = problem

    def _on_chunk(self, message: JointTrajectory) -> None:
        core = self._executor_core
        assert core is not None
        accepted = core.counters.chunks_accepted
        refusal = core.on_chunk(
            ChunkMessage(
                stamp_ns=_stamp_ns(message),
                joint_names=message.joint_names,
                positions=[point.positions for point in message.points],
                times_s=[point.time_from_start.sec + point.time_from_start.nanosec * 1e-9 for point in message.points],
            ),
            self.now_ns(),
        )
        if refusal is not None and refusal.kind != self._logged_refusal:
            self.get_logger().error(f"action chunk refused: {refusal.reason}")
            self._logged_refusal = refusal.kind
        elif core.counters.chunks_accepted > accepted:
            self._logged_refusal = ""

    def _on_task(self, message: String) -> None:
        assert self._executor_core is not None
        self._executor_core.on_task(self.now_ns())

    def _on_e_stop(self, message: Bool) -> None:
        assert self._executor_core is not None
        self._executor_core.on_e_stop(message.data, self.now_ns())

    def _on_driver(self, message: DiagnosticStatus) -> None:
        assert self._executor_core is not None
        self._executor_core.on_hardware(
            message.message if message.level == DiagnosticStatus.ERROR else "", self.now_ns()
        )

    def _on_arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        core = self._executor_core
        assert core is not None
        if not request.data:
            response.success, response.message = core.disarm(self.now_ns())
        elif not self.active:
            response.success, response.message = False, "cannot arm: the executor node is not active"
        elif self._failure:
            response.success, response.message = False, f"cannot arm: {self._failure}"
        else:
            response.success, response.message = core.arm(self.now_ns())
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        assert self._executor_core is not None
        response.success, response.message = self._executor_core.reset_e_stop(self.now_ns())
        return response

    # -- state ------------------------------------------------------------------------------------------------------

    def _values(self, core: Executor) -> dict[str, object]:
        values: dict[str, object] = {"reason": self._failure or core.reason, **core.values(self.now_ns())}
        if self._loop is not None:
            values.update(missed_deadlines=self._loop.missed, scheduling=self._loop.scheduling)
            values.update({key: f"{value:.3f}" for key, value in self._loop.punctuality().items()})
        return values

    def _publish_state(self, core: Executor, state: State, reason: str) -> None:
        status = DiagnosticStatus(name="executor", message=state.value, hardware_id=core.robot.name)
        status.level = DiagnosticStatus.ERROR if self._failure else LEVELS.get(state, DiagnosticStatus.OK)
        values = {**self._values(core), "reason": reason}
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        self._state_publisher.publish(status)

    def _publish_present(self) -> None:
        core, loop = self._executor_core, self._loop
        if core is None or loop is None:
            return
        if loop.failure is not None and not self._failure:
            self._failure = f"the command loop ended: {loop.failure!r}; nothing is commanded, restart the executor"
            self.get_logger().error(self._failure)
        self._publish_state(core, State.FAULT if self._failure else core.state, self._failure or core.reason)

    def _publish_changes(self) -> None:
        core = self._executor_core
        if core is None:
            return
        for change in core.changes():
            self._publish_state(core, change.after, change.reason)
            self._log(change)

    def _log(self, change: Change) -> None:
        text = f"{change.before.value} -> {change.after.value}: {change.reason}"
        moving = {change.before, change.after} <= {State.TRACKING, State.STOPPING}
        if moving and change.event in (Event.CHUNK, Event.CHUNK_ENDING):
            self.get_logger().debug(text)  # at the rate of a slow policy; `slow_downs` counts them
        elif change.after in (State.FAULT, State.ESTOPPED):
            self.get_logger().error(text)
        else:
            self.get_logger().info(text)


main = main_of(ExecutorNode)

if __name__ == "__main__":
    main()
