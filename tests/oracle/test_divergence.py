"""Every head term on logits against loops in float64, to the tolerance we promise in float32 and in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracle import brute
from preceptor.kernels.linear_loss import linear_loss
from preceptor.objective import Logits, NextToken, Term
from preceptor.objective.terms import HeadChunk, HeadTerm
from preceptor.signals import Head

N, V, D = 11, 43, 7
TEACHERS = {"another": 1.0, "near": 0.03, "one-sided": 60.0}
TERMS: dict[str, Term] = {
    "next token": NextToken(),
    "forward KL": Logits(),
    "reverse KL": Logits(divergence="reverse_kl"),
    "JSD": Logits(divergence="jsd", beta=0.2),
    "skew KL": Logits(divergence="skew_kl", alpha=0.3),
    "forward KL at 2.5": Logits(temperature=2.5),
    "reverse KL at 0.5": Logits(divergence="reverse_kl", temperature=0.5),
    "JSD at 4": Logits(divergence="jsd", temperature=4.0),
}
# Where p_T underflows in float64 too, the reverse KL of the reference is itself infinite.
CASES = [(name, kind) for name in TERMS for kind in TEACHERS if not (kind == "one-sided" and "reverse" in name)]


def made(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, the teacher's logits (float64) and labels; the teacher excludes one token altogether."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, V, generator=generator, dtype=torch.float64)
    teacher = hidden @ weight.T + TEACHERS[kind] * noise
    return hidden, weight, teacher, torch.randint(0, V, (N,), generator=generator)


def expected(term: Term, hidden: Tensor, weight: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    total = hidden.sum() * 0
    for n in range(N):
        logits = weight @ hidden[n]
        if isinstance(term, NextToken):
            total = total - torch.log(logits.softmax(-1)[label[n]])
            continue
        assert isinstance(term, Logits)
        p_T, p_S = ((x / term.temperature).softmax(-1) for x in (teacher[n], logits))
        value = brute.divergence(p_T, p_S, term.divergence, term.beta, term.alpha)
        total = total + term.temperature**2 * value
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_term_equals_loops_in_float64(name: str, kind: str, dtype: torch.dtype) -> None:
    term = TERMS[name]
    assert isinstance(term, HeadTerm)
    hidden, weight, teacher, label = made(kind)
    # The reference starts from what the implementation is given, so that only its own arithmetic is judged.
    h, w = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    teacher = teacher.to(dtype)
    h64, w64 = (x.detach().double().requires_grad_() for x in (h, w))
    reference = expected(term, h64, w64, teacher.double(), label)
    reference.backward()

    def chunk_loss(logits: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        value, grad = term.evaluate(HeadChunk(logits, label[rows], teacher[rows].clone()), wants_grad)
        return value[None], grad

    anchor, values = linear_loss(h, Head(w), chunk_loss, 1, chunk_elements=4 * V)
    anchor.backward()

    mean = float(reference.detach()) / N
    exact = dtype == torch.float64
    assert abs(float(values.double().sum()) / N - mean) <= (1e-10 if exact else 1e-6) * max(mean, 1)
    tolerance = 1e-10 if exact else 1e-5 if mean >= 0.1 else 1e-4
    for got, wanted in ((h, h64), (w, w64)):
        assert got.grad is not None
        assert wanted.grad is not None
        assert float((got.grad.double() - wanted.grad).norm() / wanted.grad.norm()) <= tolerance


def test_a_token_the_teacher_excludes_is_finite() -> None:
    """−inf in the teacher's logits: 0·log 0 is 0, and the student is still pushed away from the token."""
    hidden, weight, teacher, label = made("another")
    teacher[:, 5] = -torch.inf
    term = Logits()
    value, grad = term.evaluate(HeadChunk(hidden @ weight.T, label, teacher.clone()), True)
    assert torch.isfinite(value).all()
    assert grad is not None
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad[:, 5], (hidden @ weight.T).softmax(-1)[:, 5])
