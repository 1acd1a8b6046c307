"""The two protocols in one application: Ai2's `POST /act` and openpi's websocket, with `/healthz` and `/metrics`.

Whatever a client sends is bounded before it is read, decoded outside the event loop, and answered with one line when it
cannot be used: status 4xx over HTTP; over the websocket a text and the end of the connection, as openpi's server does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from starlette.requests import ClientDisconnect

from molmoact2_ros.policy import Prediction
from molmoact2_ros.policy.remote.description import describe
from molmoact2_ros.policy.remote.wire import WireError, dumps, loads, pack, unpack
from molmoact2_ros.serving.access import Access
from molmoact2_ros.serving.metrics import CONTENT_TYPE, Metrics
from molmoact2_ros.serving.observations import Call, RequestError, read_call, wanted
from molmoact2_ros.serving.sessions import Sessions, answer_of
from molmoact2_ros.serving.turns import BusyError

MOST_MESSAGE = 16_000_000
"""Bytes; three raw pictures of 1280 x 720 have 11 million in base64."""
BROKEN = 1011
"""Close code of an internal error, which openpi's server uses for every one."""
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "via")


class _RefusedError(Exception):
    """A request ends here, with this status and line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Serving:
    """The application over `sessions`.

    Args:
        token: see `Access`. most_message: bytes of one message.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        token: str = "",
        most_message: int = MOST_MESSAGE,
        now_ns: Callable[[], int] = time.time_ns,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._sessions, self._most, self._now_ns, self._log = sessions, most_message, now_ns, log
        self._access = Access(token)
        self._description = describe(sessions.checkpoint, sessions.robot)
        self.metrics = Metrics(lambda: len(sessions))
        app = self.app = FastAPI(title="MolmoAct2", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/act", self._act, methods=["POST"])
        app.add_api_route("/act", self._health, methods=["GET"])
        app.add_api_route("/healthz", self._healthz, methods=["GET"])
        app.add_api_route("/metrics", self._metrics, methods=["GET"])
        app.add_api_websocket_route("/", self._websocket)

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    async def _healthz(self) -> Response:
        return _json(200, {"status": "ok"})

    async def _health(self, request: Request) -> Response:
        if not self._access.allows(request.headers):
            return _json(401, {"error": REFUSED})
        cameras = dict.fromkeys(self._sessions.checkpoint.cameras)
        said = {"status": "ok", "repo_id": self._sessions.checkpoint.name, "num_cameras": len(cameras)}
        return _json(200, {**said, "state_dim": self._sessions.robot.dof, **self._description})

    async def _metrics(self, request: Request) -> Response:
        if not self._access.allows(request.headers):
            return _json(401, {"error": REFUSED})
        self._sessions.sweep()
        return Response(self.metrics.page(), media_type=CONTENT_TYPE)

    async def _act(self, request: Request) -> Response:
        try:
            if not self._access.allows(request.headers):
                raise _RefusedError(401, REFUSED)
            body = await self._body(request)
            self.metrics.bytes_in.labels("http").inc(len(body))
            answer = await self._answer(body, loads, _connection(request))
        except _RefusedError as error:
            self.metrics.calls.labels("http", str(error.status)).inc()
            return _json(error.status, {"error": str(error)})
        self.metrics.calls.labels("http", "200").inc()
        return Response(await asyncio.to_thread(dumps, answer), media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        """The body, read no further than what is taken."""
        said = request.headers.get("content-length", "")
        if said.isascii() and said.isdigit() and int(said[:20]) > self._most:
            raise _RefusedError(
                413, f"a message of {said[:20]} bytes, at most {self._most} are taken; send JPEG pictures"
            )
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > self._most:
                    raise _RefusedError(413, f"a message of over {self._most} bytes; send JPEG pictures")
                parts.append(part)
        except ClientDisconnect as error:
            raise _RefusedError(400, "the message breaks off") from error
        return b"".join(parts)

    # -- websocket ----------------------------------------------------------------------------------------------------

    async def _websocket(self, socket: WebSocket) -> None:
        if not self._access.allows(socket.headers):
            self.metrics.calls.labels("websocket", "401").inc()
            await socket.close()  # before it is accepted: status 403
            return
        await socket.accept()
        own = f"websocket {uuid.uuid4().hex}"
        try:
            await socket.send_bytes(pack(self._description))
            while True:
                message = await socket.receive()
                if message["type"] != "websocket.receive":
                    return
                body = message.get("bytes")
                try:
                    if body is None:
                        raise _RefusedError(400, "expected an observation in msgpack, got text")
                    self.metrics.bytes_in.labels("websocket").inc(len(body))
                    answer = await self._answer(body, unpack, own)
                except _RefusedError as error:
                    self.metrics.calls.labels("websocket", str(error.status)).inc()
                    await socket.send_text(str(error))
                    await socket.close(BROKEN, "see the message before")
                    return
                await socket.send_bytes(pack(answer))
                self.metrics.calls.labels("websocket", "200").inc()
        except (WebSocketDisconnect, RuntimeError):
            return  # it has gone while it was answered
        finally:
            self._sessions.end(own)

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _answer(self, body: bytes, decode: Callable[[bytes], dict[str, Any]], connection: str) -> dict[str, Any]:
        begun, arrival_ns = time.perf_counter(), self._now_ns()
        checkpoint, robot, steps = self._sessions.checkpoint, self._sessions.robot, self._sessions.steps

        def ask() -> tuple[Call, float, Future[tuple[Prediction | None, float, float]]]:
            # From here straight to the worker: the event loop may be busy with others.
            call = read_call(decode(body), checkpoint, robot, arrival_ns, steps)
            decoded = time.perf_counter() - begun
            return call, decoded, self._sessions.ask(f"session {call.session}" if call.session else connection, call)

        try:
            call, decoded, asked = await asyncio.to_thread(ask)
        except (WireError, RequestError) as error:
            raise _RefusedError(400, _line(f"{error} (needed: {wanted(checkpoint, robot)})")) from error
        except BusyError as error:
            raise _RefusedError(429, str(error)) from error
        except ValueError as error:
            raise _RefusedError(400, _line(str(error))) from error
        except Exception as error:  # nothing that is sent may end a connection without a word
            self._log(f"a message that could not be read: {error!r}")
            raise _RefusedError(400, _line(f"the message cannot be read: {error!r}")) from error
        try:
            prediction, waited_ms, took_ms = await asyncio.wrap_future(asked)
        except ValueError as error:
            raise _RefusedError(400, _line(str(error))) from error
        except Exception as error:  # the others are served on
            self._log(f"inference failed: {error!r}")
            raise _RefusedError(500, _line(f"{type(error).__name__}: {error}")) from error
        self.metrics.decode.observe(decoded)
        self.metrics.wait.observe(1e-3 * waited_ms)
        self.metrics.infer.observe(1e-3 * took_ms)
        return answer_of(prediction, call, waited_ms, took_ms, 1e3 * decoded)


REFUSED = "a token is needed: Authorization: Bearer <token>, or Api-Key <token>"


def _connection(request: Request) -> str:
    """What tells one HTTP client from another that gives no session: its connection, while it keeps it. Behind a proxy
    many clients may come by one, so that there each call stands alone."""
    if request.client is None or any(name in request.headers for name in PROXY_HEADERS):
        return f"call {uuid.uuid4().hex}"
    return f"http {request.client.host} {request.client.port}"


def _line(text: str) -> str:
    """`text` as one line of bounded length."""
    return " ".join(text.split())[:1000]


def _json(status: int, message: Mapping[str, Any]) -> Response:
    return Response(dumps(message), status_code=status, media_type="application/json")
