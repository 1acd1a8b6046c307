"""Exported graphs and engines on disk, by content: what is found is exactly what was asked for, or it is not found.

One folder an entry: its files and `manifest.json`, which holds the whole key and a hash of every file. Entries are made
in a folder of another name and renamed when complete, so that an interrupted build leaves nothing that could be taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def default_root() -> Path:
    """`$MOLMOACT2_CACHE`, else `molmoact2_ros` in the user's cache folder."""
    named = os.environ.get("MOLMOACT2_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "molmoact2_ros"


@dataclass(frozen=True)
class Entry:
    """A complete entry: its folder and what was measured when it was made."""

    folder: Path
    facts: Mapping[str, Any]


class EngineCache:
    """See the module.

    Invariant: `find` returns an entry only if its manifest has the same key, value for value, and every file its hash.
    """

    def __init__(self, root: Path, log: Callable[[str], None]) -> None:
        self.root = root
        self._log = log
        self._read: dict[tuple[str, int, int, int], str] = {}

    def find(self, key: Mapping[str, Any]) -> Entry | None:
        """The entry of `key` (values as JSON has them), or None; a damaged or foreign one is named in the log."""
        folder = self._folder(key)
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text())
            known, files, facts = manifest["key"], manifest["files"], dict(manifest["facts"])
            for name, expected in files.items():
                if self.hash_of(folder / name) != expected:
                    raise ValueError(f"{name} is not the file that was written")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log(f"cache entry {folder.name} is not used: {error}; it will be made anew")
            return None
        if known != _plain(key):
            self._log(f"cache entry {folder.name} is not used: it was made for something else")
            return None
        return Entry(folder, facts)

    def make(self, key: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """Build the entry of `key`: `build` writes its files into an empty folder and returns facts about them."""
        folder = self._folder(key)
        self.root.mkdir(parents=True, exist_ok=True)
        for old in self.root.glob(f"{folder.name}.*.part"):
            if not _alive(old):
                shutil.rmtree(old, ignore_errors=True)
        part = self.root / f"{folder.name}.{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            facts = dict(build(part))
            files = {path.name: file_hash(path) for path in sorted(part.iterdir())}
            manifest = {"key": _plain(key), "files": files, "facts": facts}
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
            # Whatever stands there was not accepted by `find`, or another process has just made the same.
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return Entry(folder, facts)

    def hash_of(self, path: Path) -> str:
        """The hash of a file, which is read once as long as nobody touches it."""
        about = path.stat()
        mark = (str(path), about.st_size, about.st_mtime_ns, about.st_ino)
        if self._read.get(mark) is None:
            self._read[mark] = file_hash(path)
        return self._read[mark]

    def _folder(self, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()
        return self.root / f"{key.get('graph', 'entry')}-{digest[:24]}"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_hash(directory: Path, files: Sequence[str], root: Path) -> str:
    """A hash of the configuration and the weight `files` of a checkpoint.

    Ten gigabytes take a while to read: the hash of a file is kept in `root`, by path, size and time of change.
    """
    memo_path = root / "hashes.json"
    try:
        memo = dict(json.loads(memo_path.read_text()))
    except (OSError, ValueError, TypeError):
        memo = {}
    digest = hashlib.sha256()
    fresh = False
    for name in ["config.json", *sorted(set(files))]:
        path = (directory / name).resolve()
        about = path.stat()
        key = f"{path}:{about.st_size}:{about.st_mtime_ns}:{about.st_ino}"
        if key not in memo:
            memo[key], fresh = file_hash(path), True
        digest.update(f"{name}:{memo[key]}\n".encode())
    if fresh:
        # Only a memo: where it cannot be kept, the files are read again the next time.
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            part = memo_path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(memo))
            part.replace(memo_path)
    return digest.hexdigest()


def _plain(key: Mapping[str, Any]) -> Any:
    """The key as JSON gives it back."""
    return json.loads(json.dumps(key, sort_keys=True))


def _alive(part: Path) -> bool:
    try:
        os.kill(int(part.name.split(".")[-2]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
