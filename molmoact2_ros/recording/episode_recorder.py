"""Episodes of a recording: where each bag goes, and the thread that writes it while messages keep coming."""

from __future__ import annotations

import queue
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from molmoact2_ros.recording.audit import StreamAudit, problems
from molmoact2_ros.recording.bag import CHUNK_S, Bag, preload
from molmoact2_ros.recording.episodes import TRASH
from molmoact2_ros.recording.recover import being_written
from molmoact2_ros.recording.streams import Stream

_NAME = re.compile(r"episode_(\d+)")
_TRIES = 100
"""Numbers that are tried when other recorders take the same folder."""


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

    @property
    def problems(self) -> list[str]:
        """What is wrong with what was recorded, one line each."""
        return problems(self.audits) if self.kept else []


def next_episode(directory: Path) -> Path:
    """The first `episode_0001`, `episode_0002`, ... after all that were ever in `directory`."""
    entries = [*directory.iterdir(), *(directory / TRASH).glob("*")]
    numbers = [int(match[1]) for entry in entries if (match := _NAME.match(entry.name))]
    return directory / f"episode_{max(numbers, default=0) + 1:04d}"


def unfinished(directory: Path) -> list[Path]:
    """Bags in `directory` that a killed recorder left without `metadata.yaml`."""
    return sorted(
        entry
        for entry in directory.iterdir()
        if entry.is_dir()
        and _NAME.fullmatch(entry.name)
        and not (entry / "metadata.yaml").exists()
        and not being_written(entry)
    )


def finished_bags(directory: Path, besides: Collection[str] = ()) -> set[str]:
    """Names of the bags in `directory` that are whole and did not end early, and not among `besides`."""
    whole = set()
    for path in directory.glob("episode_*/metadata.yaml"):
        if path.parent.name in besides:
            continue
        custom = yaml.safe_load(path.read_text())["rosbag2_bagfile_information"]["custom_data"]
        if "error" not in custom:
            whole.add(path.parent.name)
    return whole


class EpisodeWriter:
    """One episode on its way to disk: a bounded queue and the thread that empties it.

    The queue is bounded in bytes. A message that does not fit is dropped and counted: a slow disk must not make the
    process grow. The first write that fails ends the episode at once: what came before is kept and finished.
    """

    def __init__(
        self,
        path: Path,
        streams: Sequence[Stream],
        done: Callable[[Finished], None],
        queue_bytes: int = 128 * 2**20,
        zstd: bool = False,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """Open the bag and start; `done` is called on the writing thread when the episode is over.

        `about` goes to the start of the bag, and into its metadata where `finish` says nothing else.
        """
        self.path = path
        self._bag = Bag(path, streams, zstd, about)
        self._done = done
        self._limit = queue_bytes
        self._waiting = 0
        self._lock = threading.Lock()
        self._dropped: dict[str, int] = {}
        self._queue: queue.SimpleQueue[tuple[str, bytes, int] | None] = queue.SimpleQueue()
        self._custom: dict[str, str] | None = {}
        self._early: str | None = None
        self.result: Finished | None = None
        """How the episode ended; None while it has not."""
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, topic: str, data: bytes, received_ns: int) -> bool:
        """Queue one message; False when the queue is full and the message is dropped, or the episode is over."""
        with self._lock:
            if self.result is not None or self._waiting + len(data) > self._limit:
                self._dropped[topic] = self._dropped.get(topic, 0) + 1
                return False
            self._waiting += len(data)
        self._queue.put((topic, data, received_ns))
        return True

    def finish(self, custom: dict[str, str] | None, error: str | None = None) -> None:
        """End the episode: write what is queued and the metadata, or throw all of it away when `custom` is None.

        `error` says why it ends before it is over.
        """
        self._custom = custom
        self._early = error or self._early
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; False when it is still writing."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        error: str | None = None
        try:
            self._write()
        except Exception as failure:  # a full disk must reach the user, not end the thread in silence
            error = f"cannot write {self.path}: {failure}"
        try:
            finished = self._close(error or self._early)
        except Exception as failure:
            finished = Finished(self.path, False, self._bag.audits, error or f"cannot finish {self.path}: {failure}")
        with self._lock:
            self.result = finished
        self._done(finished)

    def _write(self) -> None:
        """Empty the queue until the end of the episode."""
        while True:
            try:
                item = self._queue.get(timeout=CHUNK_S / 4)
            except queue.Empty:
                self._bag.tick()
                continue
            if item is None:
                return
            topic, data, received_ns = item
            with self._lock:
                self._waiting -= len(data)
            self._bag.write(topic, data, received_ns)
            if self._bag.full:
                raise OSError(self._bag.full)

    def _close(self, error: str | None) -> Finished:
        audits = self._bag.audits
        for topic, count in self._dropped.items():
            audits[topic].dropped = count
        if self._custom is None or (self._bag.nothing_came and error is None):
            self._bag.abort()
            shutil.rmtree(self.path, ignore_errors=True)
            told = "no message arrived; does the robot run, and in this namespace?"
            return Finished(self.path, False, audits, None if self._custom is None else told)
        try:
            self._bag.close({**self._custom, **({"error": error} if error else {})})
        except Exception as failure:
            self._bag.abort()
            error = error or f"cannot finish {self.path}: {failure}"
            kept = self.path.is_dir()
            advice = f"; recover what is there: python -m molmoact2_ros.recording.recover {self.path}" if kept else ""
            return Finished(self.path, kept, audits, error + advice)
        return Finished(self.path, True, audits, error and f"{error}; what came before is in it")


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
        self._latched = {stream.topic: stream.all_hold for stream in streams if stream.latched}
        self._last: dict[str, list[bytes]] = {}
        self._done = done
        self._zstd = zstd
        self._writer: EpisodeWriter | None = None
        self._closing: list[EpisodeWriter] = []

    @property
    def recording(self) -> Path | None:
        """Path of the running episode, or None."""
        return None if self._writer is None or self._writer.result is not None else self._writer.path

    def put(self, topic: str, data: bytes, received_ns: int, newest: bool = True) -> None:
        """Take one serialized message; `newest` is False when a newer one of its topic was taken before."""
        if topic in self._latched:
            held = self._last.setdefault(topic, [])
            if self._latched[topic] and data not in held:
                held.append(data)
            elif newest and not self._latched[topic]:
                held[:] = [data]
        if self._writer is not None:
            self._writer.put(topic, data, received_ns)

    def start(self, now_ns: int, about: Mapping[str, str] | None = None) -> Path:
        """Begin an episode; `about` is what is known of it already.

        Raises:
            RuntimeError: one is running already.
            OSError: there is no room for it, or the folder cannot be written.
        """
        if self._writer is not None and self._writer.result is None:
            raise RuntimeError(f"{self._writer.path.name} is being recorded; stop or discard it first")
        self._closing = [writer for writer in self._closing if not writer.join(0.0)]
        self.directory.mkdir(parents=True, exist_ok=True)  # it may have been removed since
        self._writer = self._open(dict(about or {}))
        for topic, held in self._last.items():
            for data in held:
                self._writer.put(topic, data, now_ns)
        return self._writer.path

    def _open(self, about: dict[str, str]) -> EpisodeWriter:
        for _ in range(_TRIES):
            path = next_episode(self.directory)
            try:
                return EpisodeWriter(path, self._streams, self._done, zstd=self._zstd, about=about)
            except FileExistsError:  # another recorder took the number meanwhile
                continue
        raise OSError(f"no free episode number in {self.directory} after {_TRIES} tries")

    def stop(self, custom: dict[str, str]) -> EpisodeWriter:
        """End the episode and keep it, with `custom` in its metadata; `done` is called when it is on disk.

        An episode that ended by itself since it was started is given too: its result says why.

        Raises:
            RuntimeError: none is running.
        """
        return self._finish(custom)

    def end_early(self, custom: dict[str, str], reason: str) -> None:
        """End the running episode for `reason`, which its result says; a later `stop` gives it."""
        if self._writer is not None:
            self._writer.finish(custom, reason)

    def discard(self) -> EpisodeWriter:
        """End the episode and delete it.

        Raises:
            RuntimeError: none is running.
        """
        writer = self._finish(None)
        if writer.result is not None:  # it had ended by itself
            shutil.rmtree(writer.path, ignore_errors=True)
        return writer

    def _finish(self, custom: dict[str, str] | None) -> EpisodeWriter:
        if self._writer is None:
            raise RuntimeError("no episode is being recorded; start one first")
        writer, self._writer = self._writer, None
        writer.finish(custom)
        self._closing.append(writer)
        return writer

    def wait(self, timeout_s: float) -> bool:
        """Wait for episodes that are still being written; False when one of them is not done in time."""
        self._closing = [writer for writer in self._closing if not writer.join(timeout_s)]
        return not self._closing
