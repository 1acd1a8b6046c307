"""Hears a topic from every kind of publisher, once each message, and tells which publisher spoke.

Best effort, reliable, volatile and latched publishers do not all match one subscription: three are made, and what more
than one of them delivers is passed on once. Which publisher a message came from is in ROS's message information, but
rclpy leaves it out; it is taken from rcl itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.type_support import check_is_valid_msg_type
from rclpy.utilities import get_rmw_implementation_identifier
from rclpy.waitable import NumberOfEntities, Waitable

UNKNOWN = ""
"""The publisher of a message whose publisher cannot be told."""
DEPTH = 10
_FIRST_BYTES = 256


class Heard(NamedTuple):
    """A message, who sent it (hexadecimal GID) and when (ns, the sender's clock)."""

    message: Any
    publisher: str
    sent_ns: int


def every_kind(depth: int = DEPTH) -> tuple[QoSProfile, ...]:
    """Subscriptions that together hear every publisher: the latched word from before, then reliable ones without loss,
    then those that are best effort."""
    reliable, best = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
    return (
        QoSProfile(depth=depth, reliability=reliable, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        QoSProfile(depth=depth, reliability=reliable),
        QoSProfile(depth=depth, reliability=best),
    )


class EveryPublisher(Waitable):
    """A subscription to `topic` for every kind of publisher; `handle` is called from the spinning thread.

    Messages of one publisher come in the order in which they were sent, each once; one that is overtaken is dropped.

    Args:
        kinds: the subscriptions that are made, where not all kinds of publishers need be heard without loss.
    """

    def __init__(
        self,
        node: Node,
        msgtype: Any,
        topic: str,
        handle: Callable[[Heard], None],
        kinds: tuple[QoSProfile, ...] | None = None,
    ) -> None:
        super().__init__(node.default_callback_group)
        self._node, self._type, self._handle = node, msgtype, handle
        self._topic = node.resolve_topic_name(topic)
        self._last: dict[str, tuple[int, int]] = {}
        self._handles = []
        self._told_broken = False
        self._ready: list[int] = []
        self._indices: list[int] = []
        check_is_valid_msg_type(msgtype)  # loads its type support
        for qos in every_kind() if kinds is None else kinds:
            with node.handle:
                self._handles.append(
                    rclpy_implementation.Subscription(node.handle, msgtype, topic, qos.get_c_qos_profile())
                )
        node.add_waitable(self)

    def present(self) -> set[str]:
        """The publishers of the topic that are there now."""
        found = self._node.get_publishers_info_by_topic(self._topic)
        return {bytes(info.endpoint_gid).hex() for info in found}

    def destroy(self) -> None:
        """Unsubscribe; safe to call twice."""
        handles, self._handles = self._handles, []
        if handles:
            self._node.remove_waitable(self)
            for handle in handles:
                handle.destroy_when_not_in_use()

    # -- Waitable -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> None:
        for handle in self._handles:
            handle.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.__exit__(kind, error, trace)

    def get_num_entities(self) -> NumberOfEntities:
        """See `Waitable`."""
        return NumberOfEntities(num_subs=len(self._handles))

    def add_to_wait_set(self, wait_set: Any) -> None:
        """See `Waitable`."""
        self._indices = [wait_set.add_subscription(handle) for handle in self._handles]

    def is_ready(self, wait_set: Any) -> bool:
        """See `Waitable`."""
        self._ready = [i for i, index in enumerate(self._indices) if wait_set.is_ready("subscription", index)]
        return bool(self._ready)

    def take_data(self) -> list[tuple[int, int, str, bytes]]:
        """See `Waitable`: all that wait, in the order in which they were sent."""
        taken = [found for i in self._ready if i < len(self._handles) for found in _take_all(self._handles[i])]
        return sorted(taken)

    async def execute(self, taken_data: list[tuple[int, int, str, bytes]]) -> None:
        """See `Waitable`."""
        for sent_ns, number, publisher, data in taken_data:
            if (sent_ns, number) <= self._last.get(publisher, (0, 0)):
                continue
            self._last[publisher] = sent_ns, number
            try:
                message = deserialize_message(data, self._type)
            except Exception as error:  # bytes that are no message: whoever sent them, the node goes on
                self._broken(error)
                continue
            self._handle(Heard(message, publisher, sent_ns))

    def _broken(self, error: Exception) -> None:
        if not self._told_broken:
            self._told_broken = True
            self._node.get_logger().error(f"{self._topic}: messages left out that cannot be read: {error!r}")


# -- rcl --------------------------------------------------------------------------------------------------------------


class _Gid(ctypes.Structure):
    _fields_ = [("implementation", ctypes.c_char_p), ("data", ctypes.c_uint8 * 16)]


class _Info(ctypes.Structure):
    """rmw_message_info_t of ROS 2 Jazzy."""

    _fields_ = [
        ("source_timestamp", ctypes.c_int64),
        ("received_timestamp", ctypes.c_int64),
        ("publication_sequence_number", ctypes.c_uint64),
        ("reception_sequence_number", ctypes.c_uint64),
        ("publisher_gid", _Gid),
        ("from_intra_process", ctypes.c_bool),
    ]


class _Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("allocate", "deallocate", "reallocate", "zero_allocate", "state")]


class _Bytes(ctypes.Structure):
    """rcutils_uint8_array_t, which is rcl_serialized_message_t."""

    _fields_ = [
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("allocator", _Allocator),
    ]


@cache
def _libraries() -> tuple[Any, Any]:
    rcl, rcutils = ctypes.CDLL("librcl.so"), ctypes.CDLL("librcutils.so")
    rcutils.rcutils_get_default_allocator.restype = _Allocator
    rcutils.rcutils_uint8_array_init.argtypes = [
        ctypes.POINTER(_Bytes),
        ctypes.c_size_t,
        ctypes.POINTER(_Allocator),
    ]
    rcl.rcl_take_serialized_message.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(_Bytes),
        ctypes.POINTER(_Info),
        ctypes.c_void_p,
    ]
    return rcl, rcutils


def _take_all(subscription: Any) -> list[tuple[int, int, str, bytes]]:
    """Sent (ns), number, publisher and bytes of every message that waits."""
    rcl, rcutils = _libraries()
    allocator = rcutils.rcutils_get_default_allocator()
    data, info = _Bytes(), _Info()
    found: list[tuple[int, int, str, bytes]] = []
    if rcutils.rcutils_uint8_array_init(ctypes.byref(data), _FIRST_BYTES, ctypes.byref(allocator)) != 0:
        raise MemoryError("no memory for a message")
    try:
        with subscription:
            while len(found) < DEPTH:
                taken = rcl.rcl_take_serialized_message(
                    subscription.pointer, ctypes.byref(data), ctypes.byref(info), None
                )
                if taken != 0:  # nothing waits any more
                    break
                bytes_ = ctypes.string_at(data.buffer, data.length)
                found.append((int(info.source_timestamp), _number(info), _publisher(info), bytes_))
    finally:
        rcutils.rcutils_uint8_array_fini(ctypes.byref(data))
    return found


def _number(info: _Info) -> int:
    unsupported = 2**64 - 1
    return 0 if info.publication_sequence_number == unsupported else int(info.publication_sequence_number)


def _publisher(info: _Info) -> str:
    """The sender's GID. An implementation name that is not the middleware's means that the structure is another one
    than this module knows."""
    named = info.publisher_gid.implementation
    if named is None or named.decode(errors="replace") != get_rmw_implementation_identifier():
        return UNKNOWN
    return bytes(info.publisher_gid.data).hex()
