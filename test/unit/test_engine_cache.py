"""The cache of exported graphs and engines.

Pins: only the very thing that was asked for is found; a damaged, stale, foreign or half-written entry never is; an
interrupted build leaves nothing; an entry that is there is not built again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from molmoact2_ros.policy.backends.cache import MANIFEST, EngineCache, checkpoint_hash, default_root

KEY = {"graph": "decoder", "checkpoint": "abc", "versions": {"torch": "2.11.0"}, "ports": [["rows", [4, 8]]]}


def writes(text: str) -> Any:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "graph.onnx").write_text(text)
        return {"cosine": 1.0}

    return build


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> EngineCache:
    return EngineCache(tmp_path / "cache", said.append)


def test_what_was_made_is_found_by_another_process(cache: EngineCache) -> None:
    assert cache.find(KEY) is None
    made = cache.make(KEY, writes("weights"))
    found = EngineCache(cache.root, print).find({**KEY, "ports": [("rows", (4, 8))]})
    assert found is not None and found.folder == made.folder
    assert (found.folder / "graph.onnx").read_text() == "weights" and found.facts == {"cosine": 1.0}


@pytest.mark.parametrize(
    "other", [{"checkpoint": "abd"}, {"versions": {"torch": "2.11.1"}}, {"ports": [["rows", [5, 8]]]}, {"gpu": "H200"}]
)
def test_another_key_finds_nothing(cache: EngineCache, other: dict[str, Any]) -> None:
    cache.make(KEY, writes("weights"))
    assert cache.find({**KEY, **other}) is None


def test_a_file_that_was_touched_is_not_used(cache: EngineCache, said: list[str]) -> None:
    made = cache.make(KEY, writes("weights"))
    assert cache.find(KEY) is not None
    (made.folder / "graph.onnx").write_text("wEights")
    assert cache.find(KEY) is None and "not the file that was written" in said[0]
    cache.make(KEY, writes("weights"))
    assert cache.find(KEY) is not None, "it is made anew in the same place"


def test_a_file_that_is_gone_or_a_damaged_manifest_is_not_used(cache: EngineCache, said: list[str]) -> None:
    made = cache.make(KEY, writes("weights"))
    (made.folder / "graph.onnx").unlink()
    assert cache.find(KEY) is None
    made = cache.make(KEY, writes("weights"))
    (made.folder / MANIFEST).write_text("{")
    assert cache.find(KEY) is None
    (made.folder / MANIFEST).write_text(json.dumps({"key": KEY, "files": "graph.onnx", "facts": {}}))
    assert cache.find(KEY) is None
    assert len(said) == 3


def test_an_entry_of_something_else_under_the_same_name_is_not_used(cache: EngineCache, said: list[str]) -> None:
    made = cache.make(KEY, writes("weights"))
    manifest = json.loads((made.folder / MANIFEST).read_text())
    manifest["key"]["checkpoint"] = "another"
    (made.folder / MANIFEST).write_text(json.dumps(manifest))
    assert cache.find(KEY) is None and "made for something else" in said[0]


def test_an_interrupted_build_leaves_nothing(cache: EngineCache) -> None:
    def interrupted(folder: Path) -> Mapping[str, Any]:
        (folder / "graph.onnx").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.make(KEY, interrupted)
    assert cache.find(KEY) is None and list(cache.root.iterdir()) == []


def test_what_a_killed_build_left_is_not_used_and_removed(cache: EngineCache) -> None:
    folder = cache.make(KEY, writes("weights")).folder
    half = cache.root / f"{folder.name}.999999999.part"
    folder.rename(half)  # as if killed just before the end: complete to look at, but never renamed
    assert cache.find(KEY) is None
    cache.make(KEY, writes("weights"))
    assert cache.find(KEY) is not None and not half.exists()


def test_the_hash_of_a_checkpoint_is_that_of_its_content(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    first, second = (checkpoint_hash(tmp_path / name, ["model.safetensors"], root) for name in ("a", "b"))
    assert first == second, "the same content in another place"
    assert checkpoint_hash(tmp_path / "a", ["model.safetensors"], root) == first, "from the kept hashes"
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weightS")
    assert checkpoint_hash(tmp_path / "a", ["model.safetensors"], root) != first
    (root / "hashes.json").write_text("[")
    assert checkpoint_hash(tmp_path / "b", ["model.safetensors"], root) == second, "a damaged memo is made anew"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOLMOACT2_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "molmoact2_ros"
    monkeypatch.setenv("MOLMOACT2_CACHE", str(tmp_path / "own"))
    assert default_root() == tmp_path / "own"
