"""KL between softmax attention rows, without ever holding a map.

For one query row with masked scores s_T, s_S (docs/losses.md, equation 3)

    KL = Σ_j p_T(j)·(s_T(j) − s_S(j)) − LSE_T + LSE_S,        ∂KL/∂s_S = p_S − p_T,

so a block of rows is enough for the value and for both gradients. Only rows that predict a target are gathered as
queries. Scores are float32 whatever the inputs are: rounded to bfloat16 they spoil the gradient near convergence. Value
and gradients are computed in one pass, because the gradients are linear in the loss's scale: two matrix products fewer
than recomputing the scores in the backward, for the same memory (dq and dk instead of the teacher's q and k).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from preceptor.signals import AttentionScores, TargetPositions

# Scores held at once, in elements: 2 MB of float32 per model stays in a CPU core's caches. One thread, S = 2048, two
# rows, 8 heads, 1024 target rows each: 0.35 s at 2**18, 0.30 s at 2**19, 0.32 s at 2**20, 0.76 s for a row's all.
BLOCK_ELEMENTS = 2**19
HIDDEN_SCORE = -1e30
"""Score of a key that may not be seen: finite, so that differences of two of them are 0 and not NaN."""


@dataclass(frozen=True)
class AttentionKL:
    """`value_BHR` float32/64 per head and target row; gradients of Σ weight_BR·value, or None when not wanted."""

    value_BHR: Tensor
    dq_BHRD: Tensor | None
    dk_BGSD: Tensor | None


@torch.no_grad()
def attention_kl(
    student: AttentionScores,
    teacher: AttentionScores,
    targets: TargetPositions,
    weight_BR: Tensor,
    *,
    heads: Tensor | None = None,
    needs_grad: bool = True,
    block_elements: int = BLOCK_ELEMENTS,
) -> AttentionKL:
    """KL(A_T[t,:] ‖ A_S[t,:]) of every target row t and student head, over the keys both models may see.

    Where the two sliding windows differ, both distributions are renormalised on the narrower one.

    Args:
        student, teacher: scores of one layer each, any float dtype; unequal head counts and head sizes are fine.
        targets: the target rows of the batch.
        weight_BR: weight of each row's KL in the gradients (values are unweighted); 0 for padding rows.
        heads: int64 [H_S], the teacher head that each student head follows; None when they correspond in order.
        needs_grad: whether the gradients with respect to the student's queries and keys are computed.
        block_elements: scores held at once.

    Returns:
        Per-row values (0 in padding rows) and gradients in the inputs' dtype.
    """
    dtype = torch.promote_types(student.q_BHRD.dtype, torch.float32)
    teacher = follow_heads(teacher, heads)
    B, H, R, D = student.q_BHRD.shape
    G, S = student.k_BGSD.shape[1:3]
    window = min((w for w in (student.window, teacher.window) if w is not None), default=S)
    first_BR = torch.maximum(targets.start_BR, targets.position_BR - window + 1)
    weight_BR = weight_BR.to(dtype)
    value_BHR = torch.zeros(B, H, R, dtype=dtype, device=student.q_BHRD.device)
    dq_BHRD = torch.empty_like(student.q_BHRD) if needs_grad else None
    dk_BGSD = torch.zeros(B, G, S, D, dtype=dtype, device=value_BHR.device) if needs_grad else None

    for rows, block in _blocks(targets.position_BR, first_BR, H, S, block_elements):
        keys = _key_range(first_BR[rows, block], targets.position_BR[rows, block])
        hidden_bRK = _hidden(first_BR[rows, block], targets.position_BR[rows, block], keys)
        s_S, ds_raw = _scores(student, rows, block, keys, hidden_bRK, dtype)
        s_T, _ = _scores(teacher, rows, block, keys, hidden_bRK, dtype)
        p_S, p_T = s_S.softmax(-1), s_T.softmax(-1)
        # LSE = s_j − log p_j for any j; the largest is the exact one. Saves exponentiating everything twice.
        lse_S = s_S.amax(-1) - p_S.amax(-1).log_()
        lse_T = s_T.amax(-1) - p_T.amax(-1).log_()
        weight = weight_BR[rows, None, block]
        value = s_T.sub_(s_S).mul_(p_T).sum(-1).sub_(lse_T).add_(lse_S)
        value_BHR[rows, :, block] = value.masked_fill_(~targets.valid_BR[rows, None, block], 0)
        if dq_BHRD is None or dk_BGSD is None:
            continue
        ds = p_S.sub_(p_T).mul_(weight[..., None] * student.scale)
        if ds_raw is not None:
            ds.mul_(ds_raw)
        b, _, r, K = ds.shape
        ds_bGgrK = ds.view(b, G, H // G * r, K)
        k_bGKD = student.k_BGSD[rows, :, keys].to(dtype)
        q_bGgrD = student.q_BHRD[rows, :, block].to(dtype).reshape(b, G, H // G * r, D)
        dq_BHRD[rows, :, block] = (ds_bGgrK @ k_bGKD).view(b, H, r, D).to(dq_BHRD.dtype)
        dk_BGSD[rows, :, keys] += ds_bGgrK.mT @ q_bGgrD
    return AttentionKL(value_BHR, dq_BHRD, None if dk_BGSD is None else dk_BGSD.to(student.k_BGSD.dtype))


def follow_heads(teacher: AttentionScores, heads: Tensor | None) -> AttentionScores:
    """The teacher's scores with one query and key head for each entry of `heads` (None: as they are)."""
    if heads is None:
        return teacher
    group = teacher.q_BHRD.shape[1] // teacher.k_BGSD.shape[1]
    return AttentionScores(
        teacher.q_BHRD[:, heads], teacher.k_BGSD[:, heads // group], teacher.scale, teacher.window, teacher.softcap
    )


def _blocks(position_BR: Tensor, first_BR: Tensor, H: int, S: int, elements: int) -> list[tuple[slice, slice]]:
    """(batch rows, target rows) of each block: at most `elements` scores, and never more than is worth one call."""
    B, R = position_BR.shape
    rows_per_block = max(1, min(R, elements // (H * S)))
    if rows_per_block < R:
        return [
            (slice(b, b + 1), slice(r, min(r + rows_per_block, R)))
            for b in range(B)
            for r in range(0, R, rows_per_block)
        ]
    batch_rows = max(1, elements // (H * R * S))
    return [(slice(b, min(b + batch_rows, B)), slice(0, R)) for b in range(0, B, batch_rows)]


def _key_range(first: Tensor, last: Tensor) -> slice:
    return slice(int(first.min()), int(last.max()) + 1)


def _hidden(first_br: Tensor, last_br: Tensor, keys: slice) -> Tensor:
    """bool [b, 1, r, K], True where the key may not be seen."""
    key_K = torch.arange(keys.start, keys.stop, device=first_br.device)
    return ((key_K < first_br[..., None]) | (key_K > last_br[..., None]))[:, None]


def _scores(
    scores: AttentionScores, rows: slice, block: slice, keys: slice, hidden_b1rK: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Masked scores [b, H, r, K] and, under a soft-cap, their derivative with respect to the uncapped ones."""
    q = scores.q_BHRD[rows, :, block].to(dtype) * scores.scale
    k = scores.k_BGSD[rows, :, keys].to(dtype)
    b, H, r, D = q.shape
    G = k.shape[1]
    s = (q.reshape(b, G, H // G * r, D) @ k.mT).view(b, H, r, -1)
    slope = None
    if scores.softcap is not None:
        s = s.div_(scores.softcap).tanh_()
        slope = 1 - s.square()
        s = s.mul_(scores.softcap)
    return s.masked_fill_(hidden_b1rK, HIDDEN_SCORE), slope
