"""Divergences between next-token distributions, each with its gradient in closed form.

Every function takes the student's and the teacher's distributions over V tokens at n positions, both at one
temperature τ, and returns the value [n] in nats and, when wanted, a fresh gradient [n, V] with respect to the
student's *scaled* logits z/τ. For a divergence whose derivative with respect to p_S is u, that gradient is
p_S∘(u − Σ_j p_S(j) u(j)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ValueAndGrad = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Distribution:
    """softmax(z/τ) at n positions, in float32 or wider; its tensors are shared and not to be written to."""

    scaled_nV: Tensor
    """z/τ, finite."""
    probs_nV: Tensor
    lse_n: Tensor
    """log Σ exp(z/τ), so that log p = z/τ − lse."""

    @classmethod
    def of(cls, logits_nV: Tensor, temperature: float) -> Distribution:
        """The distribution of `logits_nV`, which it keeps when the temperature is 1."""
        scaled_nV = logits_nV if temperature == 1.0 else logits_nV / temperature
        probs_nV = scaled_nV.softmax(-1)
        # log Σ exp(z) = z_j − log p_j for any j, exact for the largest: exponentiating twice costs a third more.
        return cls(scaled_nV, probs_nV, scaled_nV.amax(-1) - probs_nV.amax(-1).log_())

    def log_probs_nV(self) -> Tensor:
        """A fresh tensor of log-probabilities, finite where probabilities underflow."""
        return self.scaled_nV - self.lse_n[:, None]


Divergence = Callable[[Distribution, Distribution, bool], ValueAndGrad]


def forward_kl(student: Distribution, teacher: Distribution, wants_grad: bool) -> ValueAndGrad:
    """KL(p_T ‖ p_S) = Σ p_T (log p_T − log p_S); gradient p_S − p_T. The paper's L_pred, arXiv 2406.19112."""
    # On a CPU a fresh tensor costs about as much as the pass that fills it: its pages are cleared first.
    scratch_nV = torch.sub(teacher.scaled_nV, student.scaled_nV).mul_(teacher.probs_nV)
    value = scratch_nV.sum(-1).sub_(teacher.lse_n).add_(student.lse_n)
    return value, torch.sub(student.probs_nV, teacher.probs_nV, out=scratch_nV) if wants_grad else None


def reverse_kl(student: Distribution, teacher: Distribution, wants_grad: bool) -> ValueAndGrad:
    """KL(p_S ‖ p_T) = Σ p_S (log p_S − log p_T); u = log p_S − log p_T. MiniLLM, arXiv 2306.08543."""
    u = student.log_probs_nV().sub_(teacher.log_probs_nV())
    value = (student.probs_nV * u).sum(-1)
    return value, u.sub_(value[:, None]).mul_(student.probs_nV) if wants_grad else None


def jsd(student: Distribution, teacher: Distribution, wants_grad: bool, *, beta: float) -> ValueAndGrad:
    """β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m), m = β p_T + (1−β) p_S; u = (1−β)(log p_S − log m). arXiv 2306.13649."""
    log_S, log_T = student.log_probs_nV(), teacher.log_probs_nV()
    log_m = torch.logaddexp(log_T + math.log(beta), log_S + math.log1p(-beta))
    u = log_S.sub_(log_m).mul_(1 - beta)
    from_student = (student.probs_nV * u).sum(-1)
    value = log_T.sub_(log_m).mul_(teacher.probs_nV).sum(-1).mul_(beta).add_(from_student)
    return value, u.sub_(from_student[:, None]).mul_(student.probs_nV) if wants_grad else None


def skew_kl(student: Distribution, teacher: Distribution, wants_grad: bool, *, alpha: float) -> ValueAndGrad:
    """KL(p_T ‖ α p_T + (1−α) p_S); u = −(1−α) p_T / m. DistiLLM, arXiv 2402.03898."""
    log_S, log_T = student.log_probs_nV(), teacher.log_probs_nV()
    log_m = torch.logaddexp(log_T + math.log(alpha), log_S + math.log1p(-alpha))
    value = log_T.sub_(log_m).mul_(teacher.probs_nV).sum(-1)
    if not wants_grad:
        return value, None
    # p_S·u = −(1−α) p_T (p_S/m): the ratio in logs, because p_S and m underflow together.
    weighted = log_S.sub_(log_m).exp_().mul_(teacher.probs_nV).mul_(alpha - 1)
    return value, weighted.sub_(student.probs_nV * weighted.sum(-1, keepdim=True))
