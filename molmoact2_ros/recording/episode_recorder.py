"""Episodes of a recording: where each bag goes, and the thread that writes it while messages keep coming."""

from __future__ import annotations

import queue
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from molmoact2_ros.recording.bag import Bag, StreamAudit, preload
from molmoact2_ros.recording.streams import Stream

_NAME = re.compile(r"episode_(\d+)")


@dataclass(frozen=True)
class Finished:
    """An episode that is written, thrown away or lost.

    Attributes:
        path: of the bag. kept: whether it is there.
        audits: by topic. error: why the bag is not complete, or None.
    """

    path: Path
    kept: bool
    audits: dict[str, StreamAudit] = field(default_factory=dict)
    error: str | None = None


def next_episode(directory: Path) -> Path:
    """The first `episode_0001`, `episode_0002`, ... after all that were ever in `directory`."""
    numbers = [int(match[1]) for entry in directory.iterdir() if (match := _NAME.match(entry.name))]
    return directory / f"episode_{max(numbers, default=0) + 1:04d}"


def unfinished(directory: Path) -> list[Path]:
    """Bags in `directory` that a killed recorder left without `metadata.yaml`."""
    return sorted(
        entry
        for entry in directory.iterdir()
        if entry.is_dir() and _NAME.fullmatch(entry.name) and not (entry / "metadata.yaml").exists()
    )


class EpisodeWriter:
    """One episode on its way to disk: a bounded queue and the thread that empties it.

    The queue is bounded in bytes. A message that does not fit is dropped and counted: a slow disk must not make the
    process grow.
    """

    def __init__(
        self,
        path: Path,
        streams: Sequence[Stream],
        done: Callable[[Finished], None],
        queue_bytes: int = 128 * 2**20,
        zstd: bool = False,
    ) -> None:
        """Open the bag and start; `done` is called on the writing thread when the episode is over."""
        self.path = path
        self._bag = Bag(path, streams, zstd)
        self._done = done
        self._limit = queue_bytes
        self._waiting = 0
        self._lock = threading.Lock()
        self._dropped: dict[str, int] = {}
        self._queue: queue.SimpleQueue[tuple[str, bytes, int] | None] = queue.SimpleQueue()
        self._custom: dict[str, str] | None = {}
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, topic: str, data: bytes, received_ns: int) -> bool:
        """Queue one message; False when the queue is full and the message is dropped."""
        with self._lock:
            if self._waiting + len(data) > self._limit:
                self._dropped[topic] = self._dropped.get(topic, 0) + 1
                return False
            self._waiting += len(data)
        self._queue.put((topic, data, received_ns))
        return True

    def finish(self, custom: dict[str, str] | None) -> None:
        """End the episode: write what is queued and the metadata, or throw all of it away when `custom` is None."""
        self._custom = custom
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; False when it is still writing."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        error: str | None = None
        while (item := self._queue.get()) is not None:
            topic, data, received_ns = item
            with self._lock:
                self._waiting -= len(data)
            if error is None:
                try:
                    self._bag.write(topic, data, received_ns)
                except Exception as failure:  # a full disk must reach the user, not end the thread in silence
                    error = f"cannot write {self.path}: {failure}"
        self._done(self._close(error))

    def _close(self, error: str | None) -> Finished:
        audits = self._bag.audits
        for topic, count in self._dropped.items():
            audits[topic].dropped = count
        discard = self._custom is None or (self._bag.messages == 0 and error is None)
        if error is None and not discard:
            try:
                self._bag.close(self._custom or {})
                return Finished(self.path, True, audits)
            except Exception as failure:
                error = f"cannot finish {self.path}: {failure}"
        self._bag.abort()
        if discard:
            shutil.rmtree(self.path, ignore_errors=True)
            return Finished(self.path, False, audits, None if self._custom is None else "no message arrived")
        return Finished(self.path, True, audits, error)


class EpisodeRecorder:
    """Routes messages to the episode that is being recorded, and remembers the last message of every latched stream.

    Invariant: every bag begins with the last task, executor state and e-stop that were known when it began. Methods are
    called from one thread.
    """

    def __init__(
        self, directory: Path, streams: Sequence[Stream], done: Callable[[Finished], None], zstd: bool = False
    ) -> None:
        """Record `streams` under `directory`, which is made when it is not there."""
        directory.mkdir(parents=True, exist_ok=True)
        preload()
        self.directory = directory
        self._streams = tuple(streams)
        self._latched = {stream.topic for stream in streams if stream.latched}
        self._last: dict[str, bytes] = {}
        self._done = done
        self._zstd = zstd
        self._writer: EpisodeWriter | None = None
        self._closing: list[EpisodeWriter] = []

    @property
    def recording(self) -> Path | None:
        """Path of the running episode, or None."""
        return None if self._writer is None else self._writer.path

    def put(self, topic: str, data: bytes, received_ns: int, newest: bool = True) -> None:
        """Take one serialized message; `newest` is False when a newer one of its topic was taken before."""
        if newest and topic in self._latched:
            self._last[topic] = data
        if self._writer is not None:
            self._writer.put(topic, data, received_ns)

    def start(self, now_ns: int) -> Path:
        """Begin an episode.

        Raises:
            RuntimeError: one is running already.
        """
        if self._writer is not None:
            raise RuntimeError(f"{self._writer.path.name} is being recorded; stop or discard it first")
        self._closing = [writer for writer in self._closing if not writer.join(0.0)]
        self._writer = EpisodeWriter(next_episode(self.directory), self._streams, self._done, zstd=self._zstd)
        for topic, data in self._last.items():
            self._writer.put(topic, data, now_ns)
        return self._writer.path

    def stop(self, custom: dict[str, str]) -> Path:
        """End the episode and keep it, with `custom` in its metadata; `done` is called when it is on disk.

        Raises:
            RuntimeError: none is running.
        """
        return self._finish(custom)

    def discard(self) -> Path:
        """End the episode and delete it.

        Raises:
            RuntimeError: none is running.
        """
        return self._finish(None)

    def _finish(self, custom: dict[str, str] | None) -> Path:
        if self._writer is None:
            raise RuntimeError("no episode is being recorded; start one first")
        writer, self._writer = self._writer, None
        writer.finish(custom)
        self._closing.append(writer)
        return writer.path

    def wait(self, timeout_s: float) -> bool:
        """Wait for episodes that are still being written; False when one of them is not done in time."""
        self._closing = [writer for writer in self._closing if not writer.join(timeout_s)]
        return not self._closing
