"""`molmoact2 bench policy`: one call of the policy by stage, reference against torch, base against depth reasoning.

With random weights a change of the picture says nothing about how many codes change. So the codes are made to differ:
first the answer for the changed picture is computed; then the draft is that answer with every second changed cell's
code altered. Unchanged cells carry the same codes in draft and answer, so both backends get the same answer again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact2_ros.benchmarking.loop import machine
from molmoact2_ros.benchmarking.random_model import write_random_checkpoint
from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.policy import Checkpoint, open_checkpoint

TASK = "pick up the red cube"
PICTURE = (240, 320)
STAGES = ("preprocess", "vision", "prefill", "depth", "flow", "total")
WARM_UP = 2
PAGE_HEAD = "# One call of the policy"


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        size: of a random model, see `random_model.SIZES`. checkpoint: a trained one instead, or empty.
        cameras: pictures a call, 1 to 3. changed: share of the depth cells that changed. repeats: calls for a median.
        threads: of torch.
    """

    size: str
    checkpoint: str
    cameras: int
    changed: float
    repeats: int
    threads: int
    robot: str = "so101"

    def __post_init__(self) -> None:
        if not 1 <= self.cameras <= 3:
            raise ValueError(f"--cameras must be 1 to 3, got {self.cameras}")
        if not 0.0 <= self.changed <= 1.0:
            raise ValueError(f"--changed is a share of 0 to 1, got {self.changed}")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, got {self.repeats}")


@dataclass(frozen=True)
class Row:
    """One case with one backend: medians by stage, the fastest call, forwards, cells anew, wrong codes in the draft."""

    backend: str
    case: str
    milliseconds: Mapping[str, float]
    best_ms: float
    forwards: int
    cells: int
    wrong: int


@dataclass(frozen=True)
class Call:
    """What goes into one call: pictures, and the main picture and codes of the call before (None without depth)."""

    images: list[NDArray[np.uint8]]
    before: NDArray[np.uint8]
    codes: NDArray[np.int64] | None


def measure(settings: Settings, page: Path) -> tuple[Path, dict[str, Any]]:
    """Measure, put the table into `page` (a section for each model and number of cameras), return both.

    Raises:
        ValueError, CheckpointError: the settings or the checkpoint do not fit.
    """
    import torch

    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    robot = embodiment(settings.robot)
    with tempfile.TemporaryDirectory() as scratch:
        chosen: str | Path = settings.checkpoint
        if not settings.checkpoint:
            chosen = write_random_checkpoint(Path(scratch), settings.size, robot, TASK)
        opened = open_checkpoint(chosen, robot, robot.norm_tag)
        names = [*opened.cameras, "side", "rear"][: settings.cameras]
        opened = replace(opened, cameras=tuple(names))
        load_before = os.getloadavg()[0]
        rows = _rows(settings, opened, robot)
    result = _result(settings, rows)
    write_section(page, settings, rows, result, load_before)
    return page, result


def _rows(settings: Settings, opened: Checkpoint, robot: Embodiment) -> list[Row]:
    """All cases, one call of each in turn, so that a busy moment of the machine meets them all."""
    import torch

    from molmoact2_ros.policy.fast_model import FastModel
    from molmoact2_ros.policy.reference import ReferenceModel

    cpu, kind = torch.device("cpu"), torch.float32
    random = np.random.default_rng(0)
    state = robot.model_from_joints(robot.rest_position)
    lanes: list[_Lane] = []
    for which in (replace(opened, depth_side=None), opened)[: 1 if opened.depth_side is None else 2]:
        shares = {"base": 0.0}
        if which is opened:
            shares = {"think, unchanged": 0.0, f"think, {settings.changed:.0%} changed": settings.changed}
        models = {"torch": FastModel(which, cpu, kind, print), "reference": ReferenceModel(which, cpu, kind)}
        for case, share in shares.items():
            calls = _calls(models["torch"], which, state, random, settings, share)
            lanes += [_Lane(backend, case, model, calls) for backend, model in models.items()]
            if case == "think, unchanged":
                same = [replace(call, images=calls[0].images, before=calls[0].images[0]) for call in calls]
                # A model of its own: the calls of the others come between.
                lanes.append(_Lane("torch", "think, identical pictures", FastModel(which, cpu, kind, print), same))
    lanes.sort(key=lambda lane: lane.backend == "reference")
    for index in range(settings.repeats + WARM_UP):
        for lane in lanes:
            lane.answers.append(_answer(lane.model, _state(state, index), lane.calls[index]))
    return [lane.row() for lane in lanes]


@dataclass
class _Lane:
    """One case with one backend, its calls and what came of them."""

    backend: str
    case: str
    model: Any
    calls: Sequence[Call]
    answers: list[Any] = field(default_factory=list)

    def row(self) -> Row:
        """Medians and the fastest call, without the warm-up."""
        kept = list(zip(self.calls, self.answers, strict=True))[WARM_UP:]
        times = {stage: statistics.median(answer.timings_ms[stage] for _, answer in kept) for stage in STAGES}
        updated = [0 if answer.depth_updated is None else int(answer.depth_updated.sum()) for _, answer in kept]
        wrong = [0 if call.codes is None else int((call.codes != answer.depth_bins).sum()) for call, answer in kept]
        return Row(
            self.backend,
            self.case,
            times,
            min(answer.timings_ms["total"] for _, answer in kept),
            round(statistics.median(answer.forwards for _, answer in kept)),
            round(statistics.median(updated)),
            round(statistics.median(wrong)),
        )


def _calls(
    model: Any,
    opened: Checkpoint,
    state: NDArray[np.float64],
    random: np.random.Generator,
    settings: Settings,
    share: float,
) -> list[Call]:
    """Calls whose pictures all differ by noise, and by `share` of the main picture's cells from the one before."""
    scenes = [_scene(random) for _ in range(settings.cameras)]
    side = opened.depth_side
    changed = scenes[0].copy()
    if side is not None:
        for cell in random.choice(side * side, round(share * side * side), replace=False):
            y, x = (np.array(PICTURE) / side * np.array(divmod(int(cell), side))).astype(int)
            height, width = (np.array(PICTURE) // side).tolist()
            changed[y + 2 : y + height - 2, x + 2 : x + width - 2] ^= 0xC3
    replayed = None
    if side is not None:
        model.reset()
        replayed = _answer(model, state, Call(scenes, scenes[0], None)).depth_bins
    calls = []
    for index in range(settings.repeats + WARM_UP):
        before = _noisy(scenes[0], random)
        images = [_noisy(changed, random), *(_noisy(scene, random) for scene in scenes[1:])]
        calls.append(Call(images, before, _draft(model, _state(state, index), before, images, replayed, random)))
    return calls


def _draft(
    model: Any,
    state: NDArray[np.float64],
    before: NDArray[np.uint8],
    images: list[NDArray[np.uint8]],
    replayed: NDArray[np.int64] | None,
    random: np.random.Generator,
) -> NDArray[np.int64] | None:
    """Codes of the call before, of which every second changed cell's is wrong; see the module."""
    if replayed is None:
        return None
    answer = _answer(model, state, Call(images, before, replayed))
    model.reset()
    codes = np.array(answer.depth_bins)
    cells = np.flatnonzero(answer.depth_updated)
    wrong = random.permutation(cells)[: (len(cells) + 1) // 2]
    codes[wrong] = (codes[wrong] + 1 + random.integers(0, 126, len(wrong))) % 128
    return codes


def _answer(model: Any, state: NDArray[np.float64], call: Call) -> Any:
    import torch

    from molmoact2_ros.policy.fast_model import FastModel
    from molmoact2_ros.policy.stages.change import see

    cache: dict[str, Any] | None = None
    side = model.checkpoint.depth_side
    if call.codes is not None and side is not None:
        cache = {"image": call.before, "depth_bins": call.codes}
        if isinstance(model, FastModel):
            # As after a call: the picture's cells are kept, and the codes are the draft.
            cache["cells"] = see(call.before, side)
            model.draft = [int(code) for code in call.codes]
    generator = torch.Generator().manual_seed(0)
    return model.predict(call.images, TASK, state, depth_cache=cache, generator=generator)


def _state(state: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """The state of call `index`; they differ, so that no prompt is the last one."""
    return state + 0.5 * (index % 5)


def _scene(random: np.random.Generator) -> NDArray[np.uint8]:
    coarse = random.integers(30, 220, (12, 16, 3)).astype(np.uint8)
    picture: NDArray[np.uint8] = np.kron(coarse, np.ones((20, 20, 1), np.uint8))
    return picture


def _noisy(picture: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of a camera: no picture is bit for bit the last one, and no cell changes by it."""
    return np.clip(picture.astype(np.int16) + random.integers(-2, 3, picture.shape), 0, 255).astype(np.uint8)


def _result(settings: Settings, rows: Sequence[Row]) -> dict[str, Any]:
    times = {(row.backend, row.case): row.best_ms for row in rows}
    case = f"think, {settings.changed:.0%} changed"
    ratios: dict[str, float | None] = {"think_over_base": None, "ours_over_reference": None}
    if ("torch", case) in times:
        ratios["think_over_base"] = round(times["torch", case] / times["torch", "base"], 3)
        ratios["ours_over_reference"] = round(times["torch", case] / times["reference", case], 3)
    else:
        ratios["ours_over_reference"] = round(times["torch", "base"] / times["reference", "base"], 3)
    return {**asdict(settings), **ratios, "rows": [asdict(row) for row in rows]}


def write_section(
    page: Path, settings: Settings, rows: Sequence[Row], result: Mapping[str, Any], load_before: float
) -> None:
    """Put the measurement into `page`, in the place of an older one of the same model and number of cameras."""
    name = f"checkpoint {Path(settings.checkpoint).name}" if settings.checkpoint else f"random model, {settings.size}"
    title = f"## {name}, {settings.cameras} camera{'s' if settings.cameras > 1 else ''}, CPU"
    head = "| backend | case | " + " | ".join(STAGES) + " | best | forwards | cells anew | wrong in draft |"
    lines = [title, ""]
    lines += [f"- Date: {date.today().isoformat()}", *(f"- {key}: {value}" for key, value in machine().items())]
    lines += [
        f"- float32, {settings.threads or 'all'} threads, median of {settings.repeats} calls, pictures of "
        f"{PICTURE[1]} x {PICTURE[0]}, load average before the run {load_before:.1f}",
        f"- Best calls: think over base (torch) {result['think_over_base']}, torch over reference "
        f"{result['ours_over_reference']}",
        "",
        head,
        "|---" * (len(STAGES) + 6) + "|",
    ]
    for row in rows:
        times = " | ".join(f"{row.milliseconds[stage]:.1f}" for stage in STAGES)
        lines.append(
            f"| {row.backend} | {row.case} | {times} | {row.best_ms:.1f} | {row.forwards} | {row.cells} | {row.wrong} |"
        )
    intro = [
        PAGE_HEAD,
        "",
        "Written by `molmoact2 bench policy`. Medians in milliseconds by stage, without overlap; `best` is the fastest",
        "call, which other work on the machine disturbs least, and what the ratios are made of. `base` runs the same",
        "weights with the prompt that asks for no depth. Every picture differs from the last by camera noise, so every",
        "call encodes all of them, except in `identical pictures` (a frame used twice; only the state is new). In the",
        "changed case the draft has a wrong code in every second changed cell; with random weights it is made so (see",
        "`benchmarking/policy.py`).",
    ]
    sections: dict[str, str] = {}
    if page.is_file():
        for part in page.read_text().split("\n## ")[1:]:
            sections["## " + part.splitlines()[0]] = "## " + part.rstrip()
    sections[title] = "\n".join(lines)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(intro) + "\n\n" + "\n\n".join(sections.values()) + "\n")
