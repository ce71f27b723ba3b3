"""Triton's way to `attention_kl`: what `attention_triton_kernels` is launched with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from preceptor.kernels.ahead import AheadSpec
from preceptor.kernels.attention_triton_kernels import dk_kernel, dq_kernel, forward_kernel
from preceptor.signals import AttentionScores, TargetPositions

LARGEST_HEAD = 256
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Tile:
    """Rows and keys of a block, and how a program runs them."""

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """The blocks of the three kernels."""

    forward: Tile
    dq: Tile
    dk: Tile


# By bytes of a product's operand and padded head size. In 16 bits, the largest blocks that spill next to nothing on
# sm_80 and sm_90 (benchmarks/compile_ahead.py) and fit a workstation GPU's 99 KB of shared memory as sm_80 compiles
# them: for bfloat16, head size 128 and Triton 3.7, forward 192 and 172 registers and no spill, dq 248 and 200 and none,
# dk 255 and 24 and 8 bytes (in blocks of 64 x 64: 160 and 272 bytes); Triton 3.6 on sm_90: 171, 200, and dk 255 and 280
# bytes (in blocks of 32 x 128 with 8 warps 56). float32 is multiplied exactly, without tensor cores: it is there to be
# right, and spills (in the forward 0.4 KB at head size 64, 6 KB at 128). None of it was timed on a GPU.
TILES = {
    (2, 64): Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(32, 64, 4, 2)),
    (2, 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(32, 64, 4, 2)),
    (2, 256): Tiles(Tile(64, 32, 8, 2), Tile(32, 64, 4, 1), Tile(32, 32, 4, 1)),
    (4, 64): Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    (4, 128): Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    (4, 256): Tiles(Tile(16, 32, 4, 1), Tile(16, 32, 4, 1), Tile(16, 32, 4, 1)),
}


def supports(*scores: AttentionScores) -> bool:
    """Whether the kernels take these: 16- or 32-bit floats and heads of at most 256."""
    tensors = [tensor for each in scores for tensor in (each.q_BHRD, each.k_BGSD)]
    return all(tensor.dtype in _TYPES and tensor.shape[-1] <= LARGEST_HEAD for tensor in tensors)


def tiles_for(*scores: AttentionScores) -> Tiles:
    """The blocks for models of these head sizes and dtypes."""
    size = max(max(_padded(each), 64) for each in scores)
    return TILES[max(_product_type(each).itemsize for each in scores), size]


def attention_kl_triton(
    student: AttentionScores,
    teacher: AttentionScores,
    targets: TargetPositions,
    weight_BR: Tensor,
    *,
    heads: Tensor | None,
    needs_grad: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`attention_kl`'s value [B,H,R], dq [B,H,R,D] and dk [B,G,S,D] for scores that `supports` accepts.

    Nothing is copied: queries, keys and the teacher's heads are read where they lie.
    """
    tiles = tiles or tiles_for(student, teacher)
    B, H, R, D = student.q_BHRD.shape
    G, S = student.k_BGSD.shape[1:3]
    device = student.q_BHRD.device
    value_BHR = torch.empty(B, H, R, dtype=torch.float32, device=device)
    lse_S, lse_T = torch.empty((2, B, H, R), dtype=torch.float32, device=device) if needs_grad else (None, None)
    window = min((w for w in (student.window, teacher.window) if w is not None), default=S)
    weight_BR = weight_BR.to(torch.float32).contiguous()
    if heads is not None:
        heads = heads.to(device).contiguous()
    inputs = (student.q_BHRD, student.k_BGSD, teacher.q_BHRD, teacher.k_BGSD, heads)
    rows = (targets.position_BR.contiguous(), targets.start_BR.contiguous())
    strides = [stride for tensor in inputs[:4] if tensor is not None for stride in tensor.stride()]
    factors = (_factor(student), _factor(teacher))
    sizes = (H, R, S, window)
    models = constants(student, teacher)
    with torch.cuda.device_of(value_BHR):  # Triton launches on the current device
        forward_kernel[triton.cdiv(R, tiles.forward.rows), H, B](
            *inputs, *rows, targets.valid_BR.contiguous(), value_BHR, lse_S, lse_T, *strides, *factors, *sizes,
            **models, SAVE=needs_grad, **_launch(tiles.forward),
        )  # fmt: skip
        if not needs_grad:
            return value_BHR, None, None
        dq_BHRD = torch.empty((B, H, R, D), dtype=student.q_BHRD.dtype, device=device)
        dk_BGSD = torch.empty((B, G, S, D), dtype=student.k_BGSD.dtype, device=device)
        models |= gradient_constants(student)
        saved = (*inputs, *rows, weight_BR, lse_S, lse_T)
        dq_kernel[triton.cdiv(R, tiles.dq.rows), H, B](
            *saved, dq_BHRD, *strides, *factors, student.scale, *sizes, **models, **_launch(tiles.dq)
        )
        dk_kernel[triton.cdiv(S, tiles.dk.keys), G, B](
            *saved, dk_BGSD, *strides, *factors, student.scale, *sizes, **models, **_launch(tiles.dk)
        )
    return value_BHR, dq_BHRD, dk_BGSD


def constants(student: AttentionScores, teacher: AttentionScores) -> dict[str, Any]:
    """What the kernels are compiled for, of both models."""
    made: dict[str, Any] = {}
    for which, scores in (("S", student), ("T", teacher)):
        made |= {
            f"D_{which}": scores.q_BHRD.shape[-1],
            f"PAD_{which}": _padded(scores),
            f"GROUP_{which}": scores.q_BHRD.shape[1] // scores.k_BGSD.shape[1],
            f"CAP_{which}": scores.softcap,
            f"TYPE_{which}": _TYPES[_product_type(scores)],
        }
    return made


def gradient_constants(student: AttentionScores) -> dict[str, Any]:
    """Type and precision of the products that make dq and dk.

    Near convergence p_S - p_T falls below float16's range, so float16 keys are multiplied as tf32, which holds them
    exactly and has float32's range.
    """
    kind = _product_type(student)
    return {
        "GRAD": tl.float32 if kind == torch.float16 else _TYPES[kind],
        "PRECISION": "ieee" if kind == torch.float32 else "tf32",
    }


def _launch(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.rows, "BLOCK_N": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


def _padded(scores: AttentionScores) -> int:
    """A product needs a power of two, at least 16."""
    return max(16, 1 << (scores.q_BHRD.shape[-1] - 1).bit_length())


def _product_type(scores: AttentionScores) -> torch.dtype:
    # The interpreter multiplies bfloat16's raw bits.
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.float32
    return torch.promote_types(scores.q_BHRD.dtype, scores.k_BGSD.dtype)


def _factor(scores: AttentionScores) -> float:
    """What turns q kᵀ into scores in units of log 2, or into what a soft-cap's tanh is taken of."""
    return scores.scale * LOG2_E if scores.softcap is None else scores.scale / scores.softcap


def ahead(tiles: Tiles | None = None) -> Iterable[AheadSpec]:
    """The kernels for bfloat16 models and for float32 ones, both models of one head size, without a head map."""
    for dtype, sizes in ((torch.bfloat16, (64, 128, 256)), (torch.float32, (64, 128))):
        for size in sizes:
            q, k = (torch.empty((1, heads, 0, size), dtype=dtype, device="meta") for heads in (8, 2))
            scores = AttentionScores(q, k, 1.0)
            chosen = tiles or tiles_for(scores)
            models = constants(scores, scores)
            gradients = models | gradient_constants(scores)
            yield _ahead("forward", forward_kernel, chosen.forward, scores, models | {"SAVE": True})
            yield _ahead("dq", dq_kernel, chosen.dq, scores, gradients)
            yield _ahead("dk", dk_kernel, chosen.dk, scores, gradients)


def _ahead(name: str, kernel: Any, tile: Tile, scores: AttentionScores, constexprs: dict[str, Any]) -> AheadSpec:
    kind = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[scores.q_BHRD.dtype]
    pointers = dict.fromkeys(("q_S", "k_S", "q_T", "k_T", "dq", "dk"), kind)
    pointers |= {"position": "*i64", "start": "*i64", "valid": "*i1"}
    pointers |= dict.fromkeys(("value", "weight", "lse_S", "lse_T"), "*fp32")
    strides = [name for name in kernel.arg_names if name[1:4] in {"b_S", "b_T", "h_S", "h_T", "r_S", "r_T"}]
    strides += [name for name in kernel.arg_names if name[1:4] in {"g_S", "g_T", "s_S", "s_T"}]
    launched = _launch(tile)
    warps, stages = launched.pop("num_warps"), launched.pop("num_stages")
    fixed = {"heads": None, "qd_S": 1, "kd_S": 1, "qd_T": 1, "kd_T": 1, **constexprs, **launched}
    others = dict.fromkeys((*strides, "H", "R", "S", "window"), "i32")
    kinds = pointers | others | dict.fromkeys(("factor_S", "factor_T", "scale"), "fp32")
    return AheadSpec(
        name=f"attention KL, {name}",
        kernel=kernel,
        signature={each: "constexpr" if each in fixed else kinds[each] for each in kernel.arg_names},
        constexprs=fixed,
        num_warps=warps,
        num_stages=stages,
        multiples_of_16=tuple(strides),
        note={"dtype": kind[1:], "head size": scores.q_BHRD.shape[-1], "tile": f"{tile.rows}x{tile.keys}"},
    )
