"""What a GPU's fixed sizes and addresses must not do to an answer, shown on a CPU.

Pins: graphs of other types or tables are other graphs; every row that is asked for is given, or it is an error; a
failed call, an image that makes NaN and a task that is too long leave the next calls as they were; the first call makes
every graph that later ones need; what happens between the graphs does not grow with the layers and never waits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, TASK, Frame, checkpoint, frames, hold

from molmoact2_ros.policy import Checkpoint
from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import BucketError, EagerRunner, ShapeBuckets, bucketed_stages
from molmoact2_ros.policy.backends.captured import first_line
from molmoact2_ros.policy.backends.export import export_graph
from molmoact2_ros.policy.backends.graphs import Graph, Port, vision_graph
from molmoact2_ros.policy.interface import UnendedSequenceError
from molmoact2_ros.policy.loading import load_model, load_processor
from molmoact2_ros.policy.reference import Answer, StageClock
from molmoact2_ros.policy.staged_model import StagedModel
from molmoact2_ros.policy.stages.preprocess import Preprocess
from molmoact2_ros.policy.stages.stage_set import torch_stages

LONG = " ".join([TASK] * 24)
BUCKETS = ShapeBuckets(prompt=192, tokens=256, windows=(1, 4, 24), outputs=24)


class Counted(EagerRunner):
    """Torch itself, which notes every graph."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, graph: Graph, buffers: dict[str, torch.Tensor]) -> None:
        self.ran.append(graph.key)
        super().run(graph, buffers)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    sizes = {"depth_gate": True, "depth_gate_per_layer": True}
    return checkpoint(tmp_path_factory.mktemp("buckets"), 2, seed=1, **sizes)


@pytest.fixture(scope="module")
def scenes() -> list[Frame]:
    return list(frames(5, 2, "nn"))


def bucketed(opened: Checkpoint, said: list[str] | None = None, runner: Any = None) -> StagedModel:
    plain = None if said is None else said.append

    def stages(model: Any, dof: int) -> Any:
        return bucketed_stages(model, dof, BUCKETS, runner or EagerRunner(), plain)

    return StagedModel(opened, CPU, torch.float32, print, None, stages)


def ask(model: StagedModel, frame: Frame, task: str = TASK) -> Answer:
    return model.predict(frame.images, task, frame.state, depth_cache=None, generator=torch.Generator().manual_seed(0))


def same(ours: Answer, theirs: Answer) -> None:
    np.testing.assert_array_equal(ours.depth_bins, theirs.depth_bins)
    np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-4)


def test_graphs_of_other_types_or_tables_are_other_graphs(opened: Checkpoint) -> None:
    stage = torch_stages(load_model(opened, CPU, torch.float32).model, 6).vision
    pixels, table = torch.zeros((1, 4, 588), dtype=torch.uint8), torch.zeros((4, 4), dtype=torch.int64)
    made = [
        vision_graph(stage, pixels, table),
        vision_graph(stage, pixels.float(), table),
        vision_graph(stage, pixels, table[:2]),
    ]
    assert len({graph.name for graph in made}) == 1 and len({graph.key for graph in made}) == 3
    assert vision_graph(stage, pixels + 1, table).key == made[0].key


def test_a_grid_of_more_cells_than_a_window_answers_like_the_reference(tmp_path: Path) -> None:
    wide = checkpoint(tmp_path, 1, seed=2, num_depth_codes=144)
    model = load_model(wide, CPU, torch.float32)
    buckets = buckets_for(wide, model.config, load_processor(wide.processor), 0)
    assert buckets.outputs == 147 and buckets.windows[-1] < 144
    hold(wide, frames(1, 1, "nc"), lambda model, dof: bucketed_stages(model, dof, buckets, EagerRunner()), row_cost=0.0)


def test_rows_that_no_graph_gives_are_an_error(opened: Checkpoint) -> None:
    decoder = bucketed_stages(load_model(opened, CPU, torch.float32).model, 6, BUCKETS, EagerRunner()).decoder
    rows = torch.randn(60, decoder.ln_f.weight.shape[0])
    with torch.inference_mode():
        assert decoder(rows, decoder.new_store(200), None, 24).shape[0] == 24
        with pytest.raises(BucketError, match=r"25 rows' states are asked for, .* gives 24"):
            decoder(rows, decoder.new_store(200), None, 25)
        store = decoder.new_store(200)
        decoder(rows[:1], store, None, 1)
        assert decoder(rows, store, None, 60).shape[0] == 60, "windows give all of their rows, one after the other"


def test_after_a_call_that_failed_the_next_one_answers_for_its_own_image(
    opened: Checkpoint, scenes: list[Frame]
) -> None:
    model, expected = bucketed(opened), ask(bucketed(opened), scenes[1])
    ask(model, scenes[0])
    with pytest.raises(BucketError):
        ask(model, scenes[1], LONG)
    same(ask(model, scenes[1]), expected)


def test_nan_of_one_image_is_gone_with_it(
    opened: Checkpoint, scenes: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = bucketed(opened), ask(bucketed(opened), scenes[1])
    longer = f"{TASK} {TASK}"
    with monkeypatch.context() as patched:
        see = model.stages.vision.encode
        patched.setattr(model.stages.vision, "encode", lambda *inputs: see(*inputs) * float("nan"))
        with pytest.raises(UnendedSequenceError):
            ask(model, scenes[0], longer)
    same(ask(model, scenes[1]), expected)
    again = ask(bucketed(opened), scenes[0])
    model.stages.vision._seen = []
    same(ask(model, scenes[0]), again)


def test_after_a_task_that_is_too_long_graphs_are_used_again(opened: Checkpoint, scenes: list[Frame]) -> None:
    said: list[str] = []
    runner = Counted()
    model = bucketed(opened, said, runner)
    expected = ask(model, scenes[0])
    runner.ran.clear()
    ask(model, scenes[0], LONG)
    assert not [key for key in runner.ran if key.startswith("decoder")] and len(said) == 1
    same(ask(model, scenes[0]), expected)
    assert [key for key in runner.ran if key.startswith("decoder")], "back to the graphs"


def test_the_first_call_makes_every_graph_that_later_ones_need(
    opened: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unended(*_: Any) -> Any:
        raise UnendedSequenceError("the model gave no <depth_end>")

    runner = Counted()
    model = bucketed(opened, None, runner)
    for index, frame in enumerate(frames(3, 2, "nnwcpw=s")):
        if index == 0:
            # As a made up image may do: the model answers nothing of use.
            monkeypatch.setattr(model, "_decode", unended)
            with pytest.raises(UnendedSequenceError):
                ask(model, frame)
            monkeypatch.undo()
            first = set(runner.ran)
            names = sorted(key.partition(":")[0] for key in first)
            assert names == ["context_256", "decoder_192_0_24"] + [
                f"decoder_{rows}_256_{rows}" for rows in (1, 24, 4)
            ] + ["step_30_256", "vision_1", "vision_2"]
        else:
            ask(model, frame)
    assert set(runner.ran) == first


class Operators(TorchDispatchMode):
    """Every operator that runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


def test_what_runs_outside_of_the_graphs_neither_grows_with_the_layers_nor_waits(tmp_path: Path) -> None:
    counts = []
    for layers in (2, 5):
        sizes = {"depth_gate": True, "depth_gate_per_layer": True, "text_layers": layers}
        opened = checkpoint(tmp_path / str(layers), 2, seed=3, **sizes)
        model = load_model(opened, CPU, torch.float32)
        flow, decoder, vision = (
            getattr(bucketed_stages(model.model, 6, BUCKETS, EagerRunner()), name)
            for name in ("flow", "decoder", "vision")
        )
        ids = torch.arange(40) % 30
        keys = torch.randn(layers, 40, decoder.kv_heads * decoder.head)
        table = torch.zeros((4, 4), dtype=torch.int64)
        vision._rows(table)
        with torch.inference_mode(), Operators() as seen:
            flow._conditioned(ids, keys, keys)
            decoder.embed(ids)
            vision._rows(table)
        counts.append(len(seen.ran))
        assert not [name for name in seen.ran if "_local_scalar_dense" in name or "nonzero" in name], "a host read"
    assert counts[0] == counts[1] and counts[0] < 60


def test_a_stage_on_a_gpu_does_not_wait_for_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []

    class Event:
        count = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            Event.count += 1
            self.at = float(Event.count)

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    clock = StageClock(torch.device("cuda"))
    with clock.stage("total"):
        for _ in range(2):
            with clock.stage("flow"):
                pass
    assert not waited
    assert clock.seconds() == {"flow": pytest.approx(0.002), "total": pytest.approx(0.005)} and len(waited) == 1


def test_resizing_is_compared_on_noise(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    processor = load_processor(opened.processor)
    config = load_model(opened, CPU, torch.float32).config
    stage = Preprocess(processor, config, opened.metadata, True, CPU, said.append)
    whole = stage._resized
    monkeypatch.setattr(stage, "_resized", lambda images: whole(np.roll(images, 1, axis=1)))
    black = np.zeros((60, 80, 3), np.uint8)
    assert torch.equal(whole(black[None])[0], stage._resized(black[None])[0]), "a black image does not tell them apart"
    stage.patches([black])
    assert len(said) == 1 and "differs from the reference" in said[0]


def test_a_graph_is_exported_with_examples_where_its_weights_are(tmp_path: Path, monkeypatch: Any) -> None:
    given: list[torch.Tensor] = []

    def export(module: Any, examples: tuple[torch.Tensor, ...], *_: Any, **__: Any) -> Any:
        given.extend(examples)
        return SimpleNamespace(save=lambda *_, **__: None)

    monkeypatch.setattr(torch.onnx, "export", export)
    module = torch.nn.Linear(3, 2, device="meta")
    ports = (Port("x", (4, 3), torch.float32),), (Port("y", (4, 2), torch.float32),)
    export_graph(Graph("linear", module, *ports), tmp_path / "linear.onnx")
    assert [x.device.type for x in given] == ["meta"]


def test_an_error_without_words_has_a_first_line() -> None:
    assert first_line(RuntimeError()) == "RuntimeError: no message"
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
