"""Divergence between the teacher's and the student's next-token distributions (the paper's L_pred)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from preceptor.errors import InputError
from preceptor.kernels.fused import FusedDivergence
from preceptor.objective import divergence
from preceptor.objective.stored import sampled_kl, top_divergence, whole_teacher
from preceptor.objective.terms import HeadChunk, HeadTerm
from preceptor.stored_signals import SampledTokens, Stored, TopTokens

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"]


@dataclass
class Logits(HeadTerm):
    """τ²·D(p_T, p_S) at temperature τ: the factor τ² is on the value and on the gradient.

    Vocabularies that differ by padding are compared on the tokens both have; the student's padding gets no gradient
    and no probability here. From a stored teacher the value is an unbiased estimate (sampled tokens), a lower bound
    (top tokens) or the divergence itself.

    Args:
        divergence: forward_kl (the paper), reverse_kl, jsd or skew_kl.
        temperature: τ > 0, for both models.
        beta: jsd only, in (0, 1): the teacher's share of the mixture.
        alpha: skew_kl only, in (0, 1): the teacher's share of the mixture.
    """

    divergence: DivergenceName = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5
    alpha: float = 0.1

    name: ClassVar[str] = "logits"
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known: dict[str, divergence.Divergence] = {
            "forward_kl": divergence.forward_kl,
            "reverse_kl": divergence.reverse_kl,
            "jsd": partial(divergence.jsd, beta=self.beta),
            "skew_kl": partial(divergence.skew_kl, alpha=self.alpha),
        }
        if self.divergence not in known:
            raise InputError(f"logits: divergence {self.divergence!r} is unknown; give one of {', '.join(known)}")
        for name, value in (("beta", self.beta), ("alpha", self.alpha)):
            if not 0 < value < 1:
                raise InputError(f"logits: {name} {value} is out of range; give a number between 0 and 1")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"logits: temperature {self.temperature} is out of range; give a number above 0")
        self._divergence = known[self.divergence]

    def evaluate(self, chunk: HeadChunk, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        if chunk.stored is None:
            teacher = chunk.teacher(self.temperature)
            student = chunk.student(self.temperature, teacher.scaled_nV.shape[1])
            value, grad = self._divergence(student, teacher, wants_grad)
        else:
            value, grad = self._from_stored(chunk, chunk.stored, wants_grad)
        if self.temperature != 1.0:
            value = value * self.temperature**2
            grad = None if grad is None else grad.mul_(self.temperature)
        return value, grad

    def fused(self) -> FusedDivergence:
        mixture = self.alpha if self.divergence == "skew_kl" else self.beta
        return FusedDivergence(self.divergence, self.temperature, mixture)

    def _from_stored(self, chunk: HeadChunk, stored: Stored, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        self.check_stored(stored, chunk.logits_nV.shape[1])
        student = chunk.student(self.temperature, stored.vocabulary)
        if isinstance(stored, SampledTokens):
            return sampled_kl(student, stored, wants_grad)
        if isinstance(stored, TopTokens):
            return top_divergence(student, stored, self._divergence, wants_grad)
        teacher = whole_teacher(stored.log_prob_NV, student.scaled_nV.dtype)
        return self._divergence(student, teacher, wants_grad)

    def check_stored(self, stored: Stored, width: int) -> None:
        if stored.temperature != self.temperature:
            raise InputError(
                f"logits: temperature is {self.temperature:g} and the teacher was stored at {stored.temperature:g}; "
                "give the term the store's temperature, or store the teacher again"
            )
        if isinstance(stored, SampledTokens) and self.divergence != "forward_kl":
            raise InputError(
                f"logits: divergence {self.divergence!r} cannot be computed from sampled tokens, which give "
                "forward_kl only; use forward_kl, or a store of mode topk or full"
            )
        if stored.vocabulary > width:
            raise InputError(
                f"logits: the teacher was stored over {stored.vocabulary:,} tokens and the student's output head has "
                f"{width:,}; store it for this student"
            )
