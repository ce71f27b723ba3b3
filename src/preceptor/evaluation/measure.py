"""An objective's terms on held-out rows: sums over targets, per dataset, without ever gathering logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.objective import Objective
from preceptor.signals import Teacher, TokenBatch


@dataclass(frozen=True)
class TermSums:
    """float64 [terms, routes] sums of each term and int64 [routes] counts of target positions."""

    names: tuple[str, ...]
    route_names: tuple[str, ...]
    sums_TK: Tensor
    targets_K: Tensor

    def means(self) -> dict[str, dict[str, float]]:
        """{dataset: {term: mean per target position in nats, "targets": count}}, datasets without targets left out."""
        return {
            route: {
                **{name: float(self.sums_TK[t, k] / self.targets_K[k]) for t, name in enumerate(self.names)},
                "targets": int(self.targets_K[k]),
            }
            for k, route in enumerate(self.route_names)
            if self.targets_K[k] > 0
        }

    def totals(self) -> dict[str, float]:
        """{term: mean over all target positions}."""
        count = int(self.targets_K.sum())
        return {name: float(self.sums_TK[t].sum()) / max(count, 1) for t, name in enumerate(self.names)}


@torch.no_grad()
def measure(
    objective: Objective,
    model: nn.Module,
    batches: Iterable[TokenBatch],
    teacher: Teacher | None = None,
    *,
    student: nn.Module | None = None,
) -> TermSums:
    """Every term of a prepared objective on `batches`, the model in evaluation mode.

    Args:
        objective: prepared for this student and teacher.
        model: the student as its engine wrapped it; `student` the unwrapped one where that differs.
        batches: on the model's device.
        teacher: where a term follows one.
    """
    route_names = objective.route_names
    device = next(model.parameters()).device
    sums_TK = torch.zeros(len(objective.names), len(route_names), dtype=torch.float64, device=device)
    targets_K = torch.zeros(len(route_names), dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        with objective.listening():
            for batch in batches:
                signal = None if teacher is None else teacher(batch, objective.needs)
                found = objective(model, batch, signal, student=student)
                sums_TK += found.sums_TK
                targets_K += found.targets_K
    finally:
        model.train(training)
    return TermSums(objective.names, route_names, sums_TK, targets_K)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first: less padding, and too large a batch fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
