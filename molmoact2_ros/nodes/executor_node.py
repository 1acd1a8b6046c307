"""Executor node: action chunks in, one safe set-point a tick out. DISARMED until `executor/arm` is called.

The command loop is a thread of its own on absolute deadlines: it ticks the executor and publishes preallocated
messages. The rest (converting messages, logging, `executor/state`) happens in the spinning thread.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from molmoact2_ros.embodiments import embodiment
from molmoact2_ros.execution.e_stop import EStop
from molmoact2_ros.execution.executor import Executor
from molmoact2_ros.execution.loop import DeadlineLoop
from molmoact2_ros.execution.supervisor import Change, Event, State
from molmoact2_ros.nodes.ros.command_outputs import StampedCommand, command_output
from molmoact2_ros.nodes.ros.executor_parameters import PARAMETERS, config_of
from molmoact2_ros.nodes.ros.gripper_actions import GripperActions
from molmoact2_ros.nodes.ros.handover_topics import HandoverTopics
from molmoact2_ros.nodes.ros.joint_topics import JointTopics
from molmoact2_ros.nodes.ros.messages import checked_chunk, nanoseconds
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.qos import LATCHED, NEWEST, SENSOR
from molmoact2_ros.nodes.ros.subscriptions import Heard

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
        self._failure = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        robot = embodiment(self.param("robot"))
        rate = float(self.param("command_rate_hz"))
        core = Executor(robot, config_of(robot, self.param))
        self._executor_core = core
        if self.param("gripper_output") != "in_array":
            self._grippers = GripperActions(self, robot, self.param("gripper_output"))
        self._output = command_output(self, robot, 1.0 / rate)
        self._sent = StampedCommand(self, robot)
        self._buttons = EStop(self.param("e_stop_heartbeat_s"))
        self._drivers: dict[str, str] = {}
        self._state_publisher = self.output(DiagnosticStatus, "executor/state", LATCHED)
        self._changed = self.create_guard_condition(self._publish_changes)
        JointTopics(self, robot, core.on_joint_state, core.joint_publishers)
        self.listen(JointState, "driver/acknowledgement", self._on_acknowledgement, SENSOR)
        self.hear(DiagnosticStatus, "driver/state", self._on_driver)
        self.listen(JointTrajectory, "policy/action_chunk", self._on_chunk, NEWEST, raw=True)
        self.hear(String, "task", self._on_task)
        self._e_stop = self.hear(Bool, "e_stop", self._on_e_stop)
        self.serve(SetBool, "executor/arm", self._on_arm)
        self.serve(Trigger, "executor/go_to_start", self._on_go_to_start)
        self.serve(Trigger, "executor/reset_e_stop", self._on_reset)
        HandoverTopics(self, core.handover, self._publish_changes)
        self.every(0.2, self._publish_present, inactive=True)
        self.every(0.05, self._update_grippers, inactive=True)
        self.every(0.05, self._watch_heartbeat, inactive=True)
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
            self._sent.send(motion, core.arming, core.handover.drives, now_ns)
            if self._output is not None:
                self._output.send(motion, now_ns)
        if core.pending:
            self._changed.trigger()

    def _update_grippers(self) -> None:
        """Goals of gripper actions: decided in the spinning thread, which also hears the answers."""
        core, grippers = self._executor_core, self._grippers
        if core is None or grippers is None or core.state in (State.UNCONFIGURED, State.DISARMED, State.ESTOPPED):
            return
        grippers.update(core.gripper_targets.tolist(), self.now_ns())

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _on_chunk(self, data: bytes) -> None:
        core = self._executor_core
        assert core is not None
        accepted = core.counters.chunks_accepted
        refusal = core.on_chunk(checked_chunk(data, core.robot), self.now_ns())
        if refusal is not None and refusal.kind != self._logged_refusal:
            self.get_logger().error(f"action chunk refused: {refusal.reason}")
            self._logged_refusal = refusal.kind
        elif core.counters.chunks_accepted > accepted:
            self._logged_refusal = ""

    def _on_acknowledgement(self, message: JointState) -> None:
        assert self._executor_core is not None
        self._executor_core.on_acknowledgement(nanoseconds(message.header.stamp))

    def _on_task(self, _: Heard) -> None:
        assert self._executor_core is not None
        self._executor_core.on_task(self.now_ns())

    def _on_e_stop(self, heard: Heard) -> None:
        self._buttons.heard(heard.publisher, bool(heard.message.data), self.now_ns())
        self._act_on_buttons()

    def _watch_heartbeat(self) -> None:
        if self._executor_core is not None and self._executor_core.state is not State.DISARMED:
            self._act_on_buttons()

    def _act_on_buttons(self) -> None:
        """What the buttons say, or their silence, goes to the executor."""
        assert self._executor_core is not None
        now, silence = self.now_ns(), self._buttons.silence(self.now_ns())
        if self._buttons.pressed or not silence:
            self._executor_core.on_e_stop(self._buttons.pressed, now)
        else:
            self._executor_core.on_e_stop(True, now, silence)

    def _on_driver(self, heard: Heard) -> None:
        """One driver's word; another's does not make up for it."""
        assert self._executor_core is not None
        status = heard.message
        self._drivers[heard.publisher] = status.message if status.level == DiagnosticStatus.ERROR else ""
        faults = [fault for fault in self._drivers.values() if fault]
        self._executor_core.on_hardware("; ".join(faults), self.now_ns())

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
            response.success, response.message = self._armed(core.arm)
        return response

    def _on_go_to_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        core = self._executor_core
        assert core is not None
        if not self.active or self._failure:
            problem = self._failure or "the executor node is not active"
            response.success, response.message = False, f"cannot go to the start pose: {problem}"
        else:
            response.success, response.message = self._armed(core.go_to_start)
        return response

    def _armed(self, arm: Callable[[int], tuple[bool, str]]) -> tuple[bool, str]:
        silence = self._buttons.silence(self.now_ns())
        if silence:
            return False, f"cannot arm: {silence}"
        done, message = arm(self.now_ns())
        if done and not self._buttons.ever_heard:
            message += "; no e_stop publisher has been heard"
        self._publish_changes()
        return done, message

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        assert self._executor_core is not None
        self._buttons.forget_absent(self._e_stop.present())
        self._act_on_buttons()
        response.success, response.message = self._executor_core.reset_e_stop(self.now_ns())
        return response

    # -- state ------------------------------------------------------------------------------------------------------

    def _values(self, core: Executor) -> dict[str, object]:
        values: dict[str, object] = {"reason": self._failure or core.reason, **core.values(self.now_ns())}
        if self._loop is not None:
            values.update(missed_deadlines=self._loop.missed, scheduling=self._loop.scheduling)
            values.update({key: f"{value:.3f}" for key, value in self._punctuality.items()})
        if self._grippers is not None:
            values.update(gripper_goals=self._grippers.goals, gripper_problem=self._grippers.problem)
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
