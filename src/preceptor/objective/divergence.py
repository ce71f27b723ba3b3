"""Divergences between next-token distributions, each with its gradient in closed form.

Every function takes log-probabilities [n, V] of student and teacher (float32 or wider, finite) at one temperature and
returns the value [n] in nats and, when wanted, the gradient [n, V] with respect to the student's *scaled* logits z/τ.
For a divergence whose derivative with respect to p_S is u, that gradient is p_S∘(u − Σ_j p_S(j) u(j)).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ValueAndGrad = tuple[Tensor, Tensor | None]
Divergence = Callable[[Tensor, Tensor, bool], ValueAndGrad]


def forward_kl(student: Tensor, teacher: Tensor, wants_grad: bool) -> ValueAndGrad:
    """KL(p_T ‖ p_S) = Σ p_T (log p_T − log p_S); gradient p_S − p_T. The paper's L_pred, arXiv 2406.19112."""
    p_T = teacher.exp()
    value = torch.sub(teacher, student).mul_(p_T).sum(-1)
    return value, student.exp().sub_(p_T) if wants_grad else None


def reverse_kl(student: Tensor, teacher: Tensor, wants_grad: bool) -> ValueAndGrad:
    """KL(p_S ‖ p_T) = Σ p_S (log p_S − log p_T); u = log p_S − log p_T. MiniLLM, arXiv 2306.08543."""
    p_S = student.exp()
    u = student - teacher
    value = (p_S * u).sum(-1)
    return value, u.sub_(value[:, None]).mul_(p_S) if wants_grad else None


def jsd(student: Tensor, teacher: Tensor, wants_grad: bool, *, beta: float) -> ValueAndGrad:
    """β KL(p_T ‖ m) + (1−β) KL(p_S ‖ m), m = β p_T + (1−β) p_S; u = (1−β)(log p_S − log m). arXiv 2306.13649."""
    log_m = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    p_S = student.exp()
    u = torch.sub(student, log_m).mul_(1 - beta)
    from_student = (p_S * u).sum(-1)
    value = torch.sub(teacher, log_m).mul_(teacher.exp()).sum(-1).mul_(beta).add_(from_student)
    return value, u.sub_(from_student[:, None]).mul_(p_S) if wants_grad else None


def skew_kl(student: Tensor, teacher: Tensor, wants_grad: bool, *, alpha: float) -> ValueAndGrad:
    """KL(p_T ‖ α p_T + (1−α) p_S); u = −(1−α) p_T / m. DistiLLM, arXiv 2402.03898."""
    log_m = torch.logaddexp(teacher + math.log(alpha), student + math.log1p(-alpha))
    p_T = teacher.exp()
    value = torch.sub(teacher, log_m).mul_(p_T).sum(-1)
    if not wants_grad:
        return value, None
    # p_S·u = −(1−α) p_S p_T / m is formed in logs: p_T / m alone may overflow nothing, but p_S may underflow.
    weighted = torch.sub(student, log_m).exp_().mul_(p_T).mul_(alpha - 1)
    return value, weighted.sub(student.exp().mul_(weighted.sum(-1, keepdim=True)))
