"""What Prometheus is told of a server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts calls by protocol and outcome, and measures them."""

    def __init__(self, sessions: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        prefix, registry = "molmoact2", self._registry
        self.calls = Counter(
            f"{prefix}_calls", "Calls by protocol and outcome.", ("protocol", "outcome"), registry=registry
        )
        self.bytes_in = Counter(f"{prefix}_received_bytes", "Bytes of the messages.", ("protocol",), registry=registry)
        self.infer = Histogram(f"{prefix}_infer_seconds", "The model's time.", buckets=SECONDS, registry=registry)
        self.wait = Histogram(f"{prefix}_queue_seconds", "Waiting for a turn.", buckets=SECONDS, registry=registry)
        self.decode = Histogram(f"{prefix}_decode_seconds", "Message and pictures.", buckets=SECONDS, registry=registry)
        Gauge(f"{prefix}_sessions", "Open sessions.", registry=registry).set_function(sessions)

    def page(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)
