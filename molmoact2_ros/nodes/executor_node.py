"""Executor node: action chunks in, one safe set-point a tick out. DISARMED until `executor/arm` is called.

The command loop is a thread of its own on absolute deadlines: it ticks the executor and publishes preallocated
messages. The rest (converting messages, logging, `executor/state`) happens in the spinning thread.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.chunk import ChunkMessage
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.loop import DeadlineLoop
from molmoact2_ros.execution.supervisor import Change, Event, State
from molmoact2_ros.nodes.ros.command_outputs import command_output, view_of
from molmoact2_ros.nodes.ros.executor_parameters import PARAMETERS, config_of
from molmoact2_ros.nodes.ros.gripper_actions import GripperActions
from molmoact2_ros.nodes.ros.messages import fill_time, nanoseconds
from molmoact2_ros.nodes.ros.node_base import LATCHED, NEWEST, RELIABLE, SENSOR, MolmoNode, main_of

LEVELS = {
    State.UNCONFIGURED: DiagnosticStatus.WARN,
    State.STOPPING: DiagnosticStatus.WARN,
    State.FAULT: DiagnosticStatus.ERROR,
    State.ESTOPPED: DiagnosticStatus.ERROR,
}
STOP_WITHIN_S = 2.0
"""How long an orderly end waits for the arm to come to rest."""


class ExecutorNode(MolmoNode):
    """See the module. Invariant: the loop thread runs between `start` and `stop`, and only it publishes commands."""

    PARAMETERS = PARAMETERS

    def __init__(self) -> None:
        super().__init__("executor")
        self._executor_core: Executor | None = None
        self._loop: DeadlineLoop | None = None
        self._grippers: GripperActions | None = None
        self._e_stopped = False
        self._punctuality: dict[str, float] = {}
        self._logged_refusal = ""
        self._logged_reading = ""
        self._failure = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        robot = embodiment(self.param("robot"))
        rate = float(self.param("command_rate_hz"))
        core = Executor(robot, config_of(robot, self.param))
        self._executor_core = core
        if self.param("gripper_output") != "in_array":
            self._grippers = GripperActions(self, robot, self.param("gripper_output"))
        self._commands = command_output(self, robot, 1.0 / rate)
        self._sent = JointState(name=list(robot.joint_names))
        self._position_view = view_of(self._sent, "position", robot.dof)
        self._velocity_view = view_of(self._sent, "velocity", robot.dof)
        self._sent_publisher = self.output(JointState, "executor/command", SENSOR)
        self._state_publisher = self.output(DiagnosticStatus, "executor/state", LATCHED)
        self._changed = self.create_guard_condition(self._publish_changes)
        self.listen(JointState, "joint_states", self._on_joint_state, SENSOR)
        self.listen(JointState, "driver/acknowledgement", self._on_acknowledgement, SENSOR)
        self.listen(DiagnosticStatus, "driver/state", self._on_driver, LATCHED)
        self.listen(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST)
        self.listen(String, "task", self._on_task, LATCHED)
        # Two ways for the e-stop: the latched one also reaches a late executor, the plain one also hears publishers
        # without transient local, such as a bare `ros2 topic pub`.
        self.listen(Bool, "e_stop", self._on_e_stop, LATCHED)
        self.listen(Bool, "e_stop", self._on_e_stop, RELIABLE)
        self.serve(SetBool, "executor/arm", self._on_arm)
        self.serve(Trigger, "executor/go_to_start", self._on_go_to_start)
        self.serve(Trigger, "executor/reset_e_stop", self._on_reset)
        self.every(0.2, self._publish_present, inactive=True)
        self.every(0.05, self._update_grippers, inactive=True)
        priority, cpu = int(self.param("realtime_priority")), int(self.param("cpu"))
        self._loop = DeadlineLoop(rate, self._tick, self.now_ns, time.monotonic_ns, time.sleep, priority, cpu)
        # Work in the spinning thread may keep the loop waiting for at most this long; what is loaded by now stays, so
        # the garbage collector need not look at it in the middle of a tick.
        sys.setswitchinterval(5e-4)
        gc.collect()
        gc.freeze()
        core.configured(self._e_stopped)
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
        core, loop, grippers = self._executor_core, self._loop, self._grippers
        if loop is not None:
            loop.stop()
        if grippers is not None:
            grippers.destroy()
        if core is not None:
            self._e_stopped = core.state is State.ESTOPPED
            core.cleaned_up()
            self._publish_changes()
            self.destroy_guard_condition(self._changed)
        self._executor_core = self._loop = self._grippers = None

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        core = self._executor_core
        if core is None:
            return DiagnosticStatus.WARN, State.UNCONFIGURED.value, {}
        if self._loop is not None:  # percentiles of a minute of ticks: once a second is enough
            self._punctuality = self._loop.punctuality()
        level = DiagnosticStatus.ERROR if self._failure else LEVELS.get(core.state, DiagnosticStatus.OK)
        return level, f"{core.state.value}: {self._failure or core.reason}", self._values(core)

    # -- the command loop (its own thread) ----------------------------------------------------------------------------

    def _tick(self, now_ns: int) -> None:
        core = self._executor_core
        assert core is not None
        setpoint = core.tick(now_ns)
        if setpoint is not None:
            motion = core.motion
            self._commands.send(motion, now_ns)
            self._position_view[:] = setpoint
            self._velocity_view[:] = motion.velocity
            fill_time(self._sent.header.stamp, now_ns)
            self._sent_publisher.publish(self._sent)
        if core.pending:
            self._changed.trigger()

    def _update_grippers(self) -> None:
        """Goals of gripper actions: decided in the spinning thread, which also hears the answers."""
        core, grippers = self._executor_core, self._grippers
        if core is None or grippers is None or core.state in (State.UNCONFIGURED, State.DISARMED, State.ESTOPPED):
            return
        grippers.update(core.gripper_targets.tolist(), self.now_ns())

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _on_joint_state(self, message: JointState) -> None:
        assert self._executor_core is not None
        stamp_ns = nanoseconds(message.header.stamp)
        problem = self._executor_core.on_joint_state(message.name, message.position, stamp_ns, self.now_ns()) or ""
        if problem and problem != self._logged_reading:
            self.get_logger().error(f"joint state ignored: {problem}")
        self._logged_reading = problem

    def _on_chunk(self, message: JointTrajectory) -> None:
        core = self._executor_core
        assert core is not None
        accepted = core.counters.chunks_accepted
        refusal = core.on_chunk(
            ChunkMessage(
                stamp_ns=nanoseconds(message.header.stamp),
                joint_names=message.joint_names,
                positions=[point.positions for point in message.points],
                times_s=[nanoseconds(point.time_from_start) * 1e-9 for point in message.points],
            ),
            self.now_ns(),
        )
        if refusal is not None and refusal.kind != self._logged_refusal:
            self.get_logger().error(f"action chunk refused: {refusal.reason}")
            self._logged_refusal = refusal.kind
        elif core.counters.chunks_accepted > accepted:
            self._logged_refusal = ""

    def _on_acknowledgement(self, message: JointState) -> None:
        assert self._executor_core is not None
        self._executor_core.on_acknowledgement(nanoseconds(message.header.stamp))

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
            self._publish_changes()
        return response

    def _on_go_to_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        core = self._executor_core
        assert core is not None
        if not self.active or self._failure:
            problem = self._failure or "the executor node is not active"
            response.success, response.message = False, f"cannot go to the start pose: {problem}"
        else:
            response.success, response.message = core.go_to_start(self.now_ns())
            self._publish_changes()
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
            values.update({key: f"{value:.3f}" for key, value in self._punctuality.items()})
        if self._grippers is not None:
            values["gripper_goals"] = self._grippers.goals
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
            if self._grippers is not None and change.event is Event.ARM:
                self._grippers.begin(core.gripper_targets.tolist())
            elif self._grippers is not None and change.after is State.ESTOPPED:
                self._grippers.cancel()
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
