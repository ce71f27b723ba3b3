"""Likelihood, distance and agreement per row: sums over a row's target positions in one forward, no logits gathered.

The objective's own terms do the work, with every row of a batch a route of its own: what training logs per dataset
comes out per row, so that intervals can be drawn over rows and means divided once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.evaluation.measure import by_length, measure
from preceptor.objective import Logits, NextToken, Objective, Term
from preceptor.objective.terms import HeadChunk, HeadTerm
from preceptor.signals import Teacher, TokenBatch


@dataclass
class Agreement(HeadTerm):
    """1 where student and teacher find the same token most likely, else 0; nothing to minimise."""

    name: ClassVar[str] = "agreement"
    needs_teacher: ClassVar[bool] = True

    weight: float = 0.0

    def evaluate(self, chunk: HeadChunk, wants_grad: bool) -> tuple[Tensor, Tensor | None]:
        teacher_nV = chunk.teacher_logits_nV
        assert teacher_nV is not None
        same = chunk.logits_nV[:, : teacher_nV.shape[1]].argmax(-1) == teacher_nV.argmax(-1)
        return same.to(chunk.logits_nV.dtype), None


@dataclass(frozen=True)
class RowSums:
    """Sums over each row's target positions, in the order of the rows.

    `targets_R` int64 counts them; `nll_R` −log p(target) and `kl_R` KL(teacher ‖ model) are float64 in nats; `agree_R`
    int64 counts positions at which both find the same token most likely. The last two are None without a teacher.
    """

    targets_R: NDArray[np.int64]
    nll_R: NDArray[np.float64]
    kl_R: NDArray[np.float64] | None = None
    agree_R: NDArray[np.int64] | None = None


def row_sums(
    model: PreTrainedModel,
    rows: Sequence[EncodedRow],
    *,
    vocabulary: int,
    pad_token_id: int,
    batch_size: int,
    teacher: Teacher | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> RowSums:
    """Negative log-likelihood of each row's targets and, with a teacher, the distance to it on the same positions.

    Args:
        model: measured in evaluation mode.
        rows: encoded with the tokenizer that model and teacher share.
        vocabulary: tokens of that tokenizer; KL and agreement leave out padding beyond it.
        pad_token_id: fills up; its value changes nothing.
        batch_size: rows at once; it changes the time and, beyond rounding, nothing else.
        teacher: whose distributions the model's are compared with, at temperature 1.
        advance: told how many rows a finished batch held.
    """
    terms: list[Term] = [NextToken()]
    if teacher is not None:
        terms += [Logits(), Agreement()]
    objective = Objective(terms, route_names=[str(i) for i in range(batch_size)], vocabulary=vocabulary)
    objective.prepare(model, teacher)
    collator = Collator(pad_token_id, route_names=tuple(dict.fromkeys(row.route for row in rows)))
    device = model.get_input_embeddings().weight.device
    sums_TR = np.zeros((len(terms), len(rows)))
    targets_R = np.zeros(len(rows), dtype=np.int64)
    for chosen in by_length([len(row) for row in rows], batch_size):
        batch = TokenBatch.from_inputs(collator([rows[i] for i in chosen]))
        batch = replace(batch, routes=torch.arange(len(chosen))).to(device)
        found = measure(objective, model, [batch], teacher)
        sums_TR[:, chosen] = found.sums_TK[:, : len(chosen)].cpu().numpy()
        targets_R[chosen] = found.targets_K[: len(chosen)].cpu().numpy()
        advance(len(chosen))
    nll_R, *others = sums_TR
    if teacher is None:
        return RowSums(targets_R, nll_R)
    kl_R, agree_R = others
    # Rounding may leave a KL of nothing slightly below it.
    return RowSums(targets_R, nll_R, np.maximum(kl_R, 0.0), agree_R.round().astype(np.int64))
