"""The two kernels against dense float64 autograd that shares no code with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import toys
from preceptor.kernels.attention_kl import attention_kl
from preceptor.signals import AttentionScores, TokenBatch

Rows = list[list[tuple[Tensor, Tensor]]]


def singles(seed: int = 0) -> Rows:
    return [[row] for row in toys.rows(seed, [13, 9, 17, 5], [6, 0, 11, 2])]


def dense_attention_kl(
    student: AttentionScores, teacher: AttentionScores, batch: TokenBatch, heads: list[int]
) -> Tensor:
    """Σ KL over target rows and heads, from whole maps with loops over everything."""
    total = student.q_BHRD.sum().double() * 0
    group_S = student.q_BHRD.shape[1] // student.k_BGSD.shape[1]
    group_T = teacher.q_BHRD.shape[1] // teacher.k_BGSD.shape[1]
    for b in range(batch.input_ids.shape[0]):
        slots = [t for t in range(batch.input_ids.shape[1]) if batch.target_mask[b, t]]
        for r, t in enumerate(slots):
            window = min(w or 10**9 for w in (student.window, teacher.window))
            keys = [j for j in range(t + 1) if batch.segment_ids[b, j] == batch.segment_ids[b, t] and t - j < window]
            for h in range(student.q_BHRD.shape[1]):
                rows = []
                for scores, head, group in ((student, h, group_S), (teacher, heads[h], group_T)):
                    s = scores.k_BGSD[b, head // group, keys].double() @ scores.q_BHRD[b, head, r].double()
                    s = s * scores.scale
                    if scores.softcap is not None:
                        s = scores.softcap * torch.tanh(s / scores.softcap)
                    rows.append(torch.exp(s - s.max()) / torch.exp(s - s.max()).sum())
                p_S, p_T = rows
                total = total + (torch.special.xlogy(p_T, p_T) - p_T * torch.log(p_S)).sum()
    return total


def make_scores(
    seed: int, batch: TokenBatch, H: int, G: int, D: int, dtype: torch.dtype, scale: float, **more: object
) -> AttentionScores:
    generator = torch.Generator().manual_seed(seed)
    B, S = batch.input_ids.shape
    R = batch.targets.position_BR.shape[1]
    q = torch.randn(B, H, R, D, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(B, G, S, D, generator=generator, dtype=torch.float64).to(dtype)
    return AttentionScores(q, k, scale, **more)  # type: ignore[arg-type]


ATTENTION_CASES = {
    "plain": {},
    "grouped": {"heads": (6, 2), "teacher_heads": (6, 3)},
    "left padding": {"padding_side": "left"},
    "packed": {"packed": True},
    "window": {"window": 4},
    "two windows": {"window": 9, "teacher_window": 3},
    "head map": {"heads": (3, 1), "teacher_heads": (4, 2), "map": [2, 0, 3]},
    "more student heads": {"heads": (4, 2), "teacher_heads": (2, 1), "map": [1, 0, 0, 1]},
    "soft-cap": {"softcap": 1.5},
    "other head size": {"teacher_dim": 7},
    "one-sided teacher": {"teacher_scale": 40.0},
    "near the teacher": {"near": 1e-2},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [2**20, 40, 400])
@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_attention_kl_equals_dense_float64(name: str, block: int, dtype: torch.dtype) -> None:
    case = ATTENTION_CASES[name]
    segments = singles()
    if case.get("packed"):
        segments = [segments[0] + segments[3], segments[1] + segments[2]]
    batch = toys.batch(segments, padding_side=case.get("padding_side", "right"), extra=2)
    H, G = case.get("heads", (4, 4))
    H_T, G_T = case.get("teacher_heads", (H, G))
    student = make_scores(1, batch, H, G, 5, dtype, 0.6, window=case.get("window"), softcap=case.get("softcap"))
    teacher = make_scores(
        2, batch, H_T, G_T, case.get("teacher_dim", 5), dtype, case.get("teacher_scale", 0.5),
        window=case.get("teacher_window", case.get("window")),
    )  # fmt: skip
    if near := case.get("near"):
        q, k = student.q_BHRD + near * teacher.q_BHRD, student.k_BGSD + near * teacher.k_BGSD
        teacher = replace(teacher, q_BHRD=q, k_BGSD=k, scale=student.scale)
    heads = case.get("map")
    expected_inputs = replace(
        student,
        q_BHRD=student.q_BHRD.double().requires_grad_(),
        k_BGSD=student.k_BGSD.double().requires_grad_(),
    )
    expected = dense_attention_kl(expected_inputs, teacher, batch, heads or list(range(H)))
    expected.backward()

    weight_BR = batch.targets.valid_BR.to(dtype)
    got = attention_kl(
        student, teacher, batch.targets, weight_BR,
        heads=None if heads is None else torch.tensor(heads), block_elements=block,
    )  # fmt: skip

    rows = int(batch.target_mask.sum()) * H
    value = float(got.value_BHR.double().sum())
    mean = float(expected.detach()) / rows
    exact = dtype == torch.float64
    assert abs(value - float(expected.detach())) / rows <= (1e-10 if exact else 1e-6) * max(mean, 1)
    tolerance = 1e-10 if exact else 1e-5 if mean >= 0.1 else 1e-4
    for grad, wanted in ((got.dq_BHRD, expected_inputs.q_BHRD.grad), (got.dk_BGSD, expected_inputs.k_BGSD.grad)):
        assert grad is not None
        assert wanted is not None
        assert grad.dtype == dtype
        assert float((grad.double() - wanted).norm() / wanted.norm()) <= tolerance


def test_scores_are_float32_for_bfloat16_inputs() -> None:
    """Near convergence scores rounded to bfloat16 spoil the gradient (29 % at a KL of 1e-4); ours do not."""
    batch = toys.batch(singles())
    student = make_scores(1, batch, 4, 2, 16, torch.bfloat16, 0.25)
    noise = make_scores(3, batch, 4, 2, 16, torch.float32, 0.25)
    teacher = replace(student, q_BHRD=student.q_BHRD.float() + 0.02 * noise.q_BHRD)
    weight_BR = batch.targets.valid_BR.float()
    got = attention_kl(student, teacher, batch.targets, weight_BR)
    upcast = replace(student, q_BHRD=student.q_BHRD.float(), k_BGSD=student.k_BGSD.float())
    wanted = attention_kl(upcast, teacher, batch.targets, weight_BR)
    assert got.dq_BHRD is not None
    assert wanted.dq_BHRD is not None
    assert float(wanted.value_BHR.sum()) / int(weight_BR.sum()) / 4 < 1e-3, "not near convergence"
    assert got.dq_BHRD.dtype == torch.bfloat16
    assert float((got.dq_BHRD.float() - wanted.dq_BHRD).norm() / wanted.dq_BHRD.norm()) < 5e-3


def test_a_batch_without_any_target_has_no_value_and_no_gradient() -> None:
    batch = toys.batch([[row] for row in toys.rows(0, [6, 4], [0, 0])])
    student = make_scores(1, batch, 2, 1, 4, torch.float32, 0.5)
    teacher = make_scores(2, batch, 2, 1, 4, torch.float32, 0.5)
    got = attention_kl(student, teacher, batch.targets, batch.targets.valid_BR.float())
    for each in (got.value_BHR, got.dq_BHRD, got.dk_BGSD):
        assert each is not None
        assert not each.any()


def test_value_alone_computes_no_gradient() -> None:
    batch = toys.batch(singles())
    student, teacher = (make_scores(seed, batch, 2, 1, 4, torch.float32, 0.5) for seed in (1, 2))
    got = attention_kl(student, teacher, batch.targets, batch.targets.valid_BR.float(), needs_grad=False)
    assert got.dq_BHRD is None
    assert got.dk_BGSD is None
    assert float(got.value_BHR.sum()) > 0
