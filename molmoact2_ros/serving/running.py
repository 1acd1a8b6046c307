"""A server that runs: in the foreground for `molmoact2 serve`, or in a thread beside whoever measures or tests it."""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import uvicorn

from molmoact2_ros.policy.remote.links import read_token
from molmoact2_ros.serving.access import check_exposure
from molmoact2_ros.serving.server import MOST_MESSAGE, Serving
from molmoact2_ros.serving.sessions import Sessions

MOST_CONNECTIONS = 128
START_S = 10.0


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, and to whom.

    Attributes:
        host, port: port 0 is any free one. token_file: what clients must have; empty: nothing.
        insecure: others than this machine may call without a token.
        most_message: bytes of one message.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str = ""
    insecure: bool = False
    most_message: int = MOST_MESSAGE


class PolicyServer:
    """Listens from its making on, and serves within `with` or in `run`.

    Raises:
        ValueError: the token cannot be used, or the network would be let in without one.
        OSError: the port is taken.
    """

    def __init__(self, sessions: Sessions, options: ServeOptions) -> None:
        token = read_token(options.token_file)
        check_exposure(options.host, token, options.insecure)
        self.sessions = sessions
        self.serving = Serving(
            sessions,
            token=token,
            most_message=options.most_message,
            log=lambda line: print(f"serve: {line}", file=sys.stderr, flush=True),
        )
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        self._socket = socket.create_server((options.host, options.port), family=family, backlog=MOST_CONNECTIONS)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.serving.app,
                log_level="warning",
                ws="websockets-sansio",
                ws_max_size=options.most_message,
                # A small message must not become a large one.
                ws_per_message_deflate=False,
                # Whose call it is follows from the connection, not from what a header says.
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                # A client that keeps its connection keeps its session, also from one episode to the next.
                timeout_keep_alive=30,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        # The model holds the interpreter most of the time; those who wait for a message must not wait long for a turn.
        sys.setswitchinterval(1e-3)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.sessions.close()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="serve", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every connection; the sessions stay for another server."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(START_S)
        self._socket.close()
