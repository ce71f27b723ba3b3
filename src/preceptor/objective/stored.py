"""Divergences from a teacher that was stored: from draws, from its top tokens and a tail, from whole distributions.

None of them makes a teacher's tensor as wide as the vocabulary unless the store holds one: draws and top tokens are
scattered into the student's own gradient. As in `divergence`, values [n] are in nats and gradients [n, V] fresh and
with respect to the student's scaled logits z/τ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.objective.divergence import Distribution, Divergence, ValueAndGrad
from preceptor.stored_signals import SampledTokens, TopTokens


def sampled_kl(student: Distribution, drawn: SampledTokens, wants_grad: bool) -> ValueAndGrad:
    """−Σ share·log p_S(token) − H(p_T), whose mean over draws is KL(p_T ‖ p_S); gradient p_S − shares.

    Random sampling of logits for distillation: arXiv 2503.16870. Single values may be below 0.
    """
    dtype = student.scaled_nV.dtype
    share_U = drawn.share_U.to(dtype)
    scaled_U = student.scaled_nV[drawn.index_U, drawn.token_U]
    value = student.lse_n - drawn.entropy_N.to(dtype)
    # The shares of a position sum to 1, so that log Σ exp is taken off once.
    value = value.index_add_(0, drawn.index_U, scaled_U.mul_(share_U), alpha=-1)
    if not wants_grad:
        return value, None
    return value, student.probs_nV.index_put((drawn.index_U, drawn.token_U), -share_U, accumulate=True)


def top_divergence(student: Distribution, top: TopTokens, divergence: Divergence, wants_grad: bool) -> ValueAndGrad:
    """A divergence between K + 1 buckets: the top tokens one by one, and all others together.

    Merging tokens into one bucket never raises a divergence (data-processing inequality), so it is a lower bound of the
    whole one. The student's mass outside the K tokens is held to the teacher's: renormalised top-K would leave it free.

    With bucket logits ℓ, the log of each bucket's mass, ∂/∂z_j is ∂/∂ℓ_j for a top token, and for any other
    ∂/∂ℓ_tail · p_S(j)/p_S(tail).
    """
    dtype = student.scaled_nV.dtype
    log_prob_nK, log_tail_n = top.log_prob_NK.to(dtype), top.log_tail_N.to(dtype)
    teacher = Distribution.of(torch.cat([log_prob_nK, log_tail_n[:, None]], 1).clamp_min_(-1e30), 1.0)
    # Its own softmax, not 1 − Σ of the top: that difference is all rounding where the tail is small.
    tail = Distribution.of(student.scaled_nV.scatter(1, top.token_NK, -torch.inf), 1.0)
    top_nK = student.scaled_nV.gather(1, top.token_NK)
    scaled_nB = torch.cat([top_nK, tail.lse_n[:, None]], 1).sub_(student.lse_n[:, None])
    value, grad_nB = divergence(Distribution.of(scaled_nB, 1.0), teacher, wants_grad)
    if grad_nB is None:
        return value, None
    grad_nV = tail.probs_nV.mul_(grad_nB[:, -1:])
    return value, grad_nV.scatter_(1, top.token_NK, grad_nB[:, :-1])


def whole_teacher(log_prob_nV: Tensor, dtype: torch.dtype) -> Distribution:
    """A stored distribution, normalised anew: its rounded log-probabilities sum to nearly 1."""
    return Distribution.of(log_prob_nV.to(dtype), 1.0)
