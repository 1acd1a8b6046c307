"""What a person asks of the other nodes, by service: each request is answered once, and none waits for another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from molmoact2_ros.nodes.ros.node_base import MolmoNode

Asked = Mapping[str, Any]
"""A request: `ask` is a key of `CALLS`; further keys are its own."""

ANSWER_S, BAG_S, RESET_S = 10.0, 45.0, 3.0
"""How long an answer may take: of a node, of the recorder that writes a bag to its end, and of an arm that still
decelerates when its e-stop is reset."""
RETRY_S = 0.1
AGAIN = "stopped again"


def _task(asked: Asked) -> SetParameters.Request:
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=str(asked["text"]))
    return SetParameters.Request(parameters=[ParameterMessage(name="task", value=value)])


CALLS: Mapping[str, tuple[type, str, Callable[[Asked], Any]]] = {
    "arm": (SetBool, "executor/arm", lambda _: SetBool.Request(data=True)),
    "disarm": (SetBool, "executor/arm", lambda _: SetBool.Request(data=False)),
    "start": (Trigger, "executor/go_to_start", lambda _: Trigger.Request()),
    "reset": (Trigger, "executor/reset_e_stop", lambda _: Trigger.Request()),
    "take": (Trigger, "executor/take_over", lambda _: Trigger.Request()),
    "give": (Trigger, "executor/give_back", lambda _: Trigger.Request()),
    "task": (SetParameters, "policy/set_parameters", _task),
    "record": (Trigger, "recorder/start", lambda _: Trigger.Request()),
    "end": (Trigger, "recorder/stop", lambda _: Trigger.Request()),
    "label": (SetBool, "recorder/label", lambda asked: SetBool.Request(data=bool(asked["success"]))),
    "episodes": (Trigger, "recorder/list", lambda _: Trigger.Request()),
}
"""For each request the service that answers it, and what it is sent."""


@dataclass
class Waiting:
    """A request whose answer has not come. `again`: when it is asked once more, s of the monotonic clock."""

    asked: Asked
    deadline: float
    future: Future | None = None
    again: float | None = None
    last: str = ""


class OperatorRequests:
    """The requests of a node. For its `setup`; everything is called from the spinning thread.

    Args:
        answer: called once for every request, with whether it was done, and words.
        pressed: whether the node's own button is pressed; a reset is given up then.
        stopped: whether the executor is known to be stopped by an e-stop; a refused reset is tried again then.
        name: the full name of a robot's service.
    """

    def __init__(
        self,
        node: MolmoNode,
        answer: Callable[[Asked, bool, str], None],
        pressed: Callable[[], bool],
        stopped: Callable[[], bool],
        name: Callable[[str], str],
    ) -> None:
        self._node, self._answer, self._pressed, self._stopped = node, answer, pressed, stopped
        self._name = name
        services = {service: node.client(kind, name(service)) for kind, service, _ in CALLS.values()}
        self._clients: dict[str, Client] = {ask: services[service] for ask, (_, service, _) in CALLS.items()}
        self._waiting: list[Waiting] = []

    def ready(self) -> list[str]:
        """Requests whose service is there."""
        return [ask for ask, client in self._clients.items() if client.service_is_ready()]

    def begin(self, asked: Asked) -> None:
        """Make a request.

        Raises:
            KeyError: it lacks a key.
        """
        ask = asked["ask"]
        if not self._clients[ask].service_is_ready():
            self._answer(asked, False, f"{self._name(CALLS[ask][1])} is not there (yet)")
            return
        limit = {"reset": RESET_S, "end": BAG_S}.get(ask, ANSWER_S)
        waiting = Waiting(asked, time.monotonic() + limit)
        self._call(waiting)
        self._waiting.append(waiting)

    def look_after(self) -> None:
        """Ask again where that was promised, and give up what nobody answers. To be called often."""
        now = time.monotonic()
        for waiting in tuple(self._waiting):
            ask = waiting.asked["ask"]
            pressed = ask == "reset" and self._pressed()
            if now > waiting.deadline or pressed:
                if waiting.future is not None:
                    self._clients[ask].remove_pending_request(waiting.future)
                silent = waiting.last or f"no answer from {CALLS[ask][1]}; look at its log"
                self._close(waiting, False, AGAIN if pressed else silent)
            elif waiting.again is not None and now >= waiting.again:
                self._call(waiting)

    def _call(self, waiting: Waiting) -> None:
        ask = waiting.asked["ask"]
        waiting.again = None
        waiting.future = self._clients[ask].call_async(CALLS[ask][2](waiting.asked))
        waiting.future.add_done_callback(partial(self._done, waiting))

    def _done(self, waiting: Waiting, future: Future) -> None:
        if waiting not in self._waiting or future.cancelled():
            return
        answer, ask = future.result(), waiting.asked["ask"]
        if isinstance(answer, SetParameters.Response):
            ok = bool(answer.results) and all(result.successful for result in answer.results)
            words = "; ".join(result.reason for result in answer.results if result.reason)
            message = words or (f"task: {waiting.asked['text']}" if ok else "refused")
        else:
            ok, message = bool(answer.success), str(answer.message)
        if ask == "reset" and self._pressed():
            self._close(waiting, ok, AGAIN)
        elif ask == "reset" and not ok and self._stopped():
            waiting.last, waiting.again = message, time.monotonic() + RETRY_S
        else:
            self._close(waiting, ok, message)

    def _close(self, waiting: Waiting, ok: bool, message: str) -> None:
        self._waiting.remove(waiting)
        self._answer(waiting.asked, ok, message)
