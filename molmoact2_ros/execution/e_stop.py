"""Who presses the emergency stop: counted by publisher, so that one who lets go does not release another's button."""

from __future__ import annotations

import threading

UNKNOWN = ""
"""Stands for all publishers that cannot be told apart: what one of them pressed only a reset releases."""


class EStop:
    """The buttons of all publishers. Thread-safe; times in ns of one clock.

    Args:
        heartbeat_s: silence of every publisher for longer counts as pressed; 0 does without.
    """

    def __init__(self, heartbeat_s: float = 0.0) -> None:
        if heartbeat_s < 0.0:
            raise ValueError(f"e_stop_heartbeat_s must be 0 (none) or above, got {heartbeat_s}")
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()
        self._pressed: set[str] = set()
        self._heard_ns: int | None = None

    @property
    def pressed(self) -> bool:
        """True while any publisher presses, or has disappeared while it pressed."""
        return bool(self._pressed)

    @property
    def ever_heard(self) -> bool:
        """True once any publisher has said anything."""
        return self._heard_ns is not None

    def heard(self, publisher: str, pressed: bool, now_ns: int) -> None:
        """Take the word of one publisher on its own button."""
        with self._lock:
            self._heard_ns = now_ns
            if pressed:
                self._pressed.add(publisher)
            elif publisher != UNKNOWN:
                self._pressed.discard(publisher)

    def silence(self, now_ns: int) -> str:
        """Why the missing heartbeat stops the arm; empty while it is there or not asked for."""
        if self._heartbeat_s <= 0.0:
            return ""
        if self._heard_ns is None:
            return f"no e_stop publisher has been heard; one must publish every {self._heartbeat_s:g} s"
        self.clock_went_back(now_ns)
        silent = (now_ns - self._heard_ns) * 1e-9
        if silent <= self._heartbeat_s:
            return ""
        return f"e_stop silent for {silent:.2f} s (limit {self._heartbeat_s:.2f} s); is its publisher running?"

    def clock_went_back(self, now_ns: int) -> None:
        """Where the clock was set back, silence counts from now; otherwise nothing changes."""
        with self._lock:
            if self._heard_ns is not None:
                self._heard_ns = min(self._heard_ns, now_ns)

    def forget_absent(self, present: set[str]) -> None:
        """A person resets: buttons of publishers that are gone no longer count, nor those that cannot be told apart."""
        with self._lock:
            self._pressed &= present
