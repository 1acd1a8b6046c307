"""`molmoact2 compile`: the files that a backend runs, built, held against torch and kept, with a table of how alike."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.policy.backends.build import Agreement, ParityError, Say, exported_all, free_graphs, image_sample
from molmoact2_ros.policy.backends.cache import EngineCache, default_root
from molmoact2_ros.policy.backends.tensorrt_engine import Built
from molmoact2_ros.policy.backends.tensorrt_library import parse_capabilities
from molmoact2_ros.policy.checkpoint import Checkpoint, open_checkpoint
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.options import ENGINE_PRECISIONS
from molmoact2_ros.policy.stages.stage_set import torch_stages
from molmoact2_ros.share import bundled_checkpoint

PRECISIONS = {"onnxruntime": ("float32",), "tensorrt": ENGINE_PRECISIONS}
"""What each backend that needs files of its own computes in; the first is its default."""

TASK = "pick up the red cube"
WriteRandom = Callable[[Path, Embodiment, str], object]
"""Writes a small random checkpoint of a robot, for a task, into a folder; the self-test compiles it."""


@dataclass(frozen=True)
class Request:
    """What `molmoact2 compile` was asked for; empty values stand for defaults, `tokens` widens the buckets, `targets`
    are the GPUs that engines are built for, as "sm89".

    Raises:
        ValueError: the backend needs no compiling, or does not compute in this precision.
    """

    checkpoint: str = ""
    backend: str = "onnxruntime"
    precision: str = ""
    robot: str = "so101"
    norm_tag: str = ""
    cameras: tuple[str, ...] = ()
    tokens: int = 0
    cache: str = ""
    self_test: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.backend not in PRECISIONS:
            raise ValueError(f"backend {self.backend!r} needs no compiling; use {' or '.join(PRECISIONS)}")
        if self.precision == "fp8":
            raise ValueError("precision fp8 is not built by this version; use bf16, or fp16 for images and flow")
        if self.precision and self.precision not in PRECISIONS[self.backend]:
            known = ", ".join(PRECISIONS[self.backend])
            raise ValueError(f"backend {self.backend} has no precision {self.precision!r}; use {known}")
        if self.targets and self.backend != "tensorrt":
            raise ValueError(f"--for names GPUs, which backend {self.backend} does not use")
        parse_capabilities(self.targets)

    @property
    def kind(self) -> str:
        """The precision, or the backend's default."""
        return self.precision or PRECISIONS[self.backend][0]


def run_compile(request: Request, write_random: WriteRandom) -> bool:
    """Compile as asked, with a progress display and a table; False where a graph was refused.

    Args:
        write_random: what `self_test` compiles.

    Raises:
        BackendMissingError: the backend is not installed, or this machine cannot run it.
        CheckpointError: the checkpoint does not fit.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    robot = embodiment(request.robot)
    console = Console(stderr=True)
    root = Path(request.cache).expanduser() if request.cache else default_root()
    store = EngineCache(root, lambda text: console.print(text, highlight=False))
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def say(graph: str, doing: str) -> None:
            if graph not in tasks:
                tasks[graph] = bar.add_task("", total=1)
            ended = doing in ("done", "kept")
            words = {"kept": "was there already"}.get(doing, doing)
            bar.update(tasks[graph], description=f"{graph}: {words}", completed=int(ended))

        try:
            if request.self_test:
                built, rows = self_test(request, robot, say, write_random)
            else:
                built, rows = compile_checkpoint(_opened(request, robot), robot, request, store, say)
        except ParityError as error:
            bar.stop()
            print(f"molmoact2: refused: {error}", file=sys.stderr)
            return False
    kept = "of a small random model" if request.self_test else f"in {root}"
    if built:
        show_engines(built, Console())
    if rows:
        show(rows, Console())
        print(f"backend {request.backend}, {request.kind}: {len(rows)} comparisons agree; files {kept}")
    else:
        print(
            f"backend {request.backend}, {request.kind}: {len(built)} engines for {', '.join(request.targets)}; files "
            f"{kept}. Copy that folder to the robot's machine, into $MOLMOACT2_CACHE or ~/.cache/molmoact2_ros: there "
            "each engine is held against torch before its first use."
        )
    return True


def _opened(request: Request, robot: Embodiment) -> Checkpoint:
    chosen = request.checkpoint or bundled_checkpoint(robot.family)
    return open_checkpoint(chosen, robot, request.norm_tag or robot.norm_tag, request.cameras or None)


def compile_checkpoint(
    checkpoint: Checkpoint, robot: Embodiment, request: Request, store: EngineCache, say: Say
) -> tuple[dict[str, Built], list[Agreement]]:
    """Build what is missing, and return what is known of engines, and how alike each graph is to torch: nothing where
    engines are for another machine.

    Raises:
        ParityError: a graph differs; the good ones before it are kept.
        BackendMissingError: the backend is not installed, or this machine cannot run it.
    """
    if request.backend == "tensorrt":
        from molmoact2_ros.policy.backends.tensorrt_build import build_engines

        targets = parse_capabilities(request.targets)
        return build_engines(checkpoint, robot, request.kind, request.tokens, targets, store, say)
    model = load_model(checkpoint, torch.device("cpu"), torch.float32)
    stages = torch_stages(model.model, robot.dof)
    graphs = free_graphs(stages, *image_sample(load_processor(checkpoint.processor)))
    rows = [Agreement(graph.name, **facts) for graph, _, facts in exported_all(graphs, checkpoint, store, say)]
    return {}, rows


def self_test(
    request: Request, robot: Embodiment, say: Say, write_random: WriteRandom
) -> tuple[dict[str, Built], list[Agreement]]:
    """Compile a small random model from nothing, and run whole calls of it against torch where it runs here.

    Raises:
        ParityError: a stage, the codes or the actions differ.
    """
    from molmoact2_ros.policy.backends.trial import run_trial

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        directory.mkdir()
        write_random(directory, robot, TASK)
        opened = open_checkpoint(directory, robot, robot.norm_tag)
        store = EngineCache(Path(scratch) / "cache", lambda text: None)
        built, found = compile_checkpoint(opened, robot, request, store, say)
        if found:
            say("whole calls", "running")
            found += run_trial(opened, robot, request.backend, request.kind, store, TASK)
            say("whole calls", "done")
        return built, found


def show_engines(built: Mapping[str, Built], console: Any) -> None:
    """Print how large every engine is."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("engine")
    for name in ("layers", "weights, MB", "engine, MB", "copies", "seconds"):
        shown.add_column(name, justify="right")
    for stage, about in built.items():
        copies = f"{about.bytes / about.weights:.2f}" if about.weights else ""
        sizes = (f"{size / 1e6:.1f}" for size in (about.weights, about.bytes))
        shown.add_row(stage, str(about.layers), *sizes, copies, f"{about.seconds:.0f}")
    console.print(shown)


def show(rows: Sequence[Agreement], console: Any) -> None:
    """Print how alike every graph is."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("stage")
    for name in ("cosine", "largest error", "largest value"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(row.graph, f"{row.cosine:.7f}", f"{row.max_error:.2e}", f"{row.largest:.3g}")
    console.print(shown)
