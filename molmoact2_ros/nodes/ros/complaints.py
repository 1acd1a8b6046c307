"""What a node cannot use, told on the edge and kept for its diagnostics as long as it lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node


class Complaints:
    """Complaints by what they are about; one that goes on is logged once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._present: dict[str, str] = {}

    @property
    def words(self) -> str:
        """All that is wrong now; empty for nothing."""
        return "; ".join(self._present.values())

    def say(self, about: str, words: str) -> None:
        """`about` is wrong as `words` say, or right again where they are empty."""
        if not words:
            self._present.pop(about, None)
            return
        if about not in self._present:
            self._node.get_logger().warning(words)
        self._present[about] = words

    def guarded(self, about: str, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """`handle`, with a message that it refuses (ValueError) complained of."""

        def guarded(message: Any) -> None:
            try:
                handle(message)
                self._present.pop(about, None)
            except ValueError as error:
                self.say(about, f"{about} not shown: {error}")

        return guarded
