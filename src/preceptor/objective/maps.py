"""Which teacher layer and heads each student layer follows, chosen once before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.errors import InputError
from preceptor.kernels.attention_kl import attention_kl
from preceptor.models.recorder import record
from preceptor.objective.attention import Attention, assign_heads, assign_layers
from preceptor.signals import AttentionScores, LayerShape, Needs, Teacher, TokenBatch, Wanted


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
    routes: frozenset[int],
) -> dict[str, dict[int, LayerLink]]:
    """For each teacher by name, the counterpart of every student layer that `term` works on.

    Raises:
        InputError: when the maps must be chosen on data and `calibration` holds no target on `routes`, those that the
            term covers, for some teacher.
    """
    shapes = teacher.attention_shapes(routes)
    links: dict[str, dict[int, LayerLink]] = {}
    pairs: dict[str, list[tuple[int, int]]] = {}
    for name, theirs in shapes.items():
        layers = term.layer_map(student_shapes, theirs)
        links[name] = {s: LayerLink(t) for s, t in layers.items()}
        if term.needs_calibration(student_shapes, theirs):
            every = [(s, t) for s in layers for t in range(len(theirs))]
            pairs[name] = every if term.layers == "assign" else list(layers.items())
    if not pairs:
        return links
    costs = _pair_costs(pairs, student, teacher, calibration, term.calibration_rows, routes, several=len(shapes) > 1)
    for name in pairs:
        links[name] = _cheapest(term, costs[name], student_shapes, shapes[name], links[name])
    return links


def _cheapest(
    term: Attention,
    costs: Mapping[tuple[int, int], Tensor],
    student_shapes: Sequence[LayerShape],
    teacher_shapes: Sequence[LayerShape],
    links: Mapping[int, LayerLink],
) -> dict[int, LayerLink]:
    """The layers and heads of one teacher whose attention is nearest to the student's."""
    heads = {pair: assign_heads(cost) for pair, cost in costs.items()}
    layers = {s: link.teacher_layer for s, link in links.items()}
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
    pairs: Mapping[str, Sequence[tuple[int, int]]],
    student: nn.Module,
    teacher: Teacher,
    calibration: Iterable[TokenBatch],
    rows: int,
    routes: frozenset[int],
    *,
    several: bool,
) -> dict[str, dict[tuple[int, int], Tensor]]:
    """For each teacher, mean KL [H_S, H_T] between every head of the student and of the teacher in its pairs of layers.

    A teacher is looked at on `rows` calibration rows of its own, or on as many as there are.
    """
    wanted = Wanted(attention_layers=tuple(sorted({s for each in pairs.values() for s, _ in each})))
    layers = {name: tuple(sorted({t for _, t in each})) for name, each in pairs.items()}
    needs = Needs(attention=routes, layers=layers)
    costs: dict[str, dict[tuple[int, int], Tensor]] = {name: {} for name in pairs}
    seen, targets = Counter[str](), Counter[str]()
    training = student.training
    student.eval()
    for batch in calibration:
        if all(seen[name] >= rows for name in pairs):
            break
        ours = record(student, batch, wanted).attention
        for part in teacher(batch, needs).parts:
            name = part.teacher
            if name not in pairs or seen[name] >= rows:
                continue
            here = batch if part.rows is None else batch.select(part.rows)
            seen[name] += here.input_ids.shape[0]
            targets[name] += here.targets.count
            for s, t in pairs[name]:
                scores = ours[s].of_rows(part.rows, here.targets.position_BR.shape[1])
                cost = _pair_cost(scores, part.attention[t], here)
                costs[name][s, t] = costs[name][s, t] + cost if (s, t) in costs[name] else cost
    student.train(training)
    for name in pairs:
        if targets[name] == 0:
            whose = f" for {name!r}" if several else ""
            raise InputError(
                "attention: head or layer maps are chosen on calibration rows, and none with a target was given"
                f"{whose}; pass calibration rows, or set heads and layers to a policy that needs none"
            )
    return {name: {pair: cost / targets[name] for pair, cost in each.items()} for name, each in costs.items()}


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
