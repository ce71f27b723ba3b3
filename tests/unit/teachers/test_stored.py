"""A stored teacher in a batch: found wherever its rows lie, beside live ones, and refusing what it has not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stores
import toys
from preceptor.data.chat import EncodedRow
from preceptor.errors import InputError
from preceptor.kernels.linear_loss import linear_loss
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.signals import Needs, Teacher, TokenBatch
from preceptor.stored_signals import SampledTokens
from preceptor.teachers import ModelTeacher, RoutedTeacher, StoredTeacher

LENGTHS, ANSWERS = [9, 7, 5, 12, 8, 11, 6, 10], [4, 3, 0, 5, 2, 6, 3, 1]
ROWS = toys.rows(5, LENGTHS, ANSWERS)
LOGITS = Needs(logits=frozenset({0}))


@pytest.fixture(scope="module")
def live() -> torch.nn.Module:
    return toys.llama(1, sharpness=2)


@pytest.fixture(scope="module", params=list(stores.MODES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, live: Any) -> Path:
    where = tmp_path_factory.mktemp(request.param) / "s"
    return stores.write(where, live, stores.encoded(ROWS), **stores.MODES[request.param])


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, live: Any) -> Path:
    return stores.write(tmp_path_factory.mktemp("sampled") / "s", live, stores.encoded(ROWS))


def step(teacher: Teacher, batches: list[TokenBatch], objective: Objective) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of a student, and its gradients."""
    student = toys.llama(3, torch.float64)
    objective.prepare(student, teacher)
    total = 0.0
    with objective.listening():
        for batch in batches:
            loss = objective(student, batch, teacher(batch, objective.needs)).loss
            loss.backward()
            total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


CUTS = {
    "one by one": [[[0]], [[3]], [[1]], [[2]], [[6]], [[5]], [[7]], [[4]]],
    "packed": [[[0, 4], [1, 2, 6], [3], [7, 5]]],
    "packed otherwise": [[[7, 2, 6, 1], [5, 0, 3, 4]]],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("how", [{}, {"padding_side": "left"}, {"extra": 4}], ids=str)
def test_batching_padding_and_packing_change_nothing(folder: Path, cut: str, how: dict[str, Any]) -> None:
    teacher = StoredTeacher(folder)
    terms = [NextToken(0.5), Logits()]
    reference, wanted = step(teacher, [toys.batch([[row] for row in ROWS])], Objective(terms))
    batches = [toys.batch([[ROWS[i] for i in segments] for segments in rows], **how) for rows in CUTS[cut]]
    value, grads = step(teacher, batches, Objective(terms))
    assert value == pytest.approx(reference, rel=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-7, atol=1e-9)


def test_whole_distributions_teach_as_the_live_teacher(tmp_path: Path, live: Any) -> None:
    """Up to the float16 they are kept in."""
    where = stores.write(tmp_path / "s", live, stores.encoded(ROWS), **stores.MODES["full"])
    batches = [toys.batch([[row] for row in ROWS])]
    value, grads = step(StoredTeacher(where), batches, Objective([Logits()]))
    expected, wanted = step(ModelTeacher(live), batches, Objective([Logits()]))
    assert value == pytest.approx(expected, rel=1e-3)
    for name, grad in grads.items():
        assert float((grad - wanted[name]).norm()) <= 2e-3 * float(wanted[name].norm())


def test_stored_and_live_teachers_side_by_side(sampled: Path, live: Any) -> None:
    """Each on its own route, and both on one: sums are those of each alone."""
    other = ModelTeacher(toys.mistral(2, torch.float64), name="other")
    stored = StoredTeacher(sampled)
    rows, routes = [ROWS[i] for i in (0, 1, 3, 4, 5, 6)], [0, 1, 0, 1, 0, 1]
    names = ("shop", "general")
    batch = toys.batch([[row] for row in rows], routes=routes)
    routed = RoutedTeacher({"shop": other, "general": stored}, route_names=names)
    value, grads = step(routed, [batch], Objective([Logits()], route_names=names))
    alone = [
        step(teacher, [toys.batch([[row] for row, own in zip(rows, routes) if own == route])], Objective([Logits()]))
        for route, teacher in enumerate((other, stored))
    ]
    assert value == pytest.approx(sum(each[0] for each in alone), rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, alone[0][1][name] + alone[1][1][name], rtol=1e-5, atol=1e-7)
    both = RoutedTeacher({"general": [(stored, 0.25), (other, 0.75)], "shop": other}, route_names=names)
    shared, _ = step(both, [batch], Objective([Logits()], route_names=names))
    of_other, _ = step(other, [batch.select(torch.tensor([1, 3, 5]))], Objective([Logits()], route_names=names))
    assert shared == pytest.approx(0.25 * alone[1][0] + 0.75 * of_other + alone[0][0], rel=1e-6)


def test_chunks_of_logits_change_nothing(sampled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few positions at a time, cut across rows and teachers."""
    live = ModelTeacher(toys.mistral(2, torch.float64))
    names = ("shop", "general")
    teacher = RoutedTeacher({"shop": live, "general": StoredTeacher(sampled)}, route_names=names)
    batch = toys.batch([[ROWS[i]] for i in (0, 1, 3, 4, 5, 6)], routes=[0, 1, 0, 1, 1, 1])
    wanted, grads = step(teacher, [batch], Objective([NextToken(), Logits()], route_names=names))
    small = partial(linear_loss, chunk_elements=3 * toys.VOCABULARY)
    monkeypatch.setattr("preceptor.objective.inside.linear_loss", small)
    value, chunked = step(teacher, [batch], Objective([NextToken(), Logits()], route_names=names))
    assert value == pytest.approx(wanted, rel=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(chunked[name], grad, rtol=1e-7, atol=1e-9)


def test_no_tensor_as_wide_as_the_vocabulary_is_read(sampled: Path) -> None:
    part = StoredTeacher(sampled)(toys.batch([[row] for row in ROWS]), LOGITS).parts[0]
    assert isinstance(part.stored, SampledTokens)
    assert part.predicted == sum(ANSWERS)
    assert max(x.numel() for x in vars(part.stored).values() if isinstance(x, torch.Tensor)) <= 50 * sum(ANSWERS)


def test_an_attention_term_is_refused(sampled: Path) -> None:
    with pytest.raises(InputError, match="is stored, and attention is distilled from a live teacher only"):
        Objective([Attention()]).prepare(toys.llama(3), StoredTeacher(sampled))


def test_rows_that_are_not_there_are_named(sampled: Path) -> None:
    teacher = StoredTeacher(sampled, name="teacher stage:st")
    rows = stores.encoded(ROWS)
    teacher.check_rows(row for row in rows if row.target_count)
    other = stores.encoded(toys.rows(6, [30], [4]), "shop")
    with pytest.raises(InputError, match=r"teacher stage:st: shop.jsonl:1 \(30 tokens\) is not in the store .*`max_l"):
        teacher.check_rows([*other])
    shorter = EncodedRow("rows", rows[0].input_ids[:-1], rows[0].is_target[:-1], origin="rows.jsonl:1")
    with pytest.raises(InputError, match=r"rows.jsonl:1 \(8 tokens\) is not in the store"):
        teacher.check_rows([shorter])
    whole = EncodedRow("rows", rows[0].input_ids, np.arange(9) > 0, origin="rows.jsonl:1")
    with pytest.raises(InputError, match=r"rows.jsonl:1 \(9 tokens\) is in the store .* with other targets"):
        teacher.check_rows([whole])


def test_a_row_that_is_not_there_ends_a_step(sampled: Path) -> None:
    ids = ", ".join(map(str, toys.rows(6, [30], [4])[0][0][:8].tolist()))
    with pytest.raises(InputError, match=rf"a row of 30 tokens \({ids}, …\) is not in the store"):
        StoredTeacher(sampled)(toys.batch([toys.rows(6, [30], [4])]), LOGITS)


def test_a_routed_teacher_asks_only_for_rows_of_the_stores_route(sampled: Path, live: Any) -> None:
    teacher = RoutedTeacher({"rows": StoredTeacher(sampled), "shop": ModelTeacher(live)}, route_names=("rows", "shop"))
    rows = [row for row in stores.encoded(ROWS) if row.target_count]
    other = stores.encoded(toys.rows(6, [30], [4]), "shop")
    teacher.check_rows([*rows, *other])
    with pytest.raises(InputError, match="is not in the store"):
        teacher.check_rows(stores.encoded(toys.rows(6, [30], [4]), "rows"))
