"""`molmoact2 bench policy`: one call of the policy by stage, the reference and every backend, base and depth reasoning.

Each backend has one model in memory that serves all cases; a round asks every case of every backend once, so that the
machine's moods meet them all (the full size: backend after backend). What is asked is the same for all of them
(`policy_calls.py`).
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from molmoact2_ros.benchmarking.machine import StolenTime
from molmoact2_ros.benchmarking.policy.calls import TASK, Call, calls
from molmoact2_ros.benchmarking.policy.lanes import WARM_UP, Lane, Measured, Row
from molmoact2_ros.benchmarking.policy.report import result_of, write_section
from molmoact2_ros.benchmarking.policy.settings import BACKENDS, IDENTICAL, PolicyBench, think
from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.policy import open_checkpoint
from molmoact2_ros.training.random_model import FULL_BYTES, random_config, random_model, write_random_checkpoint

FLIP_FRAMES = {"small": 20, "mid": 4, "full": 10}
"""Scenes on which cheaper kinds of products are held against float32's."""


def bench_policy(settings: PolicyBench, page: Path) -> tuple[Path, dict[str, Any]]:
    """Measure, put the table into `page` (a section for each model, number of cameras and chunk), return both.

    Raises:
        ValueError, CheckpointError: the settings or the checkpoint do not fit, or the machine lacks the memory.
    """
    import torch

    device, dtype = _device(settings)
    if settings.threads > 0:
        torch.set_num_threads(settings.threads)
    robot = embodiment(settings.robot)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(settings, robot, Path(scratch), device, dtype)
        measured = bench.run()
    result = result_of(settings, measured)
    write_section(page, settings, measured, result, load_before, bench.where)
    return page, result


def bench_policy_matrix(
    settings: PolicyBench, page: Path, cameras: Sequence[int] | None = None, chunks: Sequence[int] | None = None
) -> tuple[Path, dict[str, Any]]:
    """As `measure`, for each of `cameras` and `chunks`; None: two and three cameras with chunks of 10, 15 and 30 rows
    for the full size, else what `settings` says. The result is the first one's, with all of them under `runs`.

    Raises:
        ValueError, CheckpointError: as `measure`.
    """
    full = settings.size == "full" and not settings.checkpoint
    cameras = cameras or ((2, 3) if full else (settings.cameras,))
    chunks = chunks or ((10, 15, 30) if full else (settings.chunk,))
    results = []
    for count in cameras:
        for rows in chunks:
            page, result = bench_policy(replace(settings, cameras=count, chunk=rows), page)
            results.append(result)
    return page, results[0] if len(results) == 1 else {**results[0], "runs": results}


def _device(settings: PolicyBench) -> tuple[Any, Any]:
    """Device and type of the weights. Refuses the full size where it does not fit."""
    import torch

    name = settings.device
    if name == "auto":
        name = "cuda" if settings.size == "full" and not settings.checkpoint else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--size {settings.size} on a GPU: torch sees none here; run it on a machine with "
            f"{FULL_BYTES / 1e9:.0f} GB of free GPU memory, or use --size mid on a CPU"
        )
    if settings.size == "full" and not settings.checkpoint:
        if name == "cpu":
            raise ValueError("--size full runs on a GPU only; use --size mid on a CPU")
        free, _ = torch.cuda.mem_get_info()
        if free < FULL_BYTES:
            raise ValueError(
                f"--size full needs {FULL_BYTES / 1e9:.0f} GB of free GPU memory, {free / 1e9:.1f} GB are free; end "
                "what else uses it, or use --size mid"
            )
    return torch.device(name), torch.bfloat16 if name == "cuda" else torch.float32


class _Bench:
    """One model's measurement on one device."""

    def __init__(self, settings: PolicyBench, robot: Embodiment, scratch: Path, device: Any, dtype: Any) -> None:
        self.settings, self.robot, self.device, self.dtype = settings, robot, device, dtype
        self.scratch = scratch
        self.on_device = settings.size == "full" and not settings.checkpoint
        """The weights are made where they are used, and lie in no file."""
        chosen: str | Path = settings.checkpoint
        if not chosen:
            chosen = write_random_checkpoint(
                scratch / "checkpoint", settings.size, robot, TASK, horizon=settings.chunk, weights=not self.on_device
            )
        opened = open_checkpoint(chosen, robot, robot.norm_tag)
        names = [*opened.cameras, "side", "rear"][: settings.cameras]
        self.opened = replace(opened, cameras=tuple(names))
        self.where = _where(device, dtype)

    def run(self) -> Measured:
        """Every backend; the first of ours says what the codes are."""
        from molmoact2_ros.benchmarking.policy.memory import in_use, peak_bytes, start_peak

        backends = self.settings.backends or BACKENDS
        # The calls come from a backend of ours: torch unless another one alone was asked for.
        backends = tuple(sorted(backends, key=lambda name: (name == "reference", name != "torch")))
        cases = self._cases()
        rows: list[Row] = []
        peaks: dict[str, int] = {}
        floor = in_use(self.device)
        stolen: list[float] = []
        # A GPU need not hold two models of the full size.
        for group in [(name,) for name in backends] if self.on_device else [backends]:
            with ExitStack() as opened:
                lanes: list[Lane] = []
                for backend in group:
                    others = start_peak(self.device)
                    models = opened.enter_context(self._models(backend))
                    if models is not None:
                        lanes += self._lanes(backend, models, cases)
                        peaks[backend] = peak_bytes(self.device) - others + floor
                    del models
                taken = StolenTime()
                self._rounds(lanes)
                stolen.append(taken.share())
                rows += [lane.row() for lane in lanes]
                lanes.clear()
        return Measured(rows, peaks, max(stolen, default=0.0), self._flips())

    def _cases(self) -> dict[str, list[Call]]:
        """The calls of every case, as many as there are rounds."""
        settings, random = self.settings, np.random.default_rng(0)
        state = self.robot.model_from_joints(self.robot.rest_position)
        rounds = settings.repeats + WARM_UP
        cases: dict[str, list[Call]] = {}
        with self._models("torch") as models:
            assert models is not None
            base, thinking = models
            # Two images in turn: none is the last one, and two are enough.
            cases["base"] = calls(base, state, random, settings.cameras, 0.0, 2)
            if thinking is not None:
                for share in settings.shares:
                    cases[think(share)] = calls(thinking, state, random, settings.cameras, share, 2)
                first = cases[think(settings.shares[0])]
                images = first[0].images
                # Nothing changes, so the codes of the call before are the answer.
                cases[IDENTICAL] = [replace(call, images=images, before=images[0], answer=call.codes) for call in first]
        return {name: [made[index % 2] for index in range(rounds)] for name, made in cases.items()}

    def _lanes(self, backend: str, models: tuple[Any, Any], cases: Mapping[str, list[Call]]) -> list[Lane]:
        """A lane for each case; every one is warm, and the copies of two of them are counted."""
        from molmoact2_ros.benchmarking.policy.memory import bytes_copied

        base, thinking = models
        of_case = {name: base if name == "base" else thinking for name in cases}
        lanes = [
            Lane(backend, name, of_case[name], made, episode=of_case[name].new_episode())
            for name, made in cases.items()
        ]
        for lane in lanes:
            lane.ask(lane.calls[0])
            if lane.case in ("base", self.settings.ratio_case):
                lane.copied = bytes_copied(lambda lane=lane: lane.ask(lane.calls[1]), self.device)  # type: ignore[misc]
        # Only ours makes use of identical images.
        return [lane for lane in lanes if lane.case != IDENTICAL or backend != "reference"]

    def _rounds(self, lanes: Sequence[Lane]) -> None:
        """One call of each lane in turn, so that a busy moment of the machine meets them all."""
        for index in range(self.settings.repeats + WARM_UP):
            for lane in lanes:
                if lane.case != IDENTICAL:
                    lane.answers.append(lane.ask(lane.calls[index]))
        for lane in lanes:
            if lane.case == IDENTICAL:  # nothing may come between two calls with the same images
                lane.answers = [lane.ask(call) for call in (lane.calls[0], *lane.calls)][1:]

    @contextmanager
    def _models(self, backend: str) -> Iterator[tuple[Any, Any] | None]:
        """A backend's model without depth reasoning and with it (None where the checkpoint has none), on one set of
        weights; None, and a line that says why, where this machine cannot run the backend."""
        import torch

        from molmoact2_ros.policy.options import BackendMissingError
        from molmoact2_ros.policy.reference import ReferenceModel
        from molmoact2_ros.policy.staged_model import StagedModel

        plain = replace(self.opened, depth_side=None)
        first = self.opened
        try:
            open_these = None if backend == "reference" else self._stages(backend)
        except BackendMissingError as error:
            if backend in self.settings.backends:
                raise
            print(f"not measured: {error}", file=sys.stderr)
            yield None
            return
        loaded = self._weights()
        if backend == "tensorrt":
            from molmoact2_ros.policy.loading import load_model

            # Engines hold the weights on the GPU; torch's never get there.
            loaded = load_model(first, torch.device("cpu"), self.dtype)
        thinking: Any
        if backend == "reference":
            thinking = ReferenceModel(first, self.device, self.dtype, loaded)
            base = copy.copy(thinking)
            base.checkpoint = plain
        else:
            assert open_these is not None
            thinking = StagedModel(first, self.device, self.dtype, _quiet, None, open_these, loaded)
            stages, weights = thinking.stages, thinking.model
            base = StagedModel(plain, self.device, self.dtype, _quiet, None, lambda *_: stages, weights)
        try:
            yield base, thinking if self.opened.depth_side is not None else None
        finally:
            del base, thinking, loaded
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _stages(self, backend: str) -> Any:
        from molmoact2_ros.policy.backends.cache import EngineCache, default_root
        from molmoact2_ros.policy.backends.opening import open_stages
        from molmoact2_ros.policy.options import BackendMissingError

        if self.on_device and backend != "torch":
            raise BackendMissingError(f"backend {backend} compiles files, and the full-size random model lies in none")
        # What is compiled for a random model is of no use to anybody later; a cache that was named is used though.
        named = self.settings.checkpoint or os.environ.get("MOLMOACT2_CACHE")
        root = default_root() if named else self.scratch / "compiled"
        return open_stages(backend, self.opened, self.device, None, EngineCache(root, _quiet), _quiet)

    def _weights(self) -> Any:
        if not self.on_device:
            return None
        model = random_model(random_config(self.settings.size, self.robot, TASK), self.device, self.dtype)
        model.config._name_or_path = str(self.opened.directory)
        return model

    def _flips(self) -> dict[str, Any]:
        """bfloat16, and the products on a CPU's matrix unit where layers use it, against plain float32, by torch."""
        import torch

        from molmoact2_ros.benchmarking.policy.flips import count_flips
        from molmoact2_ros.policy.backends.amx import PIECES

        frames = FLIP_FRAMES.get(self.settings.size if not self.settings.checkpoint else "small", 0)
        if self.opened.depth_side is None or not frames:
            return {}
        if self.on_device and self.device.type == "cuda" and torch.cuda.mem_get_info()[0] < 3 * FULL_BYTES:
            print("bfloat16 is not held against float32: both do not fit into this GPU's memory", file=sys.stderr)
            return {}
        whole = self._torch(torch.float32, "off")
        kinds = {"bfloat16": (torch.bfloat16, "off")}
        if self.device.type == "cpu":
            kinds.update({f"AMX {name}": (torch.float32, name) for name in PIECES})
        state, found = self.robot.model_from_joints(self.robot.rest_position), {}
        for name, kind in kinds.items():
            model = self._torch(*kind)
            if model is not None:
                found[name] = count_flips(model, whole, state, self.settings.cameras, frames)
            del model  # before the next one is loaded
        return found

    def _torch(self, dtype: Any, amx: str) -> Any:
        """Torch's model with its weights in `dtype` and its products by `amx`; None where no layer uses that."""
        from molmoact2_ros.policy.backends.amx import PieceLinear
        from molmoact2_ros.policy.backends.opening import open_stages
        from molmoact2_ros.policy.options import InferenceOptions
        from molmoact2_ros.policy.staged_model import StagedModel

        loaded = self._weights()
        if loaded is not None:
            for parameter in loaded.parameters():  # and no buffer: rotary frequencies are float32 in either
                parameter.data = parameter.data.to(dtype)
        open_these = open_stages(
            "torch", self.opened, self.device, InferenceOptions(amx=amx, cuda_graphs=False), log=_quiet
        )
        model = StagedModel(self.opened, self.device, dtype, _quiet, None, open_these, loaded)
        if amx != "off" and not any(isinstance(layer, PieceLinear) for layer in model.stages.decoder.modules()):
            return None
        return model


def _where(device: Any, dtype: Any) -> str:
    """Device and type in words."""
    import torch

    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{name}, {str(dtype).removeprefix('torch.')}"


def _quiet(text: str) -> None:
    """Notes about speed do not belong between the lines of a table."""
