"""Products in bfloat16 pieces are float32 products: layer by layer, and in whole answers.

MKL computes them on any x86 CPU (without a matrix unit only slowly), so that this runs wherever torch has MKL.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))

from parity_cases import CPU, checkpoint, frames, hold

from molmoact2_ros.policy.backends import amx
from molmoact2_ros.policy.backends.opening import open_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.options import InferenceOptions
from molmoact2_ros.policy.stages.stage_set import OpenStages, Stages, torch_stages

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL, as on ARM")


def layer(inputs: int, outputs: int, bias: bool) -> torch.nn.Linear:
    made = torch.nn.Linear(inputs, outputs, bias)
    made.weight.data = torch.randn((outputs, inputs), generator=torch.Generator().manual_seed(1)).bfloat16().float()
    return made.requires_grad_(False)


def all_in_pieces(precision: str) -> OpenStages:
    def opened(model: Any, dof: int) -> Stages:
        stages = torch_stages(model, dof)
        fitted, tried = amx.use_pieces(stages, precision, least=0)
        assert fitted == tried > 20
        return stages

    return opened


@needs_mkl
@pytest.mark.parametrize(("precision", "error"), [("highest", 3e-7), ("high", 4e-6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (64, 96), (65, 96), (300, 96), (2, 3, 96), (1, 70, 96)])
def test_a_layer_in_pieces_is_as_exact_as_promised(
    shape: tuple[int, ...], bias: bool, precision: str, error: float
) -> None:
    plain = layer(96, 40, bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 30.0
    exact = torch.nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
    ours = amx.PieceLinear(plain, precision)(x)
    assert ours.shape == exact.shape and ours.dtype == torch.float32
    assert (ours - exact).norm() <= error * exact.norm()


@needs_mkl
def test_a_transposed_input_is_taken_as_it_is_read() -> None:
    plain, x = layer(96, 40, True), torch.randn((96, 70)).T
    torch.testing.assert_close(amx.PieceLinear(plain, "highest")(x), plain(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 7), (3, amx.CUT_AT_ONCE // 2), (amx.CUT_AT_ONCE // 64 + 9, 100)])
def test_three_pieces_hold_every_bit(shape: tuple[int, int]) -> None:
    x = torch.randn(shape) * torch.logspace(-20, 20, shape[1])
    pieces = amx.cut(x, 3)
    assert torch.equal(pieces.double().sum(0), x.double())
    assert (amx.cut(x, 2).double().sum(0) - x.double()).abs().max() <= (2.0**-17 * x.abs().double()).max()


def test_weights_that_bfloat16_does_not_hold_are_refused() -> None:
    plain = layer(96, 40, True)
    plain.weight[3, 4] += 1e-3
    with pytest.raises(ValueError, match="exactly"):
        amx.PieceLinear(plain, "high")


def stored_in_half(opened: Checkpoint) -> Checkpoint:
    path = str(opened.directory / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    return opened


@needs_mkl
@pytest.mark.parametrize("precision", ["high", "highest"])
@pytest.mark.parametrize(
    ("cameras", "sizes"),
    [
        (2, {"num_depth_codes": 25}),
        (1, {"num_depth_codes": 16, "depth_gate": True}),
        (2, {"qk_norm_type": "olmo", "text_heads": 4, "text_kv_heads": 2, "image_size": 42}),
    ],
)
def test_whole_answers_equal_the_references(
    tmp_path: Path, cameras: int, sizes: dict[str, Any], precision: str
) -> None:
    opened = stored_in_half(checkpoint(tmp_path, cameras, seed=cameras, **sizes))
    hold(opened, list(frames(1, cameras, "n=scpnwd=c")), all_in_pieces(precision))


def test_layers_are_exchanged_only_where_there_is_a_matrix_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from molmoact2_ros.policy.loading import load_model

    opened = stored_in_half(checkpoint(tmp_path, 1))
    monkeypatch.setattr(amx, "LEAST_WEIGHTS", 0)
    for reason, options, expected, line in [
        ("", InferenceOptions(), amx.PieceLinear, ""),
        ("", InferenceOptions(amx="off"), torch.nn.Linear, ""),
        ("no such unit", InferenceOptions(), torch.nn.Linear, ""),
        ("no such unit", InferenceOptions(amx="high"), torch.nn.Linear, "no products on AMX: no such unit"),
    ]:
        monkeypatch.setattr(amx, "reason_against", lambda reason=reason: reason)
        said: list[str] = []
        model = load_model(opened, CPU, torch.float32).model
        stages = open_stages("torch", opened, CPU, options, log=said.append)(model, 6)
        assert type(stages.decoder.blocks[0].mlp.ff_out) is expected
        assert said == ([line] if line else [])
