"""One worker for many clients, who take turns: nobody waits longer for a client that asks a lot than for one that asks
once."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

MOST_WAITING = 2
"""Calls of one client; a robot has one in flight."""


class BusyError(RuntimeError):
    """A client has asked again and again without waiting for answers."""


class Turns:
    """Runs what it is given in a thread of its own, one after another, a client a turn."""

    def __init__(self, name: str = "inference") -> None:
        self._waiting: OrderedDict[Hashable, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()
        self._changed = threading.Condition()
        self._running = True
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit[Found](self, client: Hashable, work: Callable[[], Found]) -> Future[Found]:
        """Have `work` done when it is the turn of `client`.

        Raises:
            BusyError: it has too much waiting already, or the worker has ended.
        """
        future: Future[Found] = Future()
        with self._changed:
            if not self._running:
                raise BusyError("the server is ending")
            jobs = self._waiting.setdefault(client, deque())
            if len(jobs) >= MOST_WAITING:
                raise BusyError(f"{len(jobs)} calls of this client are waiting already; wait for the answers")
            jobs.append((future, work))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End after the present work; what waits is cancelled."""
        with self._changed:
            self._running = False
            for jobs in self._waiting.values():
                for future, _ in jobs:
                    future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._running)
                if not self._running:
                    return
                client, jobs = self._waiting.popitem(last=False)
                future, work = jobs.popleft()
                if jobs:
                    self._waiting[client] = jobs  # behind everybody who waits now
            if not future.set_running_or_notify_cancel():
                continue
            try:
                found = work()
            except BaseException as error:  # whatever it is, the one who waits for it must hear of it
                future.set_exception(error)
            else:
                future.set_result(found)
            del future, work
