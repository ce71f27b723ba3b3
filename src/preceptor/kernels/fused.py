"""What the fused kernels at the output head compute, in words that need no Triton.

A kernel reads a chunk of the student's scores h Wᵀ in the dtype of the matmul, applies the head's bias, scale and
soft-cap in float32, and writes the gradient over the scores: no other tensor of the chunk's size is made but the
teacher's scores. What the losses are is said once, in `preceptor.objective`; these are twins of some of them, held
equal by `tests/oracle/test_linear_triton.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from preceptor.signals import Head
from preceptor.stored_signals import Stored, WholeDistributions

FusedLoss = Callable[[Tensor, Head, slice, bool], tuple[Tensor, Tensor | None]]
"""(scores h Wᵀ [n, V], the head, slice of positions, gradient wanted) -> (values [T, n], gradient on scores or None).

As `linear_loss.ChunkLoss`, but of scores, which the gradient overwrites."""

KINDS = {"forward_kl": 1, "reverse_kl": 2, "jsd": 3, "skew_kl": 4}
"""Divergences, by the number that kernels know them by; 0 is none."""


@dataclass(frozen=True)
class FusedDivergence:
    """τ²·D(p_T, p_S) at temperature τ; `mixture` is the teacher's share β of JSD's or α of the skew KL's mixture."""

    kind: str
    temperature: float
    mixture: float = 0.5


@dataclass(frozen=True)
class FusedCrossEntropy:
    """−log p_S(label), at temperature 1 and over the whole width of the head."""


@dataclass(frozen=True)
class FusedRows:
    """Some rows of a chunk, and what is computed there: a divergence, a cross-entropy, or both in one pass."""

    scores_nV: Tensor
    """float32, bfloat16 or float16, rows contiguous; overwritten by the gradient, or by rubbish if none is wanted."""
    head: Head
    """The student's."""
    label_n: Tensor
    divergence: FusedDivergence | None
    cross_entropy: bool
    weight_2n: Tensor
    """float32: how much each row's divergence and cross-entropy count in the gradient."""
    share: float = 1.0
    """Multiplies values and gradients of all rows."""
    wants_grad: bool = True


def untaught(rows: FusedRows) -> Tensor:
    """Values float32 [2, n] of rows without a teacher: zeros and cross-entropies."""
    from preceptor.kernels.divergence_triton import fused_rows

    with torch.cuda.device_of(rows.scores_nV):
        return fused_rows(rows, None, None)


def from_teacher(rows: FusedRows, scores_nT: Tensor, head: Head) -> Tensor:
    """Values float32 [2, n]: divergences from a live teacher and cross-entropies.

    `scores_nT` are h Wᵀ + b of the teacher's `head`, of the T ≤ V first tokens, which both models share.
    """
    from preceptor.kernels.divergence_triton import fused_rows

    with torch.cuda.device_of(rows.scores_nV):
        return fused_rows(rows, scores_nT, head)


def from_stored(rows: FusedRows, stored: Stored) -> Tensor:
    """Values float32 [2, n]: divergences from a stored teacher and cross-entropies."""
    from preceptor.kernels.divergence_triton import fused_rows
    from preceptor.kernels.stored_divergence_triton import fused_stored_rows

    with torch.cuda.device_of(rows.scores_nV):
        if isinstance(stored, WholeDistributions):
            # Log-probabilities are logits at the store's temperature, and normalised anew like any.
            return fused_rows(rows, stored.log_prob_NV, None)
        return fused_stored_rows(rows, stored)
