"""Serves the panel's page, its live connection and the 3D view behind it, in a thread of its own.

One port and one gate: viser listens to this machine only, and its page and its websocket are passed on from `/scene/`,
to a frame that can touch nothing else.
A stop is acted upon in this thread, whatever the rest of the process does meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import websockets.asyncio.client
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from molmoact2_ros.panel.gate import SCENE, Gate
from molmoact2_ros.panel.pages import FILES, framed, policy_of
from molmoact2_ros.panel.screen import Screen

MOST_PAGES = 16
MOST_ASKED = 16_384
"""Letters of one request of a page."""
MOST_SCENE = 50 * 2**20
"""Bytes of one message of the 3D view, as viser has it: a cloud or a mesh."""
WRONG_TOKEN_S = 0.5
"""How long a wrong token waits for its answer."""
START_S = 10.0


@dataclass(frozen=True)
class Hooks:
    """What the pages ask for. Called in the server's thread, and must not take long.

    Attributes:
        stop: STOP was pressed, on the page with this number.
        ask: a request of this page, as JSON had it.
        alive: the page is there. came, went: it has connected, or its connection has ended.
    """

    stop: Callable[[int], None]
    ask: Callable[[int, Any], None]
    alive: Callable[[int], None]
    came: Callable[[int], None]
    went: Callable[[int], None]


class PanelServer:
    """Listens from its making on, and serves from `start` to `close`.

    Args:
        host, port: where; port 0 is any free one. scene_port: of viser on this machine.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int, gate: Gate, scene_port: int, hooks: Hooks) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be served ({error.strerror}); choose another (port)") from None
        self.port: int = self._socket.getsockname()[1]
        self._gate, self._scene_port, self._hooks = gate, scene_port, hooks
        self._screens: dict[int, Screen] = {}
        self._count = 0
        self._scene_page: bytes | None = None
        self._loop = asyncio.new_event_loop()
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._run, name="panel", daemon=True)
        self._ready: Future[None] = Future()

    # -- other threads ----------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        self._ready.result(START_S)
        return self

    def close(self) -> None:
        """End every connection. Safe to call twice."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_S)
        self._socket.close()

    def pages(self) -> int:
        """How many browsers look at it."""
        return len(self._screens)

    def show(self, view: Mapping[str, Any]) -> None:
        """Let every page show `view`; one that is still being sent an older one skips to it."""
        text = json.dumps(view)
        self._soon(lambda screen: screen.show(text))

    def tell(self, message: Mapping[str, Any], page: int | None = None) -> None:
        """Send `message` to a page, or to all; none is left out."""
        text = json.dumps(message)
        self._soon(lambda screen: screen.tell(text), page)

    def picture(self, key: str, header: Mapping[str, Any], jpeg: bytes) -> None:
        """Let every page show an image; `key` says which older one it takes the place of."""
        head = json.dumps(header).encode()
        packed = len(head).to_bytes(2, "big") + head + jpeg
        self._soon(lambda screen: screen.picture(key, packed))

    def _soon(self, action: Callable[[Screen], None], page: int | None = None) -> None:
        def act() -> None:
            for number, screen in self._screens.items():
                if page is None or number == page:
                    action(screen)

        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._loop.call_soon_threadsafe(act)

    # -- the server's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._server = self._loop.run_until_complete(self._open())
            self._ready.set_result(None)
            self._loop.run_forever()
            self._server.close(close_connections=True)
            with contextlib.suppress(TimeoutError):
                self._loop.run_until_complete(asyncio.wait_for(self._server.wait_closed(), 2.0))
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=2.0) if tasks else asyncio.sleep(0))
            self._loop.close()

    async def _open(self) -> Server:
        return await serve(
            self._connected,
            sock=self._socket,
            process_request=self._answer,
            # viser's page says by it which version it is.
            select_subprotocol=lambda _, offered: next((Subprotocol(p) for p in offered if p[:7] == "viser-v"), None),
            compression=None,
            max_size=MOST_SCENE,
            ping_interval=5.0,
            ping_timeout=10.0,
            server_header=None,
        )

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Everything but a websocket that may be opened."""
        path = request.path.partition("?")[0]
        if path.startswith(SCENE) and self._gate.ticket_in(path):
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return None
            return _page(await asyncio.to_thread(self._scene), "text/html; charset=utf-8", policy_of(SCENE))
        refusal = self._gate.refusal(request.headers)
        if refusal:
            return connection.respond(HTTPStatus.FORBIDDEN, refusal + "\n")
        if path == "/login":
            cookie = self._gate.shown(request.headers)
            if cookie is None:
                await asyncio.sleep(WRONG_TOKEN_S)
                return connection.respond(HTTPStatus.UNAUTHORIZED, "this is not the token\n")
            response = connection.respond(HTTPStatus.OK, "welcome\n")
            response.headers["Set-Cookie"] = cookie
            return response
        if path == "/login.js":
            return _file("login.js")
        if not self._gate.knows(request.headers):
            if request.headers.get("Upgrade") or path != "/":
                return connection.respond(HTTPStatus.UNAUTHORIZED, "show the token first, on the panel's page\n")
            return _file("login.html", HTTPStatus.UNAUTHORIZED)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None if path == "/live" else connection.respond(HTTPStatus.NOT_FOUND, "no such page\n")
        name = "index.html" if path == "/" else path.removeprefix("/")
        return _file(name) if name in FILES else connection.respond(HTTPStatus.NOT_FOUND, "no such page\n")

    def _scene(self) -> bytes:
        """viser's page, which asks for nothing further."""
        if self._scene_page is None:
            viser = http.client.HTTPConnection("127.0.0.1", self._scene_port, timeout=START_S)
            with contextlib.closing(viser):
                viser.request("GET", "/", headers={"Accept-Encoding": "identity"})
                self._scene_page = framed(viser.getresponse().read())
        return self._scene_page

    async def _connected(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path.startswith(SCENE):
            await self._relay(connection)
        elif len(self._screens) >= MOST_PAGES:
            await connection.close(1013, f"{MOST_PAGES} browsers look at this panel already; close one")
        else:
            await self._page(connection)

    async def _page(self, connection: ServerConnection) -> None:
        self._count += 1
        number = self._count
        screen = self._screens[number] = Screen()
        screen.tell(json.dumps({"type": "welcome", "scene": f"{SCENE}{self._gate.ticket}/"}))
        self._hooks.came(number)
        sending = asyncio.create_task(screen.send_to(connection))
        try:
            async for text in connection:
                self._heard(number, text)
        except ConnectionClosed:
            pass
        finally:
            del self._screens[number]
            self._hooks.went(number)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await sending

    def _heard(self, page: int, text: str | bytes) -> None:
        self._hooks.alive(page)
        try:
            asked = json.loads(text) if len(text) <= MOST_ASKED else None
        except (ValueError, RecursionError):
            asked = None
        ask = asked.get("ask") if isinstance(asked, dict) else None
        if ask == "stop":
            self._hooks.stop(page)
        elif ask != "alive":
            self._hooks.ask(page, asked)

    async def _relay(self, connection: ServerConnection) -> None:
        """Pass on what viser and its page say to each other, until one of them ends."""
        address = f"ws://127.0.0.1:{self._scene_port}/"
        spoken = [Subprotocol(connection.subprotocol)] if connection.subprotocol else None
        try:
            async with websockets.asyncio.client.connect(
                address, subprotocols=spoken, max_size=MOST_SCENE, compression=None, proxy=None
            ) as viser:
                ways = [asyncio.create_task(_pass_on(*way)) for way in ((connection, viser), (viser, connection))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:  # viser has ended; the page tries again
            pass


async def _pass_on(source: Any, sink: Any) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in source:
            await sink.send(message)


def _file(name: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    body = (Path(__file__).parent / "page" / name).read_bytes()
    return _page(body, FILES[name], policy_of(name), status)


def _page(body: bytes, kind: str, policy: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
    )
    return Response(status.value, status.phrase, headers, body)
