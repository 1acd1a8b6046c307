"""Who may call: a token, compared in constant time, and no browser's page."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

SCHEMES = ("api-key", "bearer")
"""openpi's client sends the first, everybody else the second."""


def same_secret(given: str, secret: str) -> bool:
    """Whether two secrets are the same, in a time that tells nothing of them."""
    # Digests have one length, so that not even the secret's shows.
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(secret.encode()).digest())


class Access:
    """Says whether a request may pass.

    Args:
        token: what it must carry; empty: everybody may.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers (names in lower case) may pass."""
        if "origin" in headers:
            # A page in somebody's browser can reach this machine's ports; no robot says where its page came from.
            return False
        if not self._token:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return same_secret(given.strip(), self._token) and scheme.lower() in SCHEMES


def is_local(host: str) -> bool:
    """Whether only this machine can connect to a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str, insecure: bool) -> None:
    """Refuse to let a network in without a token.

    Raises:
        ValueError: `host` is reachable from others, there is no token, and nobody said that this is meant.
    """
    if not is_local(host) and not token and not insecure:
        raise ValueError(
            f"--host {host} lets the network in, and no --token-file is given: anybody there could use this policy; "
            "make one with openssl rand -hex 24 > token, or say --insecure in a network that you trust"
        )
