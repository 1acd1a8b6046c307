"""`molmoact2 bench policy` measures what it says: every case with every backend, drafts that are half wrong, a page
whose other sections stay; and the full size is described truly and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_checkpoints import ROBOT, TINY, make_checkpoint

from molmoact2_ros.benchmarking.policy import bench
from molmoact2_ros.benchmarking.policy.bench import bench_policy, bench_policy_matrix
from molmoact2_ros.benchmarking.policy.flips import count_flips
from molmoact2_ros.benchmarking.policy.lanes import STAGES, Measured, Row
from molmoact2_ros.benchmarking.policy.memory import bytes_copied, peak_bytes, start_peak
from molmoact2_ros.benchmarking.policy.report import result_of, write_section
from molmoact2_ros.benchmarking.policy.settings import IDENTICAL, PolicyBench, think
from molmoact2_ros.cli import parser, run
from molmoact2_ros.policy import open_checkpoint
from molmoact2_ros.policy.backends import amx
from molmoact2_ros.policy.loading import empty_model
from molmoact2_ros.policy.reference import ReferenceModel
from molmoact2_ros.policy.staged_model import StagedModel
from molmoact2_ros.training import random_model

CPU = torch.device("cpu")
TASK = "pick up the red cube"


def test_a_run_measures_every_case_and_writes_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_model.SIZES, "small", TINY)
    monkeypatch.setitem(bench.FLIP_FRAMES, "small", 2)
    page = tmp_path / "deep" / "policy.md"
    backends = ("torch", "reference")
    settings = PolicyBench(cameras=3, changed=0.45, repeats=1, threads=1, backends=backends)
    written, result = bench_policy(settings, page)
    assert written == page
    rows = {(row["backend"], row["case"]): row for row in result["rows"]}
    case = "think, 45% changed"
    assert set(rows) == {*((name, which) for name in backends for which in ("base", case)), ("torch", IDENTICAL)}
    assert rows["torch", "base"]["forwards"] == rows["reference", "base"]["forwards"] == 1
    assert rows["torch", IDENTICAL]["forwards"] == 1 and rows["torch", IDENTICAL]["cells"] == 0
    for backend in backends:
        changed = rows[backend, case]
        assert (changed["cells"], changed["wrong"]) == (4, 2), "9 cells, 4 changed, every second code wrong"
        assert changed["other_codes"] == 0, "float32 gives the same codes"
        assert changed["copied"]["within"] > 0 and result["peak_bytes"][backend] > 0
    assert rows["reference", case]["forwards"] > rows["torch", case]["forwards"]
    assert result["ours"] == "torch" and result["think_over_base"] > 0 and result["ours_over_reference"] > 0
    assert result["flips"]["bfloat16"]["cells"] == 18 and set(result["flips"]) == {"bfloat16"}, "no layer is large"
    text = page.read_text()
    assert "## random model, small, 3 cameras, 45% changed, CPU, float32" in text and "torch 2." in text


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL, as on ARM")
def test_products_on_the_matrix_unit_are_held_against_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_model.SIZES, "small", TINY)
    monkeypatch.setitem(bench.FLIP_FRAMES, "small", 1)
    monkeypatch.setattr(amx, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(amx, "reason_against", lambda: "")  # MKL multiplies bfloat16 without the unit too, slowly
    settings = PolicyBench(cameras=1, changed=0.1, repeats=1, threads=1, backends=("torch",))
    _, result = bench_policy(settings, tmp_path / "policy.md")
    assert set(result["flips"]) == {"bfloat16", "AMX high", "AMX highest"}
    for name in ("AMX high", "AMX highest"):
        assert result["flips"][name]["differing"] == 0 and result["flips"][name]["action_error"] < 1e-4
    assert "AMX highest against float32" in (tmp_path / "policy.md").read_text()


def test_every_share_is_measured_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_model.SIZES, "small", TINY)
    monkeypatch.setitem(bench.FLIP_FRAMES, "small", 0)
    settings = PolicyBench(cameras=1, repeats=1, threads=1, backends=("torch",), chunk=10)
    _, result = bench_policy_matrix(settings, tmp_path / "policy.md")
    cases = [row["case"] for row in result["rows"]]
    assert cases == ["base", *(think(share) for share in (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)), IDENTICAL]
    assert [row["cells"] for row in result["rows"][1:-1]] == [0, 0, 1, 2, 4, 9]
    assert result["think_over_base"] > 0 and result["ours_over_reference"] is None, "the reference was not asked"
    assert "1 camera, chunks of 10, CPU" in (tmp_path / "policy.md").read_text()


def row(backend: str, case: str, best: float) -> Row:
    return Row(backend, case, dict.fromkeys(STAGES, best), best, 1, 0, 0)


def test_the_ratios_are_those_of_our_fastest_backend() -> None:
    case = think(0.1)
    times = {"reference": (100.0, 200.0), "torch": (60.0, 90.0), "other": (50.0, 60.0)}
    rows = [
        row(name, which, best) for name, pair in times.items() for which, best in zip(("base", case), pair, strict=True)
    ]
    result = result_of(PolicyBench(), Measured(rows, {}))
    assert (result["ours"], result["think_over_base"], result["ours_over_reference"]) == ("other", 1.2, 0.3)
    assert result["backends"]["torch"] == {"think_over_base": 1.5, "over_reference": 0.45, "base_over_reference": 0.6}
    without_depth = [entry for entry in rows if entry.case == "base"]
    result = result_of(PolicyBench(), Measured(without_depth, {}))
    assert result["think_over_base"] is None and result["ours_over_reference"] == 0.5


def test_another_model_gets_its_own_section_and_the_same_one_replaces_it(tmp_path: Path) -> None:
    page = tmp_path / "policy.md"

    def write(size: str, milliseconds: float) -> None:
        measured = Measured([row("torch", "base", milliseconds)], {"torch": 2 * 10**9})
        settings = PolicyBench(size=size, cameras=1)
        write_section(page, settings, measured, result_of(settings, measured), 0.0, "CPU, float32")

    write("small", 11.5)
    write("mid", 22.5)
    write("small", 33.5)
    text = page.read_text()
    assert text.count("## random model, small, 1 camera, CPU") == 1 and "33.5" in text and "11.5" not in text
    assert "## random model, mid, 1 camera, CPU" in text and "22.5" in text and "2.00 GB" in text
    assert text.count("# One call of the policy") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("cameras", 0), ("cameras", 4), ("changed", 1.5), ("repeats", 0), ("chunk", 31), ("backend", ("abacus",))],
)
def test_settings_that_cannot_work_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        PolicyBench(**{"backends" if name == "backend" else name: value})


def test_the_command_line_knows_it() -> None:
    words = ["bench", "policy", "--size", "full", "--cameras", "3", "--backend", "torch", "--changed", "0.25", "--json"]
    arguments = parser().parse_args(words)
    assert (arguments.size, arguments.cameras, arguments.changed, arguments.json) == ("full", 3, 0.25, True)
    assert arguments.backend == ["torch"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the full size may fit")
def test_the_full_size_is_refused_without_a_gpu_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "policy", "--size", "full", "--page", "/nowhere/page.md"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "torch sees none here" in said and "use --size mid on a CPU" in said
    assert run(["bench", "policy", "--size", "full", "--device", "cpu"]) == 2
    assert "--size full runs on a GPU only" in capsys.readouterr().err


def test_the_full_size_is_the_released_one() -> None:
    model = empty_model(random_model.random_config("full", ROBOT, TASK).to_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 5.44e9 < parameters < 5.45e9, "as the released ones are counted"
    config = model.config
    assert (config.text_config.vocab_size, config.text_config.additional_vocab_size) == (154_624, 128)
    assert config.text_config.max_position_embeddings == 16_384 and config.text_config.intermediate_size == 9728
    assert config.action_expert_config.mlp_ratio == 4.0 and config.action_expert_config.ffn_multiple_of == 256
    assert config.action_expert_depth_gate and config.action_expert_depth_gate_per_layer
    assert len(model.model.action_expert_depth_gate) == 36
    text, expert = model.model.transformer, model.model.action_expert
    assert len(text.blocks) == len(expert.blocks) == 36 and text.config.hidden_size == 2560
    assert len(model.model.vision_backbone.image_vit.transformer.resblocks) == 25, "of 27, as many as are read"
    # 144 KiB of keys and values a token.
    assert 2 * 2 * 36 * text.config.num_key_value_heads * text.config.head_dim == 144 * 1024
    assert 2 * parameters < random_model.FULL_BYTES


@pytest.mark.slow
def test_a_model_made_where_it_runs_answers_like_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of the full size, on the CPU with a tiny model: no weights in any file."""
    monkeypatch.setitem(random_model.SIZES, "full", replace(TINY, depth_gate=True))
    monkeypatch.setattr(random_model, "FULL_VOCABULARY", 0)
    monkeypatch.setattr(bench, "_device", lambda settings: (CPU, torch.float32))
    monkeypatch.setitem(bench.FLIP_FRAMES, "full", 1)
    settings = PolicyBench(size="full", changed=0.45, repeats=1, threads=1, backends=("torch", "reference"))
    _, result = bench_policy_matrix(settings, tmp_path / "page.md", cameras=(2,), chunks=(10, 15))
    assert len(result["runs"]) == 2 and result["think_over_base"] > 0
    for entry in (entry for one in result["runs"] for entry in one["rows"]):
        assert entry["other_codes"] == 0
    text = (tmp_path / "page.md").read_text()
    assert "full, 2 cameras, chunks of 10" in text and "full, 2 cameras, chunks of 15" in text


def test_a_model_made_where_it_runs_is_the_same_every_time() -> None:
    config = random_model.random_config("small", ROBOT, TASK)
    first, second = (random_model.random_model(config, CPU, torch.bfloat16, seed=3).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert bool(value.isfinite().all()) and (value.dtype == torch.bfloat16 or "inv_freq" in name), name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("tiny")), ROBOT, ROBOT.norm_tag)


def test_flips_are_counted_where_the_codes_before_are_the_same(tiny: Any) -> None:
    whole = StagedModel(tiny, CPU, torch.float32, lambda text: None)
    state = np.full(6, 20.0)
    same = count_flips(whole, whole, state, 2, frames=2)
    assert (same.cells, same.differing, same.frames_differing, same.largest_margin) == (18, 0, 0, 0.0)
    other = StagedModel(tiny, CPU, torch.float32, lambda text: None)
    first = other.model.config.depth_token_start_id
    rows = other.model.lm_head.weight[first : first + 128]
    rows.copy_(rows.flip(0))
    found = count_flips(other, whole, state, 2, frames=2)
    assert found.differing >= 16 and found.frames_differing == 2 and found.largest_margin > found.median_margin / 2 > 0


def test_the_models_own_codes_are_what_its_logits_say(tiny: Any) -> None:
    model = StagedModel(tiny, CPU, torch.float32, lambda text: None)
    images = [np.random.default_rng(5).integers(0, 255, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    state = np.full(6, 20.0)
    codes = model.predict(images, TASK, state, depth_cache=None, generator=torch.Generator()).depth_bins
    assert codes is not None
    logits = model.depth_logits(images, TASK, state, codes)
    np.testing.assert_array_equal(logits.argmax(dim=-1).numpy(), codes)
    again = model.predict(images, TASK, state, depth_cache=None, generator=torch.Generator())
    np.testing.assert_array_equal(again.depth_bins, codes, err_msg="looking at logits leaves no trace")


def test_copies_and_peaks_are_counted() -> None:
    source, target = torch.zeros(1000), torch.zeros(2000)

    def call() -> None:
        target[:1000] = source
        torch.cat((source, source))
        source.view(10, 100).sum()
        source.add(1.0)

    assert bytes_copied(call, CPU) == {"within": 4 * 1000 + 4 * 2000}
    start_peak(CPU)
    before = peak_bytes(CPU)
    block = torch.ones(30_000_000)
    assert peak_bytes(CPU) - before > 100e6
    del block
    start_peak(CPU)
    assert peak_bytes(CPU) - before < 100e6, "a peak of before does not count"


def test_a_loaded_model_is_not_loaded_again(tiny: Any) -> None:
    first = ReferenceModel(tiny, CPU, torch.float32)
    ours = StagedModel(tiny, CPU, torch.float32, lambda text: None, loaded=first.model)
    assert ours.model is first.model
