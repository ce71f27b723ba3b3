"""What a term is: a weighted loss that says what it needs and where it works."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from preceptor.errors import InputError
from preceptor.kernels.fused import FusedCrossEntropy, FusedDivergence
from preceptor.objective.divergence import Distribution
from preceptor.stored_signals import Stored


@dataclass
class Term(ABC):
    """One weighted loss of an objective.

    Args:
        weight: multiplies the term's sum; finite and not negative.
        routes: the datasets whose rows it works on; None for all.
    """

    name: ClassVar[str]
    """The term's `kind` in a recipe and its name in logs."""
    needs_teacher: ClassVar[bool] = False

    weight: float = 1.0
    routes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"{self.name}: weight {self.weight} is out of range; give a number of at least 0")

    def covers(self, route_names: Sequence[str]) -> Tensor:
        """float64 [routes]: 1 for the datasets whose rows the term works on, else 0."""
        on = [float(self.routes is None or name in self.routes) for name in route_names]
        return torch.tensor(on, dtype=torch.float64)


@dataclass
class HeadTerm(Term):
    """A term that works on logits, inside the output head's forward."""

    @abstractmethod
    def evaluate(self, chunk: HeadChunk, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Values [n] of the chunk's positions and, when wanted, a fresh gradient [n, ≤V] on the student's logits.

        A gradient narrower than V is of the first tokens of the vocabulary, the rest being padding.
        """

    def check_stored(self, stored: Stored, width: int) -> None:
        """Raises InputError unless the term can be computed from `stored` on logits of `width` tokens."""

    def fused(self) -> FusedDivergence | FusedCrossEntropy | None:
        """What computes the same inside a fused kernel; None where nothing does."""
        return None


@dataclass
class HeadChunk:
    """Some target positions at the output head."""

    logits_nV: Tensor
    label_n: Tensor
    teacher_logits_nV: Tensor | None = None
    """A live teacher's, of the vocabulary both models share."""
    stored: Stored | None = None
    """A stored teacher's distributions; of a row without a teacher, neither."""
    _students: dict[tuple[float, int], Distribution] = field(default_factory=dict)

    @property
    def taught(self) -> bool:
        return self.teacher_logits_nV is not None or self.stored is not None

    def student(self, temperature: float, tokens: int) -> Distribution:
        """The student's distribution over the first `tokens` entries, computed once."""
        key = (temperature, tokens)
        if key not in self._students:
            self._students[key] = Distribution.of(self.logits_nV[:, :tokens], temperature)
        return self._students[key]

    def teacher(self, temperature: float) -> Distribution:
        """The teacher's distribution; a token it excludes (−inf) gets a finite logit, so that 0·log 0 is 0."""
        assert self.teacher_logits_nV is not None
        return Distribution.of(self.teacher_logits_nV.clamp_min_(-1e30), temperature)
