"""KL between softmax attention rows, without ever holding a map.

For one query row with masked scores s_T, s_S (docs/losses.md, equation 3)

    KL = Σ_j p_T(j)·(s_T(j) − s_S(j)) − LSE_T + LSE_S,        ∂KL/∂s_S = p_S − p_T,

so a block of rows is enough for the value and for both gradients. Only rows that predict a target are gathered as
queries. Scores are float32 whatever the inputs are: rounded to bfloat16 they spoil the gradient near convergence. Value
and gradients are computed in one pass, because the gradients are linear in the loss's scale: two matrix products fewer
than recomputing the scores in the backward, for the same memory (dq and dk instead of the teacher's q and k).

This is the way of PyTorch, on any device and in any float dtype; `attention_kl_triton` has the way of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preceptor.kernels.choice import use_triton
from preceptor.signals import AttentionScores, TargetPositions

# Scores held at once, in elements: 2 MB of float32 per model stays in a CPU core's caches. CPU time on one thread,
# S = 2048, two rows, 8 heads of 64 on 2 key heads, 1024 target rows each: 0.28 s at 2**17, 0.26 s at 2**18, 0.25 s at
# 2**19, 0.27 s at 2**20, 0.34 s at 2**21.
BLOCK_ELEMENTS = 2**19
HIDDEN_SCORE = -1e30
"""Score of a key that may not be seen: finite, so that differences of two of them are 0 and not NaN."""
Positions = npt.NDArray[np.int64]


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
        block_elements: scores held at once by the PyTorch way; Triton's has blocks of its own.

    Returns:
        Per-row values (0 in padding rows) and gradients in the inputs' dtype.
    """
    if torch.is_autocast_enabled(student.q_BHRD.device.type):
        # Scores are float32, and autocast would multiply them in bfloat16.
        with torch.autocast(student.q_BHRD.device.type, enabled=False):
            return attention_kl(
                student, teacher, targets, weight_BR, heads=heads, needs_grad=needs_grad, block_elements=block_elements
            )
    if use_triton(student.q_BHRD.device):
        from preceptor.kernels import attention_kl_triton as triton_kernels

        if triton_kernels.supports(student, teacher):
            return AttentionKL(
                *triton_kernels.attention_kl_triton(
                    student, teacher, targets, weight_BR, heads=heads, needs_grad=needs_grad
                )
            )
    dtype = torch.promote_types(student.q_BHRD.dtype, torch.float32)
    teacher = follow_heads(teacher, heads)
    B, H, R, D = student.q_BHRD.shape
    G, S = student.k_BGSD.shape[1:3]
    window = min((w for w in (student.window, teacher.window) if w is not None), default=S)
    first_BR = torch.maximum(targets.start_BR, targets.position_BR - window + 1)
    weight_BR = weight_BR.to(dtype)
    value_BHR = torch.zeros(B, H, R, dtype=dtype, device=student.q_BHRD.device)
    # Rows without a target lie in no block.
    dq_BHRD = torch.zeros_like(student.q_BHRD) if needs_grad else None
    dk_BGSD = torch.zeros(B, G, S, D, dtype=dtype, device=value_BHR.device) if needs_grad else None

    for at in cut_blocks(targets, window, H, block_elements):
        rows, block, keys = at.rows, at.block, at.keys
        edges = [(edge, _hidden(first_BR[rows, block], targets.position_BR[rows, block], edge)) for edge in at.edges]
        s_S, slope = _scores(student, at, edges, dtype)
        s_T, _ = _scores(teacher, at, edges, dtype)
        p_S, p_T = s_S.softmax(-1), s_T.softmax(-1)
        # LSE = s_j − log p_j for any j; the largest is the exact one. Saves exponentiating everything twice.
        lse_S = s_S.amax(-1) - p_S.amax(-1).log_()
        lse_T = s_T.amax(-1) - p_T.amax(-1).log_()
        value = s_T.sub_(s_S).mul_(p_T).sum(-1).sub_(lse_T).add_(lse_S)
        value_BHR[rows, :, block] = value.masked_fill_(~targets.valid_BR[rows, None, block], 0)
        if dq_BHRD is None or dk_BGSD is None:
            continue
        ds = p_S.sub_(p_T)
        if slope is not None:
            ds.mul_(slope)
        b, _, r, K = ds.shape
        ds_nmK = ds.view(b * G, H // G * r, K)
        # The weight is one for a row's keys: it is cheaper on queries, before one product and after the other.
        weight = (weight_BR[rows, block] * student.scale)[:, None, :, None]
        k_nKD = student.k_BGSD[rows, :, keys].to(dtype).flatten(0, 1)
        q_nmD = (student.q_BHRD[rows, :, block] * weight).view(b * G, H // G * r, D)
        dq_BHRD[rows, :, block] = (ds_nmK @ k_nKD).view(b, H, r, D).mul_(weight)
        dk_BGSD[rows, :, keys].flatten(0, 1).baddbmm_(ds_nmK.mT, q_nmD)
    return AttentionKL(value_BHR, dq_BHRD, None if dk_BGSD is None else dk_BGSD.to(student.k_BGSD.dtype))


def follow_heads(teacher: AttentionScores, heads: Tensor | None) -> AttentionScores:
    """The teacher's scores with one query and key head for each entry of `heads` (None: as they are)."""
    if heads is None:
        return teacher
    group = teacher.q_BHRD.shape[1] // teacher.k_BGSD.shape[1]
    return AttentionScores(
        teacher.q_BHRD[:, heads], teacher.k_BGSD[:, heads // group], teacher.scale, teacher.window, teacher.softcap
    )


@dataclass(frozen=True)
class Block:
    """Target rows computed at once: `block` of the batch rows `rows`, over `keys`, some of them hidden in `edges`."""

    rows: slice
    block: slice
    keys: slice
    edges: tuple[slice, ...]


def cut_blocks(targets: TargetPositions, window: int, H: int, elements: int) -> list[Block]:
    """Blocks of about `elements` scores: parts of one batch row, or several whole ones where they are small."""
    last_BR, start_BR = targets.on_host
    first_BR = np.maximum(start_BR, last_BR - window + 1)
    # Positions ascend until padding repeats the last of them.
    count_B = 1 + np.diff(last_BR, axis=1).astype(bool).sum(1)
    B, S = len(last_BR), int(last_BR.max(initial=0)) + 1
    most = int(count_B.max(initial=0))
    blocks = []
    if most * S * H <= elements:
        together = elements // max(most * S * H, 1)
        for b in range(0, B, together):
            blocks.append(_block(first_BR, last_BR, slice(b, min(b + together, B)), slice(0, most)))
        return blocks
    for b in range(B):
        r = 0
        while r < count_B[b]:
            keys_r = last_BR[b, r : count_B[b]] - first_BR[b, r] + 1
            scores_r = H * keys_r * np.arange(1, len(keys_r) + 1)  # of a block that ends with each row
            stop = r + max(1, int(np.searchsorted(scores_r, elements, side="right")))
            blocks.append(_block(first_BR, last_BR, slice(b, b + 1), slice(r, stop)))
            r = stop
    return blocks


def _block(first_BR: Positions, last_BR: Positions, rows: slice, block: slice) -> Block:
    first, last = first_BR[rows, block], last_BR[rows, block]
    begin, end = int(first.min()), int(last.max()) + 1
    seen_from, seen_to = int(first.max()), int(last.min()) + 1  # by every row
    if seen_from >= seen_to:
        return Block(rows, block, slice(begin, end), (slice(begin, end),))
    edges = (slice(begin, seen_from), slice(seen_to, end))
    return Block(rows, block, slice(begin, end), tuple(edge for edge in edges if edge.start < edge.stop))


def _hidden(first_br: Tensor, last_br: Tensor, keys: slice) -> Tensor:
    """bool [b, 1, r, K], True where the key may not be seen."""
    key_K = torch.arange(keys.start, keys.stop, device=first_br.device)
    return ((key_K < first_br[..., None]) | (key_K > last_br[..., None]))[:, None]


def _scores(
    scores: AttentionScores, at: Block, edges: Sequence[tuple[slice, Tensor]], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Masked scores [b, H, r, K] and, under a soft-cap, their derivative with respect to the uncapped ones."""
    q = scores.q_BHRD[at.rows, :, at.block].to(dtype) * scores.scale
    k = scores.k_BGSD[at.rows, :, at.keys].to(dtype)
    b, H, r, D = q.shape
    G = k.shape[1]
    s = (q.reshape(b, G, H // G * r, D) @ k.mT).view(b, H, r, -1)
    slope = None
    if scores.softcap is not None:
        s = s.div_(scores.softcap).tanh_()
        slope = 1 - s.square()
        s = s.mul_(scores.softcap)
    for edge, hidden in edges:
        s[..., edge.start - at.keys.start : edge.stop - at.keys.start].masked_fill_(hidden, HIDDEN_SCORE)
    return s, slope
