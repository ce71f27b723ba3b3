"""KL between attention rows by loops over everything in float64, and scores to try it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import toys
from preceptor.kernels.attention_kl import AttentionKL
from preceptor.signals import AttentionScores, TokenBatch

Segments = list[tuple[Tensor, Tensor]]


def dense_attention_kl(
    student: AttentionScores, teacher: AttentionScores, batch: TokenBatch, heads: Sequence[int]
) -> Tensor:
    """float64 [B, H, R], the KL of every target row and head from whole maps; 0 where there is no target."""
    B, H, R = student.q_BHRD.shape[:3]
    group_S = H // student.k_BGSD.shape[1]
    group_T = teacher.q_BHRD.shape[1] // teacher.k_BGSD.shape[1]
    zero = student.q_BHRD.sum().double() * 0
    values = []
    for b in range(B):
        slots = [t for t in range(batch.input_ids.shape[1]) if batch.target_mask[b, t]]
        seen = []
        for t in slots:
            window = min(w or 10**9 for w in (student.window, teacher.window))
            seen.append(
                [j for j in range(t + 1) if batch.segment_ids[b, j] == batch.segment_ids[b, t] and t - j < window]
            )
        for h in range(H):
            for r, keys in enumerate(seen):
                rows = []
                for scores, head, group in ((student, h, group_S), (teacher, heads[h], group_T)):
                    s = scores.k_BGSD[b, head // group, keys].double() @ scores.q_BHRD[b, head, r].double()
                    s = s * scores.scale
                    if scores.softcap is not None:
                        s = scores.softcap * torch.tanh(s / scores.softcap)
                    rows.append(torch.exp(s - s.max()) / torch.exp(s - s.max()).sum())
                p_S, p_T = rows
                values.append((torch.special.xlogy(p_T, p_T) - p_T * torch.log(p_S)).sum())
            values += [zero] * (R - len(slots))
    return torch.stack(values).view(B, H, R)


def make_scores(
    seed: int, batch: TokenBatch, H: int, G: int, D: int, dtype: torch.dtype, scale: float, **more: object
) -> AttentionScores:
    """Random queries of the batch's target rows and keys of its positions."""
    generator = torch.Generator().manual_seed(seed)
    B, S = batch.input_ids.shape
    R = batch.targets.position_BR.shape[1]
    q = torch.randn(B, H, R, D, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(B, G, S, D, generator=generator, dtype=torch.float64).to(dtype)
    return AttentionScores(q, k, scale, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """Inputs of `attention_kl` and what must come out."""

    batch: TokenBatch
    student: AttentionScores
    teacher: AttentionScores
    heads: list[int] | None
    weight_BR: Tensor
    expected: AttentionKL

    @property
    def head_map(self) -> Tensor | None:
        return None if self.heads is None else torch.tensor(self.heads)

    @property
    def mean(self) -> float:
        """Mean KL of the target rows."""
        return float(self.expected.value_BHR.sum() / self.batch.target_mask.sum() / self.student.q_BHRD.shape[1])

    def check(self, got: AttentionKL, *, value: float, gradient: float) -> None:
        """Compare, each row's value with a tolerance relative to the mean (or 1), gradients relative to their norm."""
        error_BHR = (got.value_BHR.cpu().double() - self.expected.value_BHR).abs()
        assert float(error_BHR.max()) <= value * max(self.mean, 1)
        for grad, wanted, like in (
            (got.dq_BHRD, self.expected.dq_BHRD, self.student.q_BHRD),
            (got.dk_BGSD, self.expected.dk_BGSD, self.student.k_BGSD),
        ):
            assert grad is not None
            assert wanted is not None
            assert grad.dtype == like.dtype
            assert grad.shape == like.shape
            assert float((grad.cpu().double() - wanted).norm() / wanted.norm()) <= gradient


def make_case(
    segments: list[Segments],
    dtype: torch.dtype,
    *,
    padding_side: str = "right",
    heads: tuple[int, int] = (4, 4),
    teacher_heads: tuple[int, int] | None = None,
    map: list[int] | None = None,
    dim: int = 5,
    teacher_dim: int | None = None,
    scale: float = 0.6,
    teacher_scale: float = 0.5,
    teacher_dtype: torch.dtype | None = None,
    near: float | None = None,
    teacher: dict[str, Any] | None = None,
    **student: Any,
) -> Case:
    """Random scores for the rows, weights that differ within a row, and the dense result.

    `student` and `teacher` hold a window and a soft-cap; with `near`, the teacher is the student with some noise.
    """
    batch = toys.batch(segments, padding_side=padding_side, extra=2)
    ours = make_scores(1, batch, *heads, dim, dtype, scale, **student)
    theirs = make_scores(
        2, batch, *(teacher_heads or heads), teacher_dim or dim, teacher_dtype or dtype, teacher_scale,
        **(student if teacher is None else teacher),
    )  # fmt: skip
    if near is not None:
        q, k = ours.q_BHRD + near * theirs.q_BHRD, ours.k_BGSD + near * theirs.k_BGSD
        theirs = replace(theirs, q_BHRD=q, k_BGSD=k, scale=ours.scale)
    R = batch.targets.valid_BR.shape[1]
    weight_BR = batch.targets.valid_BR * torch.linspace(0.5, 1.5, R, dtype=torch.float64)
    q, k = (each.double().requires_grad_() for each in (ours.q_BHRD, ours.k_BGSD))
    value_BHR = dense_attention_kl(replace(ours, q_BHRD=q, k_BGSD=k), theirs, batch, map or list(range(heads[0])))
    (value_BHR * weight_BR[:, None]).sum().backward()
    weight_BR = weight_BR.to(torch.promote_types(dtype, torch.float32))
    return Case(batch, ours, theirs, map, weight_BR, AttentionKL(value_BHR.detach(), q.grad, k.grad))
