"""Exporting bags: which of them are to be trusted, their parts one after the other or at once, and the whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from molmoact2_ros.recording.episodes import Episode, episodes, read_episode
from molmoact2_ros.recording.export.dataset import PART, PROVENANCE, join_parts, write_part
from molmoact2_ros.recording.export.settings import ExportError, ExportOptions, require

Told = Callable[[Path, int, int], None]
"""Called with a bag, how many of its frames are done, and how many it has."""


@dataclass
class Report:
    """What an export came to.

    Attributes:
        dataset: where it is; None when nothing could be exported.
        exported: bags in it. refused: bag -> why it is not.
        frames, episodes: how many there are. gaps: bag -> what was missing where it was split.
        resumed: bags of which the part was there already.
    """

    dataset: Path | None = None
    exported: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    frames: int = 0
    episodes: int = 0
    gaps: dict[str, list[str]] = field(default_factory=dict)
    resumed: int = 0


def bags_in(paths: Iterable[Path]) -> list[Path]:
    """The bags that `paths` name: each is a bag or a folder of bags.

    Raises:
        FileNotFoundError: there is no such bag.
    """
    out: list[Path] = []
    for given in paths:
        path = given.expanduser().resolve()
        if path.is_file() or (path / "metadata.yaml").is_file() or any(path.glob("*.mcap")) or any(path.glob("*.db3")):
            out.append(path)
            continue
        found: list[Path] = []
        if path.is_dir():
            found = [e.path for e in episodes(path)]
            found += sorted(p.parent for p in path.glob("*/metadata.yaml") if p.parent not in found)
        if not found:
            raise FileNotFoundError(f"{given}: no bag, and no folder of bags")
        out += found
    names = [path.name for path in out]
    if len(set(out)) != len(out):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is named twice")
    return out


def bad(path: Path, own: bool, outcome: str = "") -> str:
    """Why a bag is not to be trained on; empty when it is.

    Args:
        own: it is a recording of this package, which says what is wrong with it.
        outcome: the only one wanted; empty: any.
    """
    if not own or not path.is_dir():
        return ""
    try:
        episode = read_episode(path)
    except ValueError:
        if outcome:
            return f"its outcome is not known, and {outcome} is asked for"
        return ""  # renamed, or of another program
    return why_not(episode, outcome)


def why_not(episode: Episode, outcome: str) -> str:
    """Why an episode is not to be trained on; empty when it is."""
    if not episode.whole:
        return "; ".join(episode.verdict)
    if episode.mark == "bad":
        return "marked bad"
    if outcome and episode.outcome != outcome:
        return f"its outcome is {episode.outcome or 'not known'}, and {outcome} is asked for"
    if episode.mark == "good":
        return ""  # a person has looked at it
    return "; ".join(episode.verdict)


def export(
    paths: Sequence[Path],
    target: Path,
    options: ExportOptions,
    *,
    include_bad: bool = False,
    outcome: str = "",
    jobs: int = 1,
    told: Told = lambda path, done, of: None,
) -> Report:
    """Export `paths` (bags) into the LeRobotDataset `target`. Bags that cannot be exported are left out and named.

    What was finished when an export ended early lies in a folder beside `target`, and is used by the next one.

    Raises:
        FileExistsError: `target` is there and is not what is asked for.
        ExportError: the bags do not fit each other, or the extra `dataset` is not installed.
    """
    require("lerobot", "datasets", "pyarrow", "av")
    report = Report()
    folder = target.with_name(f".{target.name}.parts")
    labels = labels_of(paths)
    chosen = []
    for path in paths:
        why = "" if include_bad else bad(path, not options.topics, outcome)
        if why:
            report.refused[labels[path]] = why
        else:
            chosen.append((path, folder / part_name(path, options)))
    if target.exists():
        if _same(target, [path.name for path, _ in chosen], options):
            report.dataset = target
            _count(report, json.loads((target / PROVENANCE).read_text())["bags"])
            report.resumed = len(report.exported)
            return report
        raise FileExistsError(f"{target} exists already; a dataset is never overwritten: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [(path, part) for path, part in chosen if not (part / PART).is_file()]
    report.resumed = len(chosen) - len(waiting)
    for path, why in _parts(waiting, options, jobs, told):
        if why:
            report.refused[labels[path]] = why
    finished = [part for path, part in chosen if labels[path] not in report.refused]
    if not finished:
        shutil.rmtree(folder, ignore_errors=True)
        return report
    about = join_parts(finished, target, options)
    report.dataset = target
    _count(report, about["bags"])
    shutil.rmtree(folder, ignore_errors=True)
    return report


def labels_of(paths: Sequence[Path]) -> dict[Path, str]:
    """What to call each bag: by its name, or whole where two folders have bags of one name."""
    names = [path.name for path in paths]
    return {path: path.name if names.count(path.name) == 1 else str(path) for path in paths}


def part_name(path: Path, options: ExportOptions) -> str:
    """The folder of a bag's part: another one when the bag or the options change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    seen = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(f"{path}{seen}{options.text()}".encode()).hexdigest()[:16]
    return f"{path.name}_{digest}"


def _parts(
    waiting: Sequence[tuple[Path, Path]], options: ExportOptions, jobs: int, told: Told
) -> Iterator[tuple[Path, str]]:
    """Each bag of `waiting` with why it was refused, as they are done."""
    if jobs <= 1:
        for path, part in waiting:
            yield path, _part(path, part, options, partial(told, path))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_part, path, part, options): path for path, part in waiting}
        try:
            for future in as_completed(futures):
                path = futures[future]
                told(path, 1, 1)
                yield path, future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _part(
    path: Path, part: Path, options: ExportOptions, step: Callable[[int, int], None] = lambda done, of: None
) -> str:
    """Write a part; returns why the bag is refused, or nothing."""
    try:
        write_part(path, part, options, step)
    except ExportError as error:
        return str(error)
    return ""


def _same(target: Path, names: list[str], options: ExportOptions) -> bool:
    """Whether `target` is already what is asked for."""
    try:
        about: dict[str, Any] = json.loads((target / PROVENANCE).read_text())
    except (OSError, ValueError):
        return False
    wanted = json.loads(options.text())
    return [bag["bag"] for bag in about["bags"]] == names and all(about.get(k) == v for k, v in wanted.items())


def _count(report: Report, bags: Sequence[dict[str, Any]]) -> None:
    report.exported = [bag["bag"] for bag in bags]
    report.episodes = sum(len(bag["episodes"]) for bag in bags)
    report.frames = sum(episode["frames"] for bag in bags for episode in bag["episodes"])
    report.gaps = {bag["bag"]: bag["gaps"] for bag in bags if bag["gaps"]}
