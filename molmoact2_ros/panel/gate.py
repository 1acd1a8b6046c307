"""Who may see the panel: this machine alone, or whoever has the token. Pages of others may not use it by the back."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from molmoact2_ros.serving.access import is_local, same_secret

COOKIE = "molmoact2_panel"
SCENE = "/scene/"


def check_reach(host: str, token: str) -> None:
    """Refuse to let a network in without a token.

    Raises:
        ValueError: `host` is reachable from others, and there is no token.
    """
    if not is_local(host) and not token:
        raise ValueError(
            f"host {host} lets the network in, and there is no token_file: anybody there could command the robot; make "
            "one with openssl rand -hex 24 > panel_token"
        )


class Gate:
    """Says whether a request may pass.

    Args:
        token: what a browser must have shown once; empty: none is needed, and the panel must listen to this machine.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.ticket = secrets.token_hex(16)
        # Not the token itself: a cookie lies in files of the browser. The same after a restart, so pages come back.
        self._pass = hmac.new(token.encode(), b"molmoact2 panel", hashlib.sha256).hexdigest() if token else ""

    def ticket_in(self, path: str) -> bool:
        """Whether a path of the 3D view bears the ticket that pages are given.

        Its frame has no origin and no cookies, so that viser's page cannot reach into the panel's.
        """
        return same_secret(path.removeprefix(SCENE).rstrip("/"), self.ticket)

    def refusal(self, headers: Mapping[str, str]) -> str:
        """Why a request with these headers (any case) may not even show a token; empty where it may.

        A page from elsewhere, open in the same browser, must not press this panel's buttons: what such a page begins
        bears its own address as origin, and one that has a name of its own lead here (DNS rebinding) bears that name.
        """
        host, origin = headers.get("Host", ""), headers.get("Origin", "")
        if origin and urlsplit(origin).netloc != host:
            return f"a page of {origin} may not use the panel of {host}"
        if not self._token and not is_local(urlsplit(f"//{host}").hostname or ""):
            return f"without a token the panel is for this machine alone, and this request is for {host!r}"
        return ""

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the browser has shown the token, or none is needed."""
        if not self._token:
            return True
        try:
            cookies = SimpleCookie(headers.get("Cookie", ""))
        except CookieError:
            return False
        return COOKIE in cookies and same_secret(cookies[COOKIE].value, self._pass)

    def shown(self, headers: Mapping[str, str]) -> str | None:
        """The Set-Cookie header for a browser that shows the token (`Authorization: Bearer ...`), or None."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if not self._token or scheme.lower() != "bearer" or not same_secret(given.strip(), self._token):
            return None
        return f"{COOKIE}={self._pass}; Path=/; HttpOnly; SameSite=Strict"
