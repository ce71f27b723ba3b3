"""Triton's attention kernels against dense float64: in the interpreter here, on the device where there is one."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from oracle.attention import Case, make_case, make_scores
from preceptor.kernels.attention_kl import AttentionKL, attention_kl
from preceptor.kernels.choice import implementation
from preceptor.signals import AttentionScores, TargetPositions, TokenBatch

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
    pytest.mark.skipif(
        DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a device, or TRITON_INTERPRET=1"
    ),
]

BFLOAT, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32
# Products are exact in float32 in the interpreter; on a device p_S - p_T is rounded to bfloat16 like the inputs.
GRADIENT = {SINGLE: 1e-5, HALF: 2e-3, BFLOAT: 6e-3}

# (rows, keys) of a block in the forward, dq and dk.
SMALL = ((16, 16), (32, 16), (16, 32))
WIDE = ((16, 32), (16, 32), (32, 16))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd head sizes": {"dim": 24, "teacher_dim": 80, "blocks": WIDE},
    "larger student heads": {"dim": 80, "teacher_dim": 16, "scale": 0.2},
    "grouped": {"heads": (4, 2), "teacher_heads": (4, 1)},
    "left padding": {"padding_side": "left"},
    "packed": {"packed": True},
    "packed, left padding, window": {"packed": True, "padding_side": "left", "window": 12, "blocks": WIDE},
    "two windows": {"window": 20, "teacher": {"window": 7}},
    "head map": {"heads": (3, 1), "teacher_heads": (4, 2), "map": [2, 0, 3]},
    "more student heads": {"heads": (4, 2), "teacher_heads": (2, 1), "map": [1, 0, 0, 1], "blocks": WIDE},
    "student's soft-cap": {"softcap": 1.5, "teacher": {}},
    "both soft-caps": {"softcap": 2.5, "teacher": {"softcap": 30.0}, "scale": 1.0},
    "one-sided teacher": {"teacher_scale": 10.0},
    "near the teacher": {"near": 1e-2},
    "bfloat16": {"dtype": BFLOAT},
    "float16, near the teacher": {"dtype": HALF, "near": 1e-2},
    "two dtypes": {"dtype": BFLOAT, "teacher_dtype": SINGLE, "teacher_dim": 24},
}


@cache
def case(name: str) -> Case:
    settings = {"dim": 16, "heads": (1, 1)} | CASES[name]
    settings.pop("blocks", None)
    first, second, third = toys.rows(0, [52, 9, 18], [20, 0, 5])
    segments = [[first, third], [second, third]] if settings.pop("packed", False) else [[first], [third]]
    return make_case(segments, settings.pop("dtype", SINGLE), **settings)


def on_device(scores: AttentionScores) -> AttentionScores:
    return replace(scores, q_BHRD=scores.q_BHRD.to(DEVICE), k_BGSD=scores.k_BGSD.to(DEVICE))


def run(
    student: AttentionScores,
    teacher: AttentionScores,
    targets: TargetPositions,
    weight_BR: Tensor,
    heads: Tensor | None = None,
    blocks: tuple[tuple[int, int], ...] | None = SMALL,
    needs_grad: bool = True,
) -> AttentionKL:
    from preceptor.kernels.attention_kl_triton import Tile, Tiles, attention_kl_triton

    tiles = None if blocks is None else Tiles(*(Tile(*block, warps=4, stages=1) for block in blocks))
    heads = None if heads is None else heads.to(DEVICE)
    return AttentionKL(
        *attention_kl_triton(
            on_device(student), on_device(teacher), targets, weight_BR.to(DEVICE),
            heads=heads, needs_grad=needs_grad, tiles=tiles,
        )
    )  # fmt: skip


def run_case(this: Case, **settings: Any) -> AttentionKL:
    targets = this.batch.to(torch.device(DEVICE)).targets
    return run(this.student, this.teacher, targets, this.weight_BR, this.head_map, **settings)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_dense_float64(name: str) -> None:
    this = case(name)
    got = run_case(this, blocks=CASES[name].get("blocks", SMALL))
    gradient = GRADIENT[this.student.q_BHRD.dtype]
    this.check(got, value=2e-5, gradient=gradient if this.mean >= 0.1 else 10 * gradient)


@pytest.mark.parametrize(("size", "dtype"), [(64, BFLOAT), (128, BFLOAT), (256, BFLOAT), (48, SINGLE), (128, SINGLE)])
def test_the_blocks_it_chooses_itself(size: int, dtype: torch.dtype) -> None:
    segments = [[row] for row in toys.rows(0, [150], [20])]
    this = make_case(segments, dtype, dim=size, heads=(1, 1), scale=size**-0.5, teacher_scale=size**-0.5)
    this.check(run_case(this, blocks=None), value=2e-5, gradient=GRADIENT[dtype])


def test_many_rows_and_weightless_ones() -> None:
    """More rows than one look for a key block's rows takes in, with weights of 0 at the start, amid and at the end."""
    batch = toys.batch([[row] for row in toys.rows(0, [1120], [1100])])
    student, teacher = (make_scores(seed, batch, 1, 1, 16, SINGLE, 0.4, window=600) for seed in (1, 2))
    weight_BR = batch.targets.valid_BR.float()
    weight_BR[0, :300], weight_BR[0, 400:600], weight_BR[0, 1030:] = 0, 0, 0
    with implementation("torch"):
        wanted = attention_kl(student, teacher, batch.targets, weight_BR)
    # Few large blocks are quick in the interpreter; a device has no room for them.
    size = 256 if DEVICE == "cpu" else 32
    got = run(student, teacher, batch.to(torch.device(DEVICE)).targets, weight_BR, blocks=((size, size),) * 3)
    for mine, theirs in zip(_tensors(got), _tensors(wanted), strict=True):
        assert float((mine.cpu() - theirs).norm() / theirs.norm()) <= 1e-5
    assert got.dq_BHRD is not None
    assert not got.dq_BHRD[0, :, 400:600].any()


def test_any_layout_is_read_where_it_lies() -> None:
    batch = toys.batch([[row] for row in toys.rows(0, [18, 4], [5, 1])])
    plain, teacher = (make_scores(seed, batch, 2, 2, 16, SINGLE, 0.4) for seed in (1, 2))
    spread = torch.zeros(*plain.k_BGSD.shape[:3], 32)[..., ::2]
    spread.copy_(plain.k_BGSD)
    turned = plain.q_BHRD.transpose(1, 2).contiguous().transpose(1, 2)
    results = []
    for ours, theirs in ((plain, teacher), (AttentionScores(turned, spread, plain.scale), teacher)):
        targets = batch.to(torch.device(DEVICE)).targets
        results.append(run(ours, theirs, targets, targets.valid_BR.float()))
    for mine, wanted in zip(*(_tensors(each) for each in results), strict=True):
        assert torch.equal(mine, wanted)


def test_two_runs_are_equal_bit_for_bit() -> None:
    this = case("packed")
    for first, second in zip(_tensors(run_case(this)), _tensors(run_case(this)), strict=True):
        assert torch.equal(first, second)


def test_value_alone_computes_no_gradient() -> None:
    this = case("plain")
    got = run_case(this, needs_grad=False)
    assert got.dq_BHRD is None
    assert got.dk_BGSD is None
    assert torch.equal(got.value_BHR, run_case(this).value_BHR)


@pytest.mark.parametrize("real", [True, False], ids=["no targets", "only padding"])
def test_a_batch_without_any_target_has_no_value_and_no_gradient(real: bool) -> None:
    batch = toys.batch([[row] for row in toys.rows(0, [6, 4], [0, 0])])
    if not real:
        batch = replace(batch, segment_ids=torch.full_like(batch.segment_ids, -1))
    student, teacher = (make_scores(seed, batch, 2, 1, 16, SINGLE, 0.5) for seed in (1, 2))
    got = run(student, teacher, batch.to(torch.device(DEVICE)).targets, batch.targets.valid_BR.float())
    for each in _tensors(got):
        assert not each.any()


# --- which implementation runs ------------------------------------------------------------------------------


def test_both_implementations_agree() -> None:
    this = case("head map")
    targets = this.batch.to(torch.device(DEVICE)).targets
    heads = None if this.head_map is None else this.head_map.to(DEVICE)
    results = []
    for name in ("triton", "torch"):
        with implementation(name):
            results.append(
                attention_kl(
                    on_device(this.student), on_device(this.teacher), targets, this.weight_BR.to(DEVICE), heads=heads
                )
            )
    for mine, theirs in zip(_tensors(results[0]), _tensors(results[1]), strict=True):
        assert mine.dtype == theirs.dtype
        assert not torch.equal(mine, theirs), "both ran the same"
        assert float((mine - theirs).norm() / theirs.norm()) <= 1e-5


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 16), (SINGLE, 257)])
def test_what_the_kernels_do_not_take_runs_in_pytorch(dtype: torch.dtype, size: int) -> None:
    batch: TokenBatch = toys.batch([[row] for row in toys.rows(0, [6, 4], [3, 2])])
    student, teacher = (on_device(make_scores(seed, batch, 2, 1, size, dtype, 0.1)) for seed in (1, 2))
    targets = batch.to(torch.device(DEVICE)).targets
    got = []
    for name in ("triton", "torch"):
        with implementation(name):
            got.append(attention_kl(student, teacher, targets, targets.valid_BR.to(dtype)))
    for mine, theirs in zip(_tensors(got[0]), _tensors(got[1]), strict=True):
        assert torch.equal(mine, theirs)


def _tensors(result: AttentionKL) -> list[Tensor]:
    assert result.dq_BHRD is not None
    assert result.dk_BGSD is not None
    return [result.value_BHR, result.dq_BHRD, result.dk_BGSD]
