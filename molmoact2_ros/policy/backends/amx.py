"""Float32 products on a CPU's matrix unit (AMX): activations in bfloat16 pieces against bfloat16 weights.

A float32 has 24 significant bits, a bfloat16 has 8: three pieces hold an activation exactly, two hold 17 bits. Where a
layer's weights are bfloat16 by nature, as in checkpoints that are stored so, the products of the pieces on the matrix
unit, summed in float32, are the float32 product, in less time than on the vector unit and from half of the memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molmoact2_ros.policy.stages.stage_set import Stages

LEAST_WEIGHTS = 2**18
"""Smaller layers are not worth the cutting into pieces."""
CUT_AT_ONCE = 2**18
"""Values that are cut into pieces together, so that they stay in the cache meanwhile."""
STACKED_ROWS = 64
"""Up to so many rows the pieces go through one product, which reads the weights once; then through one each."""
TOLERANCE = 2e-6
"""Largest relative error of the trial product; a float32 product of that size has about 3e-7."""
PIECES = {"high": 2, "highest": 3}
"""Pieces of an activation; the names are torch's, for float32 products. Relative errors of a product: high
2.5e-6, highest 2e-7, on the vector unit 3e-7."""
ROW_COST = 0.01
"""One more row of a verified block, as a share of a forward of one row."""
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112  # CBLAS's own numbers


@cache
def _product() -> Any:
    """MKL's C = A B + beta C, bfloat16 in and float32 out, out of torch's own library; None where it is not."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        product = library.cblas_gemm_bf16bf16f32
    except (OSError, AttributeError):
        return None
    integer, real, pointer = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    product.argtypes = [integer] * 6 + [real, pointer, integer, pointer, integer, real, pointer, integer]
    product.restype = None
    return product


@cache
def reason_against() -> str:
    """Why products in pieces are of no use on this machine; empty where they are, tried once."""
    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        return "the CPU has no matrix unit for bfloat16 (AMX)"
    if _product() is None:
        return "this build of torch does not offer MKL's bfloat16 product"
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(256, 192)
    layer.weight.data = torch.randn((192, 256), generator=random).bfloat16().float()
    pieces = PieceLinear(layer, "highest")
    for rows in (3, STACKED_ROWS + 3):
        x = torch.randn((rows, 256), generator=random)
        with torch.inference_mode():
            right = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
            error = float((pieces(x).double() - right).norm() / right.norm())
        if not error <= TOLERANCE:
            return f"a trial product of {rows} rows was off by {error:.1e}, at most {TOLERANCE:.0e} is taken"
    return ""


class PieceLinear(nn.Module):
    """`layer`, float32, with its weights in bfloat16: float32 in and out, inputs in `PIECES` of `precision`.

    Raises:
        ValueError: the weights of `layer` are not float32 that bfloat16 holds exactly.
    """

    def __init__(self, layer: nn.Linear, precision: str) -> None:
        super().__init__()
        self.pieces = PIECES[precision]
        whole = layer.weight.detach()
        short = whole.to(torch.bfloat16).contiguous()
        if whole.dtype != torch.float32 or not torch.equal(short.float(), whole):
            raise ValueError("bfloat16 does not hold the weights of this layer exactly; keep the layer as it is")
        self.register_buffer("weight", short, persistent=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's outputs (..., out) of `x` (..., in), float32."""
        outputs, inputs = self.weight.shape
        pieces = cut(x.reshape(-1, inputs), self.pieces)
        rows = pieces.shape[1]
        if rows <= STACKED_ROWS:
            stacked = x.new_empty((self.pieces, rows, outputs))
            _multiply(pieces.data_ptr(), self.pieces * rows, self.weight, 0.0, stacked)
            parts = stacked.unbind()
            out = torch.add(parts[0], parts[1])
            for more in parts[2:]:
                out += more
            if self.bias is not None:
                out += self.bias
        else:
            out = x.new_empty((rows, outputs))
            if self.bias is not None:
                out[:] = self.bias
            for index in range(self.pieces):
                kept = float(index > 0 or self.bias is not None)
                _multiply(pieces.data_ptr() + index * pieces.nbytes // self.pieces, rows, self.weight, kept, out)
        return out.view(*x.shape[:-1], outputs)


def _multiply(start: int, rows: int, weight: torch.Tensor, kept: float, out: torch.Tensor) -> None:
    """`out` = `kept` times `out` plus `weight` (out, in) times `rows` rows of bfloat16 at the address `start`."""
    outputs, inputs = weight.shape
    layout = (_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE, rows, outputs, inputs)
    _product()(*layout, 1.0, start, inputs, weight.data_ptr(), inputs, kept, out.data_ptr(), outputs)


def cut(x: torch.Tensor, count: int) -> torch.Tensor:
    """`x` (rows, columns) in bfloat16 pieces (count, rows, columns), each of what those before it leave."""
    pieces = x.new_empty((count, *x.shape), dtype=torch.bfloat16)
    if x.numel() <= CUT_AT_ONCE:
        _cut_into(pieces.unbind(), x)
    else:
        rows = max(1, CUT_AT_ONCE // x.shape[1])
        for part, *cuts in zip(x.split(rows), *(piece.split(rows) for piece in pieces), strict=True):
            _cut_into(cuts, part)
    return pieces


def _cut_into(pieces: Sequence[torch.Tensor], x: torch.Tensor) -> None:
    pieces[0].copy_(x)
    rest = pieces[0].float()
    torch.sub(x, rest, out=rest)
    for index in range(1, len(pieces) - 1):
        pieces[index].copy_(rest)
        rest.sub_(pieces[index].float())
    pieces[-1].copy_(rest)


def use_pieces(stages: Stages, precision: str, least: int) -> tuple[int, int]:
    """Put `PieceLinear` into the layers of `stages` that it fits, and return how many, and of how many.

    Args:
        least: layers with fewer weights stay as they are.
    """
    fitted = tried = 0
    for owner, name, layer in list(_linears(stages)):
        if layer.weight.numel() < least:
            continue
        tried += 1
        with suppress(ValueError):  # a layer that does not fit stays as it is
            setattr(owner, name, PieceLinear(layer, precision))
            fitted += 1
    return fitted, tried


def _linears(stages: Stages) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The layers that do a call's work, with their owners and names in them."""
    expert = stages.flow.expert
    for parent in (stages.vision.backbone, stages.decoder.blocks, expert.blocks):
        for owner in parent.modules():
            for name, layer in owner.named_children():
                if type(layer) is nn.Linear:
                    yield owner, name, layer
    for name in ("context_k_proj", "context_v_proj"):
        yield expert, name, getattr(expert, name)
