"""Which teacher layer and heads each student layer follows, chosen once before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.errors import InputError
from preceptor.kernels.attention_kl import attention_kl
from preceptor.models.recorder import record
from preceptor.objective.attention import Attention, assign_heads, assign_layers
from preceptor.signals import AttentionScores, LayerShape, Needs, Teacher, TokenBatch


@dataclass(frozen=True)
class LayerLink:
    """A student layer's counterpart; `heads` int64 [H_S] is None where heads correspond in order."""

    teacher_layer: int
    heads: Tensor | None = None


def link_layers(
    term: Attention,
    student: nn.Module,
    student_shapes: Sequence[LayerShape],
    teacher: Teacher,
    calibration: Iterable[TokenBatch],
) -> dict[int, LayerLink]:
    """The counterpart of every student layer that `term` works on.

    Raises:
        InputError: when the maps must be chosen on data and `calibration` holds no target.
    """
    teacher_shapes = teacher.attention_shapes()
    layers = term.layer_map(student_shapes, teacher_shapes)
    if not term.needs_calibration(student_shapes, teacher_shapes):
        return {s: LayerLink(t) for s, t in layers.items()}
    pairs = [(s, t) for s in layers for t in range(len(teacher_shapes))] if term.layers == "assign" else layers.items()
    costs = _pair_costs(list(pairs), student, teacher, calibration, term.calibration_rows)
    heads = {pair: assign_heads(cost) for pair, cost in costs.items()}
    if term.layers == "assign":
        layers = _cheapest_layers(costs, heads, len(student_shapes), len(teacher_shapes))
    same = {s: term.heads != "assign" and student_shapes[s].heads == teacher_shapes[t].heads for s, t in layers.items()}
    return {s: LayerLink(t, None if same[s] else heads[s, t]) for s, t in layers.items()}


def _cheapest_layers(
    costs: Mapping[tuple[int, int], Tensor], heads: Mapping[tuple[int, int], Tensor], S: int, T: int
) -> dict[int, int]:
    cost_ST = torch.empty(S, T, dtype=torch.float64)
    for (s, t), cost in costs.items():
        cost_ST[s, t] = cost.gather(1, heads[s, t][:, None]).mean()
    return assign_layers(cost_ST)


def _pair_costs(
    pairs: Sequence[tuple[int, int]],
    student: nn.Module,
    teacher: Teacher,
    calibration: Iterable[TokenBatch],
    rows: int,
) -> dict[tuple[int, int], Tensor]:
    """Mean KL [H_S, H_T] between every student head and every teacher head of each pair of layers."""
    student_needs = Needs(attention_layers=tuple(sorted({s for s, _ in pairs})))
    teacher_needs = Needs(attention_layers=tuple(sorted({t for _, t in pairs})))
    costs: dict[tuple[int, int], Tensor] = {}
    seen = targets = 0
    training = student.training
    student.eval()
    for batch in calibration:
        if seen >= rows:
            break
        seen += batch.input_ids.shape[0]
        targets += batch.targets.count
        ours = record(student, batch, student_needs).attention
        for part in teacher(batch, teacher_needs).parts:
            here = batch if part.rows is None else batch.select(part.rows)
            for s, t in pairs:
                scores = ours[s].of_rows(part.rows, here.targets.position_BR.shape[1])
                cost = _pair_cost(scores, part.attention[t], here)
                costs[s, t] = costs[s, t] + cost if (s, t) in costs else cost
    student.train(training)
    if targets == 0:
        raise InputError(
            "attention: head or layer maps are chosen on calibration rows, and none with a target was given; pass "
            "calibration rows, or set heads and layers to a policy that needs none"
        )
    return {pair: cost / targets for pair, cost in costs.items()}


def _pair_cost(student: AttentionScores, teacher: AttentionScores, batch: TokenBatch) -> Tensor:
    """Summed KL [H_S, H_T] over the batch's target rows."""
    H, T = student.q_BHRD.shape[1], teacher.q_BHRD.shape[1]
    weight_BR = batch.targets.valid_BR.float()
    columns = []
    for t in range(T):
        heads = torch.full((H,), t, device=student.q_BHRD.device)
        result = attention_kl(student, teacher, batch.targets, weight_BR, heads=heads, needs_grad=False)
        columns.append(result.value_BHR.double().sum((0, 2)))
    return torch.stack(columns, 1)
