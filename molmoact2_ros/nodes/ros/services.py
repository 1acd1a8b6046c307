"""Services of a node: a handler that fails is answered for, one that takes its time holds up nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node

Handle = Callable[[Any, Any], Any]


class Pause:
    """Awaited by a service that is not done yet: the executor turns to everything else and comes back."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Services:
    """Makes a node's services, whose responses have `success` and `message`.

    A coroutine keeps the callback group in which it began until it has ended: in the node's own group it would shut out
    every message, and what it waits for with them. All coroutines of a node share one group beside it. Their services
    stay until the node is destroyed, since a response to one that is gone would end the process; without a handler
    they say so.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._group = MutuallyExclusiveCallbackGroup()
        self._patient: dict[tuple[type, str], Handle | None] = {}

    def offer(self, srvtype: type, name: str, handle: Handle) -> Callable[[], object]:
        """Offer a service; returns what withdraws it."""
        if not inspect.iscoroutinefunction(handle):
            service = self._node.create_service(srvtype, name, self._answering(name, handle))
            return lambda: self._node.destroy_service(service)
        key = (srvtype, name)
        if key not in self._patient:
            self._node.create_service(srvtype, name, self._answering_later(key), callback_group=self._group)
        self._patient[key] = handle
        return lambda: self._patient.update({key: None})

    def _answering(self, name: str, handle: Handle) -> Handle:
        def answer(request: Any, response: Any) -> Any:
            try:
                return handle(request, response)
            except Exception as error:
                return self._failed(name, error, response)

        return answer

    def _answering_later(self, key: tuple[type, str]) -> Handle:
        name = key[1]

        async def answer(request: Any, response: Any) -> Any:
            handle = self._patient[key]
            if handle is None:
                response.success, response.message = False, f"{self._node.get_name()} is not configured"
                return response
            try:
                return await handle(request, response)
            except Exception as error:
                return self._failed(name, error, response)

        return answer

    def _failed(self, name: str, error: Exception, response: Any) -> Any:
        self._node.get_logger().error(f"{name} failed: {error!r}")
        response.success, response.message = False, f"{name} failed: {error}"
        return response
