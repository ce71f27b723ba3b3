"""The whole objective inside real model forwards against brute force in float64, values and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import toys
from oracle import brute
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.signals import Signal, TokenBatch
from preceptor.teachers import ModelTeacher

WINDOW_4 = {"sliding_window": 4}
LENGTHS, ANSWERS = [11, 7, 14, 5, 9], [5, 0, 9, 4, 1]

CASES: dict[str, dict[str, Any]] = {
    "forward KL": {"logits": {}},
    "reverse KL": {"logits": {"divergence": "reverse_kl"}},
    "JSD": {"logits": {"divergence": "jsd", "beta": 0.3}},
    "skew KL": {"logits": {"divergence": "skew_kl", "alpha": 0.2}},
    "temperature 2.5": {"logits": {"temperature": 2.5}},
    "temperature 0.5, reverse": {"logits": {"temperature": 0.5, "divergence": "reverse_kl"}},
    "attention": {"attention": {}},
    "all terms, left padding": {"next_token": {}, "logits": {}, "attention": {}, "padding_side": "left"},
    "all terms, packed": {"next_token": {}, "logits": {}, "attention": {}, "packed": True},
    "sliding window": {"logits": {}, "attention": {}, "student": WINDOW_4, "teacher": WINDOW_4},
    "common window": {"attention": {}, "student": {"sliding_window": 3}, "teacher": WINDOW_4, "window": 3},
    "deeper teacher": {"attention": {}, "teacher": {"num_hidden_layers": 5}, "map": {0: 2, 1: 4}},
    "deeper student": {"attention": {}, "student": {"num_hidden_layers": 3}, "map": {0: 0, 1: 1, 2: 1}},
    "chosen layers": {"attention": {"layers": [(1, 0)]}, "map": {1: 0}},
    "wider teacher": {"logits": {}, "attention": {}, "teacher": {"hidden_size": 40, "num_attention_heads": 4}},
    "one-sided teacher": {"logits": {}, "attention": {}, "teacher": {"sharpness": 400.0}},
    "padded vocabulary": {"logits": {}, "teacher": {"vocab_size": toys.VOCABULARY + 6}},
    "tied head": {"next_token": {}, "logits": {}, "attention": {}, "student": {"tie_word_embeddings": True}},
}  # fmt: skip


def terms_of(case: Mapping[str, Any]) -> tuple[list[Any], dict[str, float]]:
    kinds = {"next_token": (NextToken, 0.4), "logits": (Logits, 1.5), "attention": (Attention, 0.7)}
    terms = [make(weight=weight, **case[name]) for name, (make, weight) in kinds.items() if name in case]
    return terms, {term.name: term.weight for term in terms}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_objective_equals_brute_force(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    student = toys.mistral(1, dtype, **{"sharpness": 3.0, **case.get("student", {})})
    teacher = toys.mistral(2, dtype, **{"sharpness": 3.0, **case.get("teacher", {})})
    terms, weights = terms_of(case)
    rows = toys.rows(5, LENGTHS, ANSWERS)
    segments = [[rows[0], rows[1]], [rows[2]], [rows[3], rows[4]]] if case.get("packed") else [[row] for row in rows]
    batch = toys.batch(segments, padding_side=case.get("padding_side", "right"), extra=1)

    objective, teaches = Objective(terms), ModelTeacher(copy.deepcopy(teacher))
    objective.prepare(student, teaches)
    with objective.listening():
        got = objective(student, batch, teaches(batch, objective.needs))
        got.loss.backward()

    exact, oracle_teacher = brute.doubled(student), brute.doubled(teacher)
    exact.zero_grad()
    logits = case.get("logits", {})
    sums = {name: torch.zeros((), dtype=torch.float64) for name in weights}
    for row in rows:
        found = brute.terms_of_row(
            row, exact, oracle_teacher,
            kind=logits.get("divergence", "forward_kl"), temperature=logits.get("temperature", 1.0),
            beta=logits.get("beta", 0.5), alpha=logits.get("alpha", 0.1),
            layer_map=case.get("map"), window=case.get("window"),
        )  # fmt: skip
        for term in sums:
            sums[term] = sums[term] + found[term]
    sum(weights[term] * sums[term] for term in sums).backward()

    count = int(batch.target_mask.sum())
    precise = dtype == torch.float64
    for i, term in enumerate(objective.names):
        mean = float(sums[term].detach()) / count
        assert torch.isfinite(got.sums_TK).all()
        assert abs(float(got.sums_TK[i].sum()) / count - mean) <= (1e-10 if precise else 3e-6) * max(mean, 1), term
    wanted = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    ours = torch.cat(
        [p.grad.double().flatten() for p, q in zip(student.parameters(), exact.parameters()) if q.grad is not None]
    )
    assert torch.isfinite(ours).all()
    assert float((ours - wanted).norm() / wanted.norm()) <= (1e-9 if precise else 3e-5)


def test_a_student_that_underflows_stays_finite() -> None:
    """p_S underflows in float32 where the teacher is sure: the paper's code gives inf there."""
    student, teacher = toys.mistral(1, sharpness=3.0), toys.mistral(2, sharpness=3.0)
    with torch.no_grad():
        student.lm_head.weight *= 500
        teacher.lm_head.weight *= 500
    batch = toys.batch([[row] for row in toys.rows(5, LENGTHS, ANSWERS)])
    for divergence in ("forward_kl", "reverse_kl", "jsd", "skew_kl"):
        student.zero_grad()
        objective, teaches = Objective([Logits(divergence=divergence)]), ModelTeacher(teacher)
        objective.prepare(student, teaches)
        got = objective(student, batch, teaches(batch, objective.needs))
        got.loss.backward()
        assert torch.isfinite(got.loss)
        assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_a_batch_without_targets_gives_zero_and_touches_every_parameter_of_the_head() -> None:
    student, teacher = toys.mistral(1), toys.mistral(2)
    batch = toys.batch([[row] for row in toys.rows(5, [6, 4], [0, 0])])
    for terms in ([Logits()], [Attention()], [NextToken(), Logits(), Attention()]):
        student.zero_grad()
        objective, teaches = Objective(terms), ModelTeacher(teacher)
        objective.prepare(student, teaches)
        with objective.listening():
            got = objective(student, batch, teaches(batch, objective.needs))
            got.loss.backward()
        assert float(got.loss.detach()) == 0
        assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def test_two_forwards_may_be_in_flight() -> None:
    student, teacher = toys.mistral(1, torch.float64, sharpness=3.0), ModelTeacher(toys.mistral(2, torch.float64))
    objective = Objective([Logits(), Attention()])
    objective.prepare(student, teacher)
    batches = [toys.batch([[row] for row in toys.rows(seed, LENGTHS, ANSWERS)]) for seed in (1, 2)]

    def gradients(order: list[list[int]]) -> torch.Tensor:
        student.zero_grad()
        with objective.listening():
            for group in order:
                losses = [objective(student, batches[i], teacher(batches[i], objective.needs)).loss for i in group]
                for loss in losses:
                    loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    torch.testing.assert_close(gradients([[0, 1]]), gradients([[0], [1]]), rtol=1e-12, atol=1e-14)


def test_planted_head_permutation_is_found() -> None:
    """A teacher whose heads are the student's in another order is recognised, and its attention KL is then 0."""
    student = toys.mistral(1, sharpness=4.0, num_key_value_heads=4)
    teacher = copy.deepcopy(student)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for layer in teacher.model.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                weight.copy_(weight.view(4, 6, -1)[order].reshape(weight.shape))
            weight = layer.self_attn.o_proj.weight
            weight.copy_(weight.view(-1, 4, 6)[:, order].reshape(weight.shape))
    batch = toys.batch([[row] for row in toys.rows(5, LENGTHS, ANSWERS)])
    teaches = ModelTeacher(teacher)
    values = {}
    for heads in ("assign", "identity"):
        objective = Objective([Attention(heads=heads)])
        objective.prepare(student, teaches, [batch])
        with objective.listening():
            values[heads] = float(objective(student, batch, teaches(batch, objective.needs)).loss.detach())
    assert values["assign"] < 1e-4
    assert values["identity"] > 0.1


def test_unequal_head_counts_follow_their_map() -> None:
    student = toys.mistral(1, torch.float64, sharpness=3.0, num_attention_heads=3, num_key_value_heads=1, head_dim=8)
    teacher = toys.mistral(2, torch.float64, sharpness=3.0, num_attention_heads=4, num_key_value_heads=2)
    rows = toys.rows(5, LENGTHS, ANSWERS)
    batch = toys.batch([[row] for row in rows])
    objective, teaches = Objective([Attention()]), ModelTeacher(copy.deepcopy(teacher))
    objective.prepare(student, teaches, [batch])
    with objective.listening():
        got = objective(student, batch, teaches(batch, objective.needs))
    exact, oracle_teacher = brute.doubled(student), brute.doubled(teacher)
    expected = 0.0
    links = objective.links["teacher"]
    for layer, link in links.items():
        assert link.heads is not None
        assert len(set(link.heads.tolist())) == 3, "one-to-one as far as counts allow"
        for row in rows:
            found = brute.terms_of_row(
                row, exact, oracle_teacher, layer_map={layer: link.teacher_layer}, heads=link.heads.tolist()
            )
            expected += float(found["attention"].detach()) / len(links)
    assert float(got.loss.detach()) == pytest.approx(expected, rel=1e-10)


def test_a_term_of_weight_zero_is_measured_and_not_minimised() -> None:
    student, teacher = toys.mistral(1, torch.float64, sharpness=3.0), ModelTeacher(toys.mistral(2, torch.float64))
    batch = toys.batch([[row] for row in toys.rows(5, LENGTHS, ANSWERS)])

    def run(terms: list[Any]) -> tuple[dict[str, float], torch.Tensor]:
        student.zero_grad()
        objective = Objective(terms)
        objective.prepare(student, teacher)
        with objective.listening():
            got = objective(student, batch, teacher(batch, objective.needs))
            got.loss.backward()
        sums = dict(zip(objective.names, got.sums_TK.sum(1).tolist()))
        return sums, torch.cat([p.grad.flatten() for p in student.parameters()])

    for minimised, measured in (([Logits()], [Attention(weight=0.0)]), ([Attention()], [Logits(weight=0.0)])):
        alone, alone_grad = run(minimised)
        both, both_grad = run([*minimised, *measured])
        assert {name: both[name] for name in alone} == alone
        assert both[measured[0].name] == pytest.approx(run([type(measured[0])()])[0][measured[0].name])
        torch.testing.assert_close(both_grad, alone_grad, rtol=0, atol=0)


def test_a_step_leaves_nothing_behind() -> None:
    """Graph and observer must not hold each other: that cycle runs through C++ and is never collected."""
    import gc
    import weakref

    from preceptor.objective import inside

    student, teacher = toys.mistral(1), ModelTeacher(toys.mistral(2))
    objective = Objective([Logits(), Attention()])
    objective.prepare(student, teacher)
    batch = toys.batch([[row] for row in toys.rows(5, LENGTHS, ANSWERS)])
    alive: list[weakref.ref[Any]] = []
    original = inside.StudentObserver.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        alive.append(weakref.ref(self))

    inside.StudentObserver.__init__ = watched  # type: ignore[method-assign]
    try:
        with objective.listening():
            objective(student, batch, teacher(batch, objective.needs)).loss.backward()
            sums = objective(student, batch, teacher(batch, objective.needs))  # a forward that is never run back
            del sums
    finally:
        inside.StudentObserver.__init__ = original  # type: ignore[method-assign]
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_parts_of_several_teachers_are_the_same_as_batches_of_their_own() -> None:
    """Rows of one micro-batch may follow different teachers, each with fewer target positions than the batch."""
    student = toys.mistral(1, torch.float64, sharpness=3.0)
    teachers = [ModelTeacher(toys.mistral(seed, torch.float64, sharpness=3.0)) for seed in (2, 3)]
    objective = Objective([NextToken(0.4), Logits(), Attention(0.7)], route_names=("a", "b"))
    objective.prepare(student, teachers[0])
    rows = toys.rows(5, LENGTHS, ANSWERS)
    routes = [0, 1, 0, 1, 1]

    def run(batches: list[tuple[TokenBatch, Signal]]) -> tuple[torch.Tensor, torch.Tensor]:
        student.zero_grad()
        sums = torch.zeros(3, 2, dtype=torch.float64)
        with objective.listening():
            for batch, signal in batches:
                got = objective(student, batch, signal)
                got.loss.backward()
                sums += got.sums_TK
        return sums, torch.cat([p.grad.flatten() for p in student.parameters()])

    mixed = toys.batch([[row] for row in rows], routes=routes)
    parts = []
    for route, teacher in enumerate(teachers):
        mine = torch.tensor([i for i, r in enumerate(routes) if r == route])
        part = teacher(mixed.select(mine), objective.needs).parts[0]
        own = torch.isin(mixed.targets.row_N, mine).nonzero().squeeze(1)
        parts.append(replace(part, rows=mine if part.rows is None else mine[part.rows], targets=own))
    together = run([(mixed, Signal(tuple(parts)))])

    apart = []
    for route, teacher in enumerate(teachers):
        batch = toys.batch([[row] for row, r in zip(rows, routes) if r == route], routes=[route] * routes.count(route))
        apart.append((batch, teacher(batch, objective.needs)))
    for got, expected in zip(together, run(apart)):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_padding_of_both_vocabularies_is_in_neither_softmax() -> None:
    """Heads of 67 and 70 rows over a tokenizer of 61: a zero-padded student must not be given the teacher's mass."""
    student = toys.mistral(1, torch.float64, sharpness=3.0, vocab_size=67)
    teacher = toys.mistral(2, torch.float64, sharpness=3.0, vocab_size=70)
    with torch.no_grad():
        teacher.lm_head.weight[61:] *= 5  # most of the teacher's unmasked mass would be on padding
    batch = toys.batch([[row] for row in toys.rows(5, LENGTHS, ANSWERS)])
    objective, teaches = Objective([Logits()], vocabulary=61), ModelTeacher(teacher)
    objective.prepare(student, teaches)
    got = objective(student, batch, teaches(batch, objective.needs))
    got.loss.backward()
    ours, theirs = (
        model(batch.input_ids, use_cache=False).logits[batch.target_mask][:, :61].detach().softmax(-1)
        for model in (student, teacher)
    )
    expected = sum(brute.divergence(p_T, p_S, "forward_kl") for p_T, p_S in zip(theirs, ours))
    assert float(got.loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert not student.lm_head.weight.grad[61:].any()
    assert student.lm_head.weight.grad[:61].abs().sum(1).min() > 0
