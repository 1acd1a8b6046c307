"""A browser that is lost while the arm may move becomes a stop: who is there, and who holds. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class HoldToRun:
    """Which pages speak, and which one armed last. Times in s of any steady clock; pages speak in another thread.

    Args:
        silence_s: a page that has said nothing for longer is lost.
    """

    silence_s: float
    _heard: dict[int, float] = field(default_factory=dict)
    _holder: int | None = None

    def heard(self, page: int, now_s: float) -> None:
        """A page spoke."""
        self._heard[page] = now_s

    def armed_by(self, page: int) -> None:
        """A page armed: the arm is in its hands."""
        self._holder = page

    def gone(self, page: int) -> None:
        """A page's connection has ended."""
        self._heard.pop(page, None)

    def there(self, now_s: float) -> bool:
        """Whether any page speaks."""
        return any(now_s - at <= self.silence_s for at in tuple(self._heard.values()))

    def lost(self, now_s: float, moves: bool) -> str:
        """Why the arm must be stopped now; empty while somebody holds it, or it cannot move."""
        if not moves:
            self._holder = None
            return ""
        holder = self._holder
        if holder is not None and now_s - self._heard.get(holder, -1e9) > self.silence_s:
            self._holder = None
            return "the browser that armed is lost"
        if not self.there(now_s):
            return "no browser looks at the panel"
        return ""
