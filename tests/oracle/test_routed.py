"""Batches of mixed routes in real model forwards against brute force in float64, values and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import toys
from oracle import brute
from preceptor.objective import Attention, Logits, NextToken, Objective, Term, inside
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher, RoutedTeacher

ROUTES = ("general", "shop")
LENGTHS, ANSWERS = [11, 7, 14, 5, 9, 8], [5, 0, 9, 4, 1, 3]
ROW_ROUTES = [0, 0, 1, 1, 0, 1]
WEIGHTS = {"next_token": 0.4, "logits": 1.5, "attention": 0.7}

Shares = Mapping[str, Sequence[tuple[PreTrainedModel, float]]]


def student() -> PreTrainedModel:
    return toys.mistral(1, torch.float64, sharpness=3.0)


def teacher(seed: int, **changes: Any) -> PreTrainedModel:
    return toys.mistral(seed, torch.float64, **{"sharpness": 3.0, **changes})


def larger(seed: int) -> PreTrainedModel:
    """Another depth, width and number of heads than the student's."""
    return teacher(seed, hidden_size=36, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=3)


def terms(**routes: Sequence[str] | None) -> list[Term]:
    """The named terms on the routes given for each (None: all)."""
    kinds = {"next_token": NextToken, "logits": Logits, "attention": Attention}
    on = {name: None if each is None else tuple(each) for name, each in routes.items()}
    return [kinds[name](WEIGHTS[name], each) for name, each in on.items()]


def batch_of(rows: Sequence[brute.Row], how: str) -> TokenBatch:
    if how == "packed":  # only rows of one route share a packed row
        segments, routes = [[rows[0], rows[1]], [rows[3], rows[2]], [rows[4]], [rows[5]]], [0, 1, 0, 1]
        return toys.batch(segments, routes=routes, extra=2)
    return toys.batch([[row] for row in rows], routes=ROW_ROUTES, padding_side=how, extra=1)


def ours(
    model: PreTrainedModel, shares: Shares, objective: Objective, batch: TokenBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums [terms, routes], the loss, and the gradient of all parameters."""
    made = {
        route: [(ModelTeacher(copy.deepcopy(each), name=f"{route} {i}"), w) for i, (each, w) in enumerate(of)]
        for route, of in shares.items()
    }
    routed = RoutedTeacher(made, route_names=ROUTES)
    objective.prepare(model, routed, [batch])
    with objective.listening():
        got = objective(model, batch, routed(batch, objective.needs))
        got.loss.backward()
    return got.sums_TK, got.loss.detach(), _gradient(model)


def _gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).double().flatten() for p in model.parameters()]
    )


def exactly(
    model: PreTrainedModel, shares: Shares, objective: Objective, rows: Sequence[brute.Row]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by brute force, row by row; a route's own links of layers and heads are the objective's."""
    exact = brute.doubled(model)
    exact.zero_grad()
    doubles = {route: [(brute.doubled(each), w) for each, w in of] for route, of in shares.items()}
    zero = torch.zeros((), dtype=torch.float64)
    sums = {(name, k): zero for name in objective.names for k in range(2)}
    for row, k in zip(rows, ROW_ROUTES, strict=True):
        route = ROUTES[k]
        wanted = {t.name for t in objective.terms if t.routes is None or route in t.routes}
        if "next_token" in wanted:
            found = brute.terms_of_row(row, exact, exact)
            sums["next_token", k] = sums["next_token", k] + found["next_token"]
        for i, (double, weight) in enumerate(doubles.get(route, [])):
            if "logits" in wanted:
                found = brute.terms_of_row(row, exact, double, layer_map={0: 0})
                sums["logits", k] = sums["logits", k] + weight * found["logits"]
            links = objective.links[f"{route} {i}"] if "attention" in wanted else {}
            for layer, link in links.items():
                heads = None if link.heads is None else link.heads.tolist()
                found = brute.terms_of_row(row, exact, double, layer_map={layer: link.teacher_layer}, heads=heads)
                share = weight / len(links)
                sums["attention", k] = sums["attention", k] + share * found["attention"]
    loss = sum((WEIGHTS[name] * value for (name, _), value in sums.items()), zero)
    loss.backward()
    table = torch.stack([torch.stack([sums[name, k].detach() for k in range(2)]) for name in objective.names])
    return table, loss.detach(), _gradient(exact)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    # the paper's second stage
    "logits": (lambda: {"general": [(teacher(2), 1.0)], "shop": [(teacher(3), 1.0)]}, {"logits": None}),
    "all terms": (
        lambda: {"general": [(teacher(2), 1.0)], "shop": [(teacher(3), 1.0)]},
        {"next_token": None, "logits": None, "attention": None},
    ),
    "teachers of two shapes": (
        lambda: {"general": [(larger(2), 1.0)], "shop": [(teacher(3, num_hidden_layers=3), 1.0)]},
        {"next_token": None, "logits": None, "attention": None},
    ),
    # cross-entropy on the domain, KL to the reference on the rest (MoL, arXiv 2505.12043)
    "MoL": (lambda: {"general": [(teacher(2), 1.0)]}, {"next_token": ["shop"], "logits": ["general"]}),
    "a term for each route": (
        lambda: {"general": [(teacher(2), 1.0)], "shop": [(teacher(3), 1.0)]},
        {"logits": ["shop"], "attention": ["general"], "next_token": ["shop"]},
    ),
    "a mixture of teachers": (
        lambda: {"general": [(teacher(2), 1.0)], "shop": [(teacher(3), 0.3), (larger(4), 0.7)]},
        {"next_token": None, "logits": None, "attention": None},
    ),
}


@pytest.mark.parametrize("how", ["right", "left", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_routed_batches_equal_brute_force(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, on = CASES[name]
    # Five positions at a time, so that chunks end inside parts and parts inside chunks.
    pieces = partial(inside.linear_loss, chunk_elements=5 * toys.VOCABULARY)
    monkeypatch.setattr(inside, "linear_loss", pieces)
    rows, shares, model = toys.rows(5, LENGTHS, ANSWERS), make(), student()
    objective = Objective(terms(**on), route_names=ROUTES)
    sums, loss, gradient = ours(model, shares, objective, batch_of(rows, how))
    expected = exactly(model, shares, objective, rows)
    torch.testing.assert_close(sums, expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected[1], rtol=1e-10, atol=0)
    assert float(expected[2].norm()) > 0.1
    assert float((gradient - expected[2]).norm() / expected[2].norm()) <= 1e-9


def test_links_are_each_teachers_own() -> None:
    model = student()
    routed = RoutedTeacher(
        {"general": ModelTeacher(larger(2), name="g"), "shop": ModelTeacher(teacher(3, num_hidden_layers=3), name="s")},
        route_names=ROUTES,
    )
    objective = Objective(terms(attention=None), route_names=ROUTES)
    objective.prepare(model, routed, [batch_of(toys.rows(5, LENGTHS, ANSWERS), "right")])
    assert {name: {s: link.teacher_layer for s, link in of.items()} for name, of in objective.links.items()} == {
        "g": {0: 2, 1: 4},
        "s": {0: 1, 1: 2},
    }
    assert all(link.heads is None for link in objective.links["s"].values())
    for link in objective.links["g"].values():
        assert link.heads is not None
        assert len(set(link.heads.tolist())) == 4
    assert dict(objective.needs.layers) == {"g": (2, 4), "s": (1, 2)}


@pytest.mark.parametrize("calibrated", [True, False])
def test_an_attention_term_looks_at_the_teachers_it_follows_alone(calibrated: bool) -> None:
    """The other one may have any number of heads, or no attention at all that could be followed."""
    model = student()
    other = larger(3) if calibrated else teacher(3)
    if not calibrated:
        other.set_attn_implementation("eager")
        other.model.layers[0].self_attn.forward = _without_attention
    shares = {"general": [(teacher(2), 1.0)], "shop": [(other, 1.0)]}
    rows = toys.rows(5, LENGTHS, ANSWERS)
    objective = Objective(terms(logits=None, attention=["general"]), route_names=ROUTES)
    sums, _, _ = ours(model, shares, objective, batch_of(rows, "right"))
    assert list(objective.links) == ["general 0"]
    assert float(sums[1, 0]) > 0
    assert float(sums[1, 1]) == 0


def _without_attention(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return hidden_states, None


def test_a_mixture_teaches_what_the_mixed_distribution_does() -> None:
    """Σ w_i KL(p_i ‖ p_S) and KL(Σ w_i p_i ‖ p_S) differ by a constant only."""
    model, one, two, other = student(), teacher(3), teacher(4), teacher(2)
    rows = toys.rows(5, LENGTHS, ANSWERS)
    batch = batch_of(rows, "right")
    shares = {"general": [(other, 1.0)], "shop": [(one, 0.3), (two, 0.7)]}
    _, _, gradient = ours(model, shares, Objective([Logits()], route_names=ROUTES), batch)

    exact = brute.doubled(model)
    exact.zero_grad()
    doubles = [brute.doubled(each) for each in (other, one, two)]
    loss = torch.zeros((), dtype=torch.float64)
    for (ids, is_target), k in zip(rows, ROW_ROUTES, strict=True):
        p_S = brute.forward(exact, ids)[0].softmax(-1)
        with torch.no_grad():
            p_other, p_one, p_two = (brute.forward(each, ids)[0].softmax(-1) for each in doubles)
        p_T = p_other if k == 0 else 0.3 * p_one + 0.7 * p_two
        for t in range(len(ids) - 1):
            if is_target[t + 1]:
                loss = loss + brute.divergence(p_T[t], p_S[t], "forward_kl")
    loss.backward()
    expected = _gradient(exact)
    assert float((gradient - expected).norm() / expected.norm()) <= 1e-9


def test_the_answers_of_a_row_with_several_teachers_count_once() -> None:
    rows, counts = toys.rows(5, LENGTHS, ANSWERS), []
    for shop in ([(teacher(3), 1.0)], [(teacher(3), 0.5), (teacher(4), 0.5)]):
        objective = Objective([NextToken(), Logits()], route_names=ROUTES)
        sums, _, _ = ours(student(), {"general": [(teacher(2), 1.0)], "shop": shop}, objective, batch_of(rows, "right"))
        counts.append(sums[0])
    torch.testing.assert_close(counts[1], counts[0], rtol=1e-12, atol=0)


def test_the_reference_alone_is_plain_distillation() -> None:
    rows, model = toys.rows(5, LENGTHS, ANSWERS), student()
    batch = batch_of(rows, "right")
    one = ModelTeacher(teacher(2))
    results = []
    for teaches in (one, RoutedTeacher({}, route_names=ROUTES, default=one)):
        objective = Objective([Logits(), Attention()], route_names=ROUTES)
        model.zero_grad()
        objective.prepare(model, teaches)
        with objective.listening():
            got = objective(model, batch, teaches(batch, objective.needs))
            got.loss.backward()
        results.append((got.sums_TK, _gradient(model)))
    for got, expected in zip(results[1], results[0]):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_row_whose_teacher_was_not_asked_is_a_defect_that_shows() -> None:
    batch = batch_of(toys.rows(5, LENGTHS, ANSWERS), "right")
    routed = RoutedTeacher({"general": ModelTeacher(teacher(2))}, route_names=ROUTES)
    with pytest.raises(RuntimeError, match="logits: 16 target positions came without what their teacher says"):
        Objective([Logits()], route_names=ROUTES)(student(), batch, routed(batch, Objective([Logits()]).needs))
