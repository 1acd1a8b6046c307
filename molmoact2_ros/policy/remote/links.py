"""The two ways to a policy server: openpi's websocket, and Ai2's `POST /act`. One call at a time, each with a deadline.

A link that failed is at its end: an answer that still comes must never pass for the answer to a later call.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from molmoact2_ros.policy.remote.wire import WireError, dumps, loads, pack, unpack

MOST_ANSWER = 4_000_000
"""Bytes of an answer; a chunk of 30 rows and a depth grid have 10,000."""
LEAST_TOKEN = 16


class RemoteError(RuntimeError):
    """The server cannot be reached, does not answer in time, or refuses; the message says which and what to do."""


class Link(Protocol):
    """A way to a server."""

    def describe(self) -> dict[str, Any]:
        """What the server says of itself."""

    def call(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one observation and return the answer.

        Raises:
            RemoteError: there is none, or it is an error.
        """

    def close(self) -> None:
        """Give the connection back."""


def read_token(file: str | Path) -> str:
    """The token in `file`; empty for no file.

    Raises:
        ValueError: it cannot be read, or holds none that could keep anybody out.
    """
    if not file:
        return ""
    try:
        token = Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token file {file} cannot be read: {error}") from error
    if len(token) < LEAST_TOKEN or any(not 33 <= ord(letter) <= 126 for letter in token):
        raise ValueError(
            f"the token file {file} must hold one line of at least {LEAST_TOKEN} letters and digits; make one with "
            f"openssl rand -hex 24 > {file}"
        )
    return token


def open_link(address: str, token: str, timeout_s: float) -> Link:
    """A link to `address`: ws://host:port, wss://..., http://host:port/act or https://...

    Raises:
        ValueError: it is no such address.
        RemoteError: nobody answers there, or the token is refused.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("ws", "wss", "http", "https") or not parts.hostname:
        raise ValueError(f"a policy server is ws://host:port or http://host:port/act, got {address!r}")
    if parts.scheme.startswith("ws"):
        return WebsocketLink(address, token, timeout_s)
    return HttpLink(address if parts.path.strip("/") else f"{address.rstrip('/')}/act", token, timeout_s)


class WebsocketLink:
    """openpi's protocol: the server's description at the start, then a dictionary up and one down, in msgpack."""

    def __init__(self, address: str, token: str, timeout_s: float) -> None:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        self._address = address
        headers = {"Authorization": f"Api-Key {token}"} if token else {}
        try:
            # No compression: pictures have theirs, and a small message must not become a large one. No proxy: it is a
            # machine beside the robot.
            self._connection = connect(
                address,
                open_timeout=timeout_s,
                close_timeout=0.2,
                compression=None,
                max_size=MOST_ANSWER,
                additional_headers=headers,
                proxy=None,
            ).__enter__()
        except InvalidStatus as error:
            raise RemoteError(_refused(address, error.response.status_code)) from error
        except (OSError, WebSocketException) as error:
            raise RemoteError(_unreachable(address, error)) from error
        try:
            self._description = self._received(timeout_s)
        except RemoteError:
            self.close()
            raise

    def describe(self) -> dict[str, Any]:
        """See `Link`."""
        return self._description

    def call(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """See `Link`."""
        from websockets.exceptions import WebSocketException

        try:
            self._connection.send(pack(message))
        except (OSError, WebSocketException) as error:
            raise RemoteError(_unreachable(self._address, error)) from error
        return self._received(timeout_s)

    def close(self) -> None:
        """See `Link`."""
        self._connection.close()

    def _received(self, timeout_s: float) -> dict[str, Any]:
        from websockets.exceptions import WebSocketException

        try:
            answer = self._connection.recv(timeout_s)
        except TimeoutError as error:
            raise RemoteError(_late(self._address, timeout_s)) from error
        except (OSError, WebSocketException) as error:
            raise RemoteError(_unreachable(self._address, error)) from error
        if isinstance(answer, str):
            raise RemoteError(
                f"{self._address}: {answer.strip().splitlines()[-1][:500] if answer.strip() else 'error'}"
            )
        return _decoded(self._address, unpack, answer)


class HttpLink:
    """Ai2's protocol: `GET` describes the server, `POST` takes an observation in json_numpy's form."""

    def __init__(self, address: str, token: str, timeout_s: float) -> None:
        import httpx

        self._address = address
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(headers=headers, trust_env=False, follow_redirects=False)
        try:
            self._description = self._asked("GET", None, timeout_s)
        except RemoteError:
            self.close()
            raise

    def describe(self) -> dict[str, Any]:
        """See `Link`."""
        return self._description

    def call(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """See `Link`."""
        sent = dict(message)
        pictures = dict(sent.pop("images", {}))
        # As Ai2's clients say it: raw arrays beside the rest, JPEG in a dictionary of its own.
        packed = {name: value for name, value in pictures.items() if isinstance(value, bytes)}
        sent |= {f"{name}_cam": value for name, value in pictures.items() if name not in packed}
        if packed:
            sent["images_jpeg"] = {name: base64.b64encode(value).decode("ascii") for name, value in packed.items()}
        return self._asked("POST", dumps(sent), timeout_s)

    def close(self) -> None:
        """See `Link`."""
        self._client.close()

    def _asked(self, method: str, body: bytes | None, timeout_s: float) -> dict[str, Any]:
        import httpx

        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = self._client.request(method, self._address, content=body, headers=headers, timeout=timeout_s)
        except httpx.TimeoutException as error:
            raise RemoteError(_late(self._address, timeout_s)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteError(_unreachable(self._address, error)) from error
        if answer.status_code in (401, 403):
            raise RemoteError(_refused(self._address, answer.status_code))
        if len(answer.content) > MOST_ANSWER:
            raise RemoteError(f"{self._address}: an answer of {len(answer.content)} bytes, at most {MOST_ANSWER}")
        if answer.status_code != 200:
            try:
                said = str(loads(answer.content).get("error"))
            except WireError:
                said = answer.text
            raise RemoteError(f"{self._address}: {said[:500] or 'error'} (status {answer.status_code})")
        return _decoded(self._address, loads, answer.content)


def _decoded(address: str, decode: Any, answer: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = decode(answer)
    except WireError as error:
        raise RemoteError(f"{address}: an answer that cannot be read: {error}") from error
    return found


def _unreachable(address: str, error: Exception) -> str:
    why = str(error).strip().splitlines()
    return f"no policy server at {address} ({why[0] if why else type(error).__name__}); does molmoact2 serve run there?"


def _late(address: str, timeout_s: float) -> str:
    return f"{address} has not answered within {timeout_s:g} s; is the machine busy, or the network slow or cut?"


def _refused(address: str, status: int) -> str:
    if status in (401, 403):
        return f"{address} refuses the token (status {status}); both machines need the same token file"
    return f"{address} refuses with status {status}"
