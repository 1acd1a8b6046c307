"""A TCP proxy that delays and throttles what passes: a network's delay and rate, not its losses or its queues."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 16_384


class SlowNetwork:
    """Forwards connections on `port` to `to` within `with`.

    Args:
        to: port on this machine. delay_s: one way. rate: bytes a second each way of each connection.
    """

    def __init__(self, to: int, delay_s: float, rate: float) -> None:
        self._to, self._delay_s, self._rate = to, delay_s, rate
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow network", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        ways = self._one_way(reader, far_writer), self._one_way(far_reader, writer)
        with suppress(asyncio.CancelledError):  # the end of the network
            await asyncio.gather(*ways)

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A byte leaves when those before it have left and its own time on the wire is over, and arrives a delay later:
        what follows it is already on its way meanwhile."""
        loop, free = asyncio.get_running_loop(), 0.0
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def arrive() -> None:
            while True:
                due, data = await on_the_way.get()
                await asyncio.sleep(max(due - loop.time(), 0.0))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        try:
            while True:
                data = await reader.read(CHUNK)
                free = max(free, loop.time()) + len(data) / self._rate
                await on_the_way.put((free + self._delay_s, data))
                if not data:
                    break
            await arriving
        except (OSError, asyncio.CancelledError):
            arriving.cancel()
            writer.close()
