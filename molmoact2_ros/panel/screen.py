"""What one browser is still to be sent: every word, and of views and images the newest only. A slow one gets fewer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MOST_WORDS = 200
"""Words that wait for a browser that takes none; older ones are dropped then."""


class Connection(Protocol):
    """Where to."""

    async def send(self, message: str | bytes) -> None:
        """Send one message; returns when there is room for another."""


class Screen:
    """See the module. For the thread of the event loop."""

    def __init__(self) -> None:
        self._words: deque[str] = deque(maxlen=MOST_WORDS)
        self._view: str | None = None
        self._pictures: dict[str, bytes] = {}
        self._changed = asyncio.Event()

    def show(self, view: str) -> None:
        """Show `view` in place of the last."""
        self._view = view
        self._changed.set()

    def tell(self, words: str) -> None:
        """Send `words`, before any view."""
        self._words.append(words)
        self._changed.set()

    def picture(self, key: str, packed: bytes) -> None:
        """Show an image in place of the last of this key."""
        self._pictures[key] = packed
        self._changed.set()

    async def send_to(self, connection: Connection) -> None:
        """Send what there is until cancelled, or until the connection ends."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (message := self._next()) is not None:
                await connection.send(message)

    def _next(self) -> str | bytes | None:
        if self._words:
            return self._words.popleft()
        if self._view is not None:
            view, self._view = self._view, None
            return view
        if self._pictures:
            return self._pictures.pop(next(iter(self._pictures)))
        return None
