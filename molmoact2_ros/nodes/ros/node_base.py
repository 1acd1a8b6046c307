"""What every node of this package shares: lifecycle with autostart, described parameters, diagnostics, orderly ends.

A node subclasses `MolmoNode`, lists its `PARAMETERS`, and implements `setup` (called on configure; may raise with a
message for the user), `start` (on activate), `stop` (on deactivate) and `teardown` (serves cleanup, shutdown and
error, and must be safe to call twice). `run_node` is its main.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from molmoact2_ros.nodes.ros.parameters import Parameter, declare, refuse_unknown, why_not_set
from molmoact2_ros.nodes.ros.qos import RELIABLE
from molmoact2_ros.nodes.ros.running import run_node
from molmoact2_ros.nodes.ros.services import Services
from molmoact2_ros.nodes.ros.subscriptions import EveryPublisher, Heard

NO_CLOCK_S = 3.0
"""How long a node with use_sim_time waits for /clock before it says so; discovery alone takes up to 2.2 s."""


class MolmoNode(LifecycleNode):
    """A lifecycle node with described parameters and diagnostics at 1 Hz.

    Invariant: between `setup` and `teardown` the node owns its resources; outside it owns none.
    """

    PARAMETERS: tuple[Parameter, ...] = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        declare(self, self.PARAMETERS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        # On a steady clock: with use_sim_time and nobody on /clock the node's own stands, and so do its timers.
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(1.0, self._publish_diagnostics, clock=self.steady)
        self._born_ns = self.steady.now().nanoseconds
        self._clock_problem = ""
        self._work_timers: list[Timer] = []
        self._owned: list[Callable[[], object]] = []
        self._offers = Services(self)
        self.active = False
        self.finished: int | None = None
        """A node whose work has an end sets its exit status here; the process then ends in order."""

    # -- for subclasses -------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Open what the node needs. Raise with a message that tells the user what to do."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """Stop working, keep resources."""

    def teardown(self) -> None:
        """Release every resource of the node's own; safe to call twice. What `output`, `listen`, `serve` and
        `every` made goes by itself."""

    def lingers(self) -> bool:
        """At an orderly end, before teardown: begin what takes time, and say whether it still does. Messages are heard
        meanwhile. Asked until it is done."""
        return False

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        """Level, one line and key-values for `/diagnostics`."""
        return DiagnosticStatus.OK, "active" if self.active else "inactive", {}

    def output(self, msgtype: type, topic: str, qos: QoSProfile) -> Publisher:
        """A publisher that lasts until teardown. For `setup`."""
        publisher = self.create_publisher(msgtype, topic, qos)
        self._owned.append(partial(self.destroy_publisher, publisher))
        return publisher

    def listen(
        self, msgtype: type, topic: str, handle: Callable[..., None], qos: QoSProfile, *, raw: bool = False
    ) -> Subscription:
        """Subscribe until teardown. For `setup`."""
        subscription = self.create_subscription(msgtype, topic, self._surviving(topic, handle), qos, raw=raw)
        self._owned.append(partial(self.destroy_subscription, subscription))
        return subscription

    def hear(
        self, msgtype: type, topic: str, handle: Callable[[Heard], None], qos: QoSProfile | None = None
    ) -> EveryPublisher:
        """Subscribe until teardown to every kind of publisher, each told from the others; with `qos` in this way alone.
        For `setup`."""
        kinds = None if qos is None else (qos,)
        subscription = EveryPublisher(self, msgtype, topic, self._surviving(topic, handle), kinds)
        self._owned.append(subscription.destroy)
        return subscription

    def client(self, srvtype: type, name: str) -> Client:
        """A client of a service that lasts until teardown. For `setup`."""
        client = self.create_client(srvtype, name)
        self._owned.append(partial(self.destroy_client, client))
        return client

    def serve(self, srvtype: type, name: str, handle: Callable[[Any, Any], Any]) -> None:
        """Offer a service until teardown; a coroutine may take its time, and all else goes on. For `setup`."""
        self._owned.append(self._offers.offer(srvtype, name, handle))

    def every(
        self, period_s: float, action: Callable[[], None], *, inactive: bool = False, steady: bool = False
    ) -> None:
        """Call `action` every `period_s` seconds until the node is deactivated, for `start`; with `inactive` until
        teardown, for `setup`; with `steady` whatever ROS time does."""
        guarded = self._surviving(getattr(action, "__name__", "timer"), lambda _: action())
        timer = self.create_timer(period_s, lambda: guarded(None), clock=self.steady if steady else None)
        if inactive:
            self._owned.append(partial(self.destroy_timer, timer))
        else:
            self._work_timers.append(timer)

    def _surviving(self, what: str, handle: Callable[..., object]) -> Callable[..., None]:
        """`handle`, whose exceptions are told and do not end the node: no message may take an arm out of its hands."""
        told = ""

        @wraps(handle)  # rclpy tells by the signature whether the message's information is wanted, too
        def guarded(*given: Any) -> None:
            nonlocal told
            try:
                handle(*given)
            except Exception as error:
                if repr(error) != told:  # on the edge only
                    told = repr(error)
                    self.get_logger().error(f"{what} left out: {error!r}")
            else:
                told = ""

        return guarded

    def param(self, name: str) -> Any:
        """Value of a declared parameter."""
        return self.get_parameter(name).value

    def set_parameters_atomically(self, parameter_list: list[RosParameter]) -> SetParametersResult:
        """As rclpy's, but a parameter that cannot be set while the node runs says where it is set."""
        result = super().set_parameters_atomically(parameter_list)
        if not result.successful:
            result.reason = why_not_set(self, [parameter.name for parameter in parameter_list]) or result.reason
        return result

    def require_motion_allowed(self) -> None:
        """For nodes that measure and arm by themselves: nobody may start one beside an arm by mistake.

        Raises:
            ValueError: `allow_motion` is not true.
        """
        if not self.param("allow_motion"):
            name = self.get_name()
            raise ValueError(f"{name} arms by itself and moves the arm; start it with -p allow_motion:=true if it may")

    def now_ns(self) -> int:
        """ROS time, ns. The one clock that rooms are handed."""
        return int(self.get_clock().now().nanoseconds)

    def destroy_node(self) -> None:
        """Leave the graph at once. rclpy's own keeps the lifecycle services, and with them the node, until the garbage
        collector comes by: who asks for a transition meanwhile waits for ever."""
        super().destroy_node()
        for service in [value for name, value in vars(self).items() if name.startswith("_service_")]:
            service.destroy()
        self._state_machine.destroy_when_not_in_use()

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        def configure() -> None:
            refuse_unknown(self, self._parameter_overrides, self.PARAMETERS)
            self.setup()

        return self._attempt("configure", configure, TransitionCallbackReturn.FAILURE)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        # FAILURE would lead back to "inactive", where a node owns what it needs: this one has given all of it back.
        result = self._attempt("activate", self.start, TransitionCallbackReturn.ERROR)
        if result is TransitionCallbackReturn.SUCCESS:
            self.active = True
            return super().on_activate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._halt()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def autostart(self) -> bool:
        """Configure and activate; False when one of them failed."""
        ok = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == ok and self.trigger_activate() == ok

    def _attempt(
        self, what: str, action: Callable[[], None], otherwise: TransitionCallbackReturn
    ) -> TransitionCallbackReturn:
        try:
            action()
        except Exception as error:  # a node must survive to say what is wrong
            self.get_logger().error(f"cannot {what}: {error}")
            self.release()
            return otherwise
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """Leave the active state and give everything back."""
        self._halt()
        self.teardown()
        while self._owned:
            self._owned.pop()()

    def _halt(self) -> None:
        for timer in self._work_timers:
            self.destroy_timer(timer)
        self._work_timers.clear()
        if self.active:
            self.active = False
            self.stop()

    def _watch_clock(self) -> None:
        """Say once that the clock which this node was told to follow does not come."""
        waits = bool(self.param("use_sim_time")) and self.now_ns() == 0
        waited_s = (self.steady.now().nanoseconds - self._born_ns) * 1e-9
        if waits and waited_s > NO_CLOCK_S and not self._clock_problem:
            self._clock_problem = (
                f"use_sim_time is set, but nothing came on /clock for {waited_s:.0f} s: time stands still here; start "
                "the simulator that publishes it, or set use_sim_time to false"
            )
            self.get_logger().error(self._clock_problem)
        elif not waits and self._clock_problem:
            self._clock_problem = ""
            self.get_logger().info("/clock has come")

    def _publish_diagnostics(self) -> None:
        self._watch_clock()
        level, message, values = self.diagnose()
        if self._clock_problem:
            level, message = DiagnosticStatus.ERROR, self._clock_problem
        status = DiagnosticStatus(level=level, name=self.get_fully_qualified_name(), message=message)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main_of(factory: Callable[[], MolmoNode]) -> Callable[[], None]:
    """Console entry point of a node."""

    def main() -> None:
        sys.exit(run_node(factory))

    return main
